"""Several processes at one bundle: readers while it is replaced, writers at one target, killed at any point."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prunevid import PruneVidError
from prunevid.bundle import new_bundle, open_bundle, renaming
from prunevid.locks import only_one

ROOT = Path(__file__).parents[1]


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def replace(source: Path, target: Path, before_the_end: Callable[[], object] = lambda: None) -> None:
    """Put a copy of a bundle in the place of another."""
    with new_bundle(target, overwrite=True) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        before_the_end()


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As demo_bundle, with other weights in some of its files."""
    from prunevid.export import export

    return export("demo", tmp_path_factory.mktemp("other") / "demo", precision="fp16").path


READING = """
import sys
from prunevid.bundle import open_bundle
from prunevid.runtime import load
path, = sys.argv[1:]
print("ready", flush=True)
seen = []
while not (seen and sys.stdin.readline() == "over\\n"):
    for _ in range(3):
        seen.append(open_bundle(path).manifest.precision)
    seen.append(load(path, threads=1).bundle.manifest.precision)
    print(*seen, flush=True)
    seen = seen[-1:]
"""


def test_a_reader_never_sees_a_hole(demo_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    target = copied(demo_bundle, tmp_path / "bundle")
    reader = python(READING, target)
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    seen: set[str] = set()
    for turn in range(50):
        replace((other_bundle, demo_bundle)[turn % 2], target)
        if turn % 5 == 4:
            seen |= set(reader.stdout.readline().split())
            reader.stdin.write("more\n")
            reader.stdin.flush()
    reader.communicate("over\n", timeout=100)
    assert reader.returncode == 0
    assert seen == {"fp16", "fp32"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("how", ["a folder", "a bundle", "a file", "a link"])
def test_what_was_not_there_at_the_start_stays(demo_bundle: Path, tmp_path: Path, how: str) -> None:
    target = tmp_path / "out"

    def come_between() -> None:
        if how == "a folder":
            target.mkdir()
            (target / "thesis.txt").write_text("years of work")
        elif how == "a bundle":
            copied(demo_bundle, target)
        elif how == "a file":
            target.write_text("years of work")
        else:
            target.symlink_to(tmp_path / "nowhere")

    with pytest.raises(PruneVidError, match="made or changed by someone else meanwhile"):
        replace(demo_bundle, target, come_between)
    assert os.path.lexists(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if how == "a folder":
        assert (target / "thesis.txt").read_text() == "years of work"
    elif how == "a bundle":
        open_bundle(target)


def test_of_two_who_replace_one_bundle_the_second_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    target = copied(demo_bundle, tmp_path / "bundle")
    with pytest.raises(PruneVidError, match="made or changed by someone else"):
        replace(demo_bundle, target, lambda: replace(demo_bundle, target))
    open_bundle(target)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_folder_that_was_filled_meanwhile_stays(demo_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(PruneVidError, match="made or changed by someone else"):
        replace(demo_bundle, target, lambda: (target / "note").write_text("mine"))
    assert (target / "note").read_text() == "mine"
    (target / "note").unlink()
    replace(demo_bundle, target)
    open_bundle(target)


def test_a_target_that_went_away_is_made_anew(demo_bundle: Path, tmp_path: Path) -> None:
    target = copied(demo_bundle, tmp_path / "bundle")
    replace(demo_bundle, target, lambda: shutil.rmtree(target))
    open_bundle(target)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL])
def test_where_names_cannot_be_exchanged_they_are_moved_aside(
    demo_bundle: Path, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As on file systems and C libraries without renameat2."""
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    monkeypatch.setattr(renaming, "_EXCHANGE", 1 << 20)
    monkeypatch.setattr(renaming, "_NOREPLACE", 1 << 20)
    target = tmp_path / "bundle"
    replace(demo_bundle, target)
    replace(other_bundle, target)
    assert open_bundle(target).manifest.precision == "fp16"
    with pytest.raises(PruneVidError, match="made or changed by someone else"):
        replace(demo_bundle, tmp_path / "new", (tmp_path / "new").mkdir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "new"]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from prunevid.bundle import new_bundle, renaming, writing
source, target, at = sys.argv[1:]
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if at == "before":
    writing._publish = kill
elif at == "exchanged":
    writing.shutil.rmtree = kill
with new_bundle(target, overwrite=True) as folder:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if at == "half":
        kill()
"""


@pytest.mark.parametrize(("at", "left"), [("half", "fp32"), ("before", "fp32"), ("exchanged", "fp16")])
def test_a_killed_writer_leaves_the_old_or_the_new(
    demo_bundle: Path, other_bundle: Path, tmp_path: Path, at: str, left: str
) -> None:
    target = copied(demo_bundle, tmp_path / "bundle")
    process = python(KILLED, other_bundle, target, at)
    assert process.wait(100) == -signal.SIGKILL
    process.communicate()
    assert open_bundle(target).manifest.precision == left
    replace(other_bundle, target)
    assert open_bundle(target).manifest.precision == "fp16"


def work_in(target: Path, bundle: Path) -> None:
    target.mkdir()
    os.chdir(target)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda target, bundle: target.symlink_to(bundle), "is a link"),
        (lambda target, bundle: target.symlink_to(bundle.parent / "nowhere"), "is a link"),
        (lambda target, bundle: target.symlink_to(bundle / "manifest.json"), "is a link"),
        (lambda target, bundle: target.write_text("a file"), "is not a bundle"),
        (lambda target, bundle: (target.mkdir(), (target / "manifest.json").write_text('{"name": "a page"}')),
         "is not a bundle"),
        (lambda target, bundle: (target.mkdir(), (target / "manifest.json").mkdir()), "is not a bundle"),
        (work_in, "is the current folder"),
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_not_replaced(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path], object],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "out"
    make(target, demo_bundle)
    for overwrite in (False, True):
        # Before the work: the block is not entered.
        with pytest.raises(PruneVidError, match=expected), new_bundle(target, overwrite=overwrite):
            pytest.fail("began to work")
    os.chdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("output", "expected"), [("/proc", "file system is mounted"), ("/", "file system"), ("", "empty")]
)
def test_places_that_cannot_be_replaced_are_refused(output: str, expected: str) -> None:
    with pytest.raises(PruneVidError, match=expected), new_bundle(output, overwrite=True):
        pytest.fail("began to work")


