"""Commands at the edge of what terminals, pipes, signals and people do: real processes, one sentence, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("ordinary_signals")

ROOT = Path(__file__).parents[1]
PREFIX = [sys.executable, "-m", "prunevid.cli"]
FIT = ("fit", "--model", "llava-ov", "--device", "l4", "--frames", "8")
# Commands that need no bundle and take no time, and what they do with standard output.
QUICK = {
    "help": ("--help",),
    "version": ("--version",),
    "help of a command": ("calibrate", "--help"),
    "tables": FIT,
    "json": (*FIT, "--json", "-"),
}
QUESTION = "どうして赤い? é"


def shell(arguments: tuple[str, ...], redirection: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command with a shell's redirections, which may hold a pipe."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *PREFIX, *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def one_sentence(stderr: bytes) -> str:
    lines = stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert ": error: " in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np
    from videos import write_video

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, np.random.default_rng(3).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def asking(tiny_bundle: Callable[[str, str], Path], clip: Path) -> tuple[str, ...]:
    """A question whose answer is full of characters that few encodings have."""
    return ("run", str(tiny_bundle("qwen2", "ort")), "--video", str(clip), "--question", QUESTION, "--frames", "4")


@pytest.mark.parametrize("command", QUICK)
@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        (">/dev/full", "cannot write to standard output: No space left on device"),
        (">&-", "standard output is closed"),
        ("</dev/null 1<&0", "cannot write to standard output: Bad file descriptor"),
    ],
)
def test_output_that_goes_nowhere_is_one_sentence(command: str, redirection: str, expected: str) -> None:
    result = shell(QUICK[command], redirection)
    assert result.returncode == 2
    assert expected in one_sentence(result.stderr)


@pytest.mark.parametrize("command", QUICK)
def test_a_reader_who_goes_away_is_no_error(command: str) -> None:
    result = shell(QUICK[command], "| head -c 1")
    assert result.returncode == 0
    assert len(result.stdout) == 1
    assert result.stderr == b""


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_the_work_goes_on_without_standard_error(asking: tuple[str, ...], redirection: str) -> None:
    expected = shell(asking, "")
    assert expected.returncode == 0
    assert b"visual tokens" in expected.stderr
    result = shell(asking, redirection)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected.stdout, b"")
    assert shell(("run", "nothing", "--video", "x", "--question", "x"), redirection).returncode == 2


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_answer_that_cannot_be_written_is_one_sentence(asking: tuple[str, ...], more: tuple[str, ...]) -> None:
    result = shell((*asking, *more), ">/dev/full")
    assert result.returncode == 2
    assert "No space left on device" in one_sentence(result.stderr)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437"])
def test_what_a_stream_cannot_take_is_written_as_escapes(asking: tuple[str, ...], encoding: str) -> None:
    answer = shell(asking, "", PYTHONIOENCODING="utf-8").stdout.decode()
    assert not answer.isascii()
    result = shell(asking, "", PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert result.stdout == answer.encode(encoding, "backslashreplace")
    written = shell((*asking, "--json"), "", PYTHONIOENCODING=encoding)
    data = json.loads(written.stdout.decode(encoding))
    assert data["question"] == QUESTION
    assert data["text"] == answer.removesuffix("\n")


def test_the_c_locale_is_no_obstacle(asking: tuple[str, ...]) -> None:
    asked = tuple("why" if argument == QUESTION else argument for argument in asking)
    answer = shell(asked, "", PYTHONIOENCODING="utf-8").stdout.decode()
    result = shell(asked, "", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode("ascii") == answer.encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_files_on_standard_output_stay_what_they_are(asking: tuple[str, ...], encoding: str) -> None:
    """JSON can be read; a page shows the same in every encoding; tables are drawn with what there is."""
    _, bundle, *rest = asking
    profile = ("profile", bundle, *rest, "--runs", "1", "--warmup", "0", "--max-new-tokens", "2")
    result = shell((*profile, "--json", "-"), "", PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.decode(encoding))["question"] == QUESTION
    assert b"peak memory" in result.stderr
    assert "\\u" not in result.stderr.decode(encoding)
    page = shell((*profile, "--html", "-"), "", PYTHONIOENCODING=encoding).stdout.decode(encoding)
    assert ("→" if encoding == "utf-8" else "&#8594;") in page


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_tables_keep_their_columns_without_box_characters(encoding: str) -> None:
    plain = shell(FIT, "", PYTHONIOENCODING=encoding)
    drawn = shell(FIT, "", PYTHONIOENCODING="utf-8")
    assert plain.returncode == 0
    text = plain.stdout.decode(encoding)
    assert "\\u" not in text
    figures = [word for word in drawn.stdout.decode().split() if any(c.isdigit() for c in word)]
    assert len(figures) > 100
    assert [word for word in text.replace("|", " ").split() if any(c.isdigit() for c in word)] == figures


# Raises a signal, as often as told, when a module is about to be imported, and runs a command.
SIGNALLED = """
import signal, sys
number, times, at, *arguments = sys.argv[1:]
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            try:
                signal.raise_signal(int(number))
            finally:
                for _ in range(int(times) - 1):
                    signal.raise_signal(int(number))