def test_folders_that_were_made_for_a_failed_bundle_go_with_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "a" / "b" / "c"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


HOLDING = """
import sys
from pathlib import Path
from prunevid.locks import only_one
with only_one(Path(sys.argv[1]), "testing x"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_who_holds_it_and_dies_with_them(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lock"
    holder = python(HOLDING, file)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(PruneVidError, match=rf"process {holder.pid} on .* is testing x already"),
        only_one(file, "testing x"),
    ):
        pytest.fail("both hold it")
    holder.kill()
    holder.communicate()
    assert json.loads(file.read_text())["pid"] == holder.pid  # nobody removed it
    with only_one(file, "testing x"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_a_lock_without_the_systems_help_goes_by_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prunevid.locks

    monkeypatch.setattr(prunevid.locks, "fcntl", None)
    file = tmp_path / "lock"
    holder = python(HOLDING, file)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PruneVidError, match=f"process {holder.pid} "), only_one(file, "testing x"):
        pytest.fail("both hold it")
    holder.kill()
    holder.communicate()
    with only_one(file, "testing x"):
        pass


CALIBRATING = """
import sys
from pathlib import Path
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.console.progress import Silent
from prunevid.calibration.questions import find_videos
class Waiting(Silent):
    def step(self, what, total=0, done=0):
        if what == "asking the quantized bundle":
            print("working", flush=True)
            sys.stdin.readline()
bundle, videos, output = map(Path, sys.argv[1:])
calibrate(bundle, find_videos(videos), output, Settings("cpu-int8", force=True, max_new_tokens=1, threads=1), Waiting())
"""


@pytest.mark.parametrize("end", ["done", "killed"])
def test_of_two_calibrations_with_one_output_the_second_is_told_of_the_first(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, end: str
) -> None:
    from asked import asked_videos

    from prunevid.calibration.quantize.calibrate import Settings, calibrate
    from prunevid.calibration.questions import find_videos

    (tmp_path / "videos").mkdir()
    asked_videos(tmp_path / "videos", 4)
    source, output = tiny_bundle("qwen2", "ort"), tmp_path / "out"
    first = python(CALIBRATING, source, tmp_path / "videos", output)
    assert first.stdout is not None
    assert first.stdout.readline() == "working\n"
    settings = Settings("cpu-int8", force=True, max_new_tokens=1, threads=1)
    videos = find_videos(tmp_path / "videos")
    with pytest.raises(PruneVidError, match=rf"process {first.pid} on .* is calibrating .*out already: wait"):
        calibrate(source, videos, output, settings)
    if end == "killed":
        first.kill()
        first.communicate()
        calibrate(source, videos, output, settings)  # goes on
    else:
        first.communicate("\n", timeout=100)
        assert first.returncode == 0
    open_bundle(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "videos"]