sys.meta_path.insert(0, Hook())
sys.argv[1:] = arguments
from prunevid.cli import main
sys.exit(main())
"""
MODULES = (
    "prunevid.console.command", "argparse", "prunevid.runtime.cli", "numpy", "onnxruntime", "av",
    "numpy._core._multiarray_umath", "prunevid.runtime.session", "prunevid.runtime.stream",
)  # fmt: skip


def signalled(number: int, times: int, at: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SIGNALLED, str(number), str(times), at, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("at", MODULES)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_starting_up_is_one_word(asking: tuple[str, ...], at: str, times: int) -> None:
    result = signalled(signal.SIGINT, times, at, *asking)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "prunevid run: interrupted\n"


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")]
)
def test_a_signal_during_the_work_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, word: str) -> None:
    command = [sys.executable, "-c", WRITING, str(int(number)), str(tmp_path / "bundle")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (128 + number, f"prunevid write: {word}\n")
    assert list(tmp_path.iterdir()) == []


# A command that writes a bundle, when a signal comes, and others while what it wrote is removed.
WRITING = """
import shutil, signal, sys
from pathlib import Path
from prunevid import cli
from prunevid.bundle import new_bundle
number, output = sys.argv[1:]
remove = shutil.rmtree
def removing(*given, **settings):
    signal.raise_signal(int(number))
    remove(*given, **settings)
    signal.raise_signal(signal.SIGTERM)
shutil.rmtree = removing
def work():
    with new_bundle(output) as folder:
        (folder / "half").write_text("half")
        signal.raise_signal(int(number))
sys.exit(cli._framed("prunevid write", work, None, last=True))
"""


def test_signals_that_are_ignored_stay_so() -> None:
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SIGNALLED
    command = [sys.executable, "-c", code, str(int(signal.SIGHUP)), "1", "argparse", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    code = """
import signal, sys, time
from prunevid.console.signals import Stopping
class Doomed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        sum(range(10))
with Stopping(last=True) as stopped:
    Doomed()
    time.sleep(30)
    print("not stopped")
sys.exit(stopped.status)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


LONG = "x" * 5000
RUN = ("run", "{bundle}", "--video", "{clip}", "--question", "why")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Paths
        *(
            (arguments, "the path is empty")
            for arguments in (
                ("run", "", "--video", "x", "--question", "x"),
                ("run", "x", "--video", "", "--question", "x"),
                ("run", "x", "--video=", "--question", "x"),
                ("profile", "", "--video", "x"),
                ("profile", "x", "--video", ""),
                *(("profile", "x", "--video", "x", f"--{kind}", "") for kind in ("json", "csv", "html")),
                ("show", "", "--video", "x", "--question", "x", "--output", "x.png"),
                ("show", "x", "--video", "", "--question", "x", "--output", "x.png"),
                ("show", "x", "--video", "x", "--question", "x", "--output", ""),
                ("fit", "", "--device", "l4"),
                (*FIT, "--json", ""),
                ("export", "--model", "demo", "--output", ""),
                ("export", "--model", "demo", "--output", "x", "--checkpoint", ""),
                ("build", ""),
                ("build", "x", "--timing-cache", ""),
                ("calibrate", "", "--output", "x", "--recipe", "cpu-int8", "--videos", "x"),
                ("calibrate", "x", "--output", "", "--recipe", "cpu-int8", "--videos", "x"),
                ("calibrate", "x", "--output", "x", "--recipe", "cpu-int8", "--videos", ""),
                ("calibrate", "x", "--output", "x", "--recipe", "cpu-int8", "--questions", ""),
                *(
                    ("calibrate", "x", "--output", "x", "--tune-pruning", "--videos", "x", f"--{kind}", "")
                    for kind in ("json", "png", "html")
                ),
            )
        ),
        (("run", LONG, "--video", "x", "--question", "x"), "File name too long"),
        (("run", "x", "--video", LONG, "--question", "x"), "File name too long"),
        (("export", "--model", "demo", "--output", f"/tmp/{LONG}"), "File name too long"),
        ((*FIT, "--json", LONG), "File name too long"),
        (("run", "x", "--video", "~nobody-at-all/x", "--question", "x"), "there is no such user"),
        (("export", "--model", "demo", "--output", "x", "--checkpoint", "~nobody-at-all/x"), "there is no such user"),
        (("run", "bad\udcff", "--video", "x", "--question", "x"), "there is no bundle at bad\\udcff"),
        (("run", "two\nlines", "--video", "x", "--question", "x"), "there is no bundle at two\\nlines"),
        # Numbers
        *(
            ((*RUN, option, value), expected)
            for option in ("--threads", "--frames", "--max-new-tokens", "--top-k", "--seed")
            for value, expected in (
                ("1_0", "give a whole number"),
                ("٣", "give a whole number"),
                (" 3", "give a whole number"),
                ("1.5", "give a whole number"),
                ("", "give a whole number"),
                ("9" * 30, "is too large"),
                ("9" * 5000, "is too large"),
            )
        ),
        *(
            ((*RUN, option, value), expected)
            for option in ("--temperature", "--top-p", "--keep-ratio", "--static-threshold")
            for value, expected in (
                ("nan", "give a number"),
                ("inf", "give a number"),
                ("1_0.5", "give a number"),
                ("٣", "give a number"),
                ("1e400", "too large a number"),
                ("", "give a number"),
            )
        ),
        (("profile", "x", "--video", "x", "--frames", "4,9" + "9" * 30), "whole numbers with commas"),
        (("fit", "--model", "llava-ov", "--device", "l4", "--frames", "9" * 30), "whole numbers of 1 or more"),
        (("fit", "--model", "llava-ov", "--device", "l4", "--merged-share", "nan"), "give a number"),
        # Options
        (("run", "x", "--vid", "x", "--question", "x"), "--vid"),
        (("export", "--mod", "demo", "--output", "x"), "--mod"),
        (("--vers",), "COMMAND"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    from prunevid.cli import main

    before = list(Path.cwd().iterdir())
    status: object = 0
    try:
        status = main(arguments)
    except SystemExit as error:  # as parsers end
        status = error.code
    assert status == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert expected in line
    assert len(line) < 1000
    assert list(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        *(("profile", "{bundle}", "--video", "{clip}", f"--{kind}") for kind in ("json", "csv", "html")),
        ("show", "{bundle}", "--video", "{clip}", "--question", "why", "--output"),
        ("fit", "{bundle}", "--device", "l4", "--json"),
        ("build", "{bundle}", "--timing-cache"),
        *(
            (
                "calibrate", "{bundle}", "--output", "{tmp}/new", "--tune-pruning", "--max-tokens", "0.5",
                "--videos", "{tmp}/videos", f"--{kind}",
            )
            for kind in ("json", "png", "html")
        ),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)  # fmt: skip
def test_an_output_does_no_harm_to_what_is_read(
    demo_bundle: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    within: bool,
) -> None:
    from prunevid.cli import main

    bundle, videos = tmp_path / "bundle", tmp_path / "videos"
    shutil.copytree(demo_bundle, bundle)
    videos.mkdir()
    (tmp_path / "linked").symlink_to(bundle)
    for number in range(4):
        shutil.copy(clip, videos / f"{number}.mp4")
    # Under other names than those that are given for reading: a hard link, and a link to the folder.
    ending = ".png" if command[0] == "show" else ".mp4"
    os.link(videos / "0.mp4", tmp_path / f"film{ending}")
    harmed, what = tmp_path / f"film{ending}", "overwrite the video"
    if within or command[0] in ("fit", "build"):
        harmed, what = tmp_path / "linked" / ("new.png" if command[0] == "show" else "manifest.json"), "lie within"
    elif command[0] == "calibrate":
        harmed, what = videos / "front.png", "lie within the videos"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = [part.format(bundle=bundle, clip=videos / "0.mp4", tmp=tmp_path) for part in command]
    assert main([*given, str(harmed)]) == 2
    written = capsys.readouterr()
    assert f"{harmed}: the output would {what}" in written.err
    assert len(written.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_pictures_of_a_front_have_two_names(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prunevid.cli import main

    tuning = ("--tune-pruning", "--max-tokens", "0.5", "--videos", str(tmp_path), "--output", str(tmp_path / "new"))
    files = ("--json", str(tmp_path / "front"), "--html", str(tmp_path / "." / "front"))
    assert main(["calibrate", str(demo_bundle), *tuning, *files]) == 2
    assert "two outputs have the same file name" in capsys.readouterr().err


def test_a_word_that_the_model_does_not_know_is_named(
    demo_bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prunevid.cli import main

    assert main(["run", str(demo_bundle), "--video", str(clip), "--question", "what colour is the zeppelin ?"]) == 2
    assert "'<unk>' of this model at 'zeppelin', a word that it does not know" in capsys.readouterr().err
    lines = [
        json.dumps({"video": str(clip), "question": text})
        for text in ("what colour is the circle ?", "what zeppelin ?")
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    asked = ("--questions", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "out"))
    assert main(["calibrate", str(demo_bundle), "--recipe", "cpu-int8", *asked]) == 2
    error = capsys.readouterr().err
    assert "q.jsonl, line 2: " in error
    assert "'zeppelin'" in error


# Runs a command where a package is not installed.
WITHOUT = """
import sys
missing, *sys.argv[1:] = sys.argv[1:]
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hook())
from prunevid.cli import main
sys.exit(main())
"""
CALIBRATE = ("calibrate", "x", "--output", "y", "--recipe", "cpu-int8", "--videos", "x")


@pytest.mark.parametrize(
    ("package", "arguments", "remedy"),
    [
        ("onnx_ir", CALIBRATE, "'prunevid[calibrate]'"),
        ("torch", ("export", "--model", "demo", "--output", "y"), "'prunevid[export]'"),
        ("onnx", ("build", "x"), "'prunevid[tensorrt]'"),
        ("numpy", ("run", "x", "--video", "x", "--question", "x"), "prunevid"),
        ("rich", FIT, "prunevid"),
        ("numpy", CALIBRATE, "prunevid"),
    ],
)
def test_a_missing_package_has_the_smallest_remedy(package: str, arguments: tuple[str, ...], remedy: str) -> None:
    command = [sys.executable, "-c", WITHOUT, package, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert result.stderr.endswith(f"error: {package} is missing: pip install {remedy}\n")
