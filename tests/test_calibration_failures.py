"""Calibrating where something fails: a full disk, a killed process; and the command line from videos to an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from videos import write_video

from demo import world
from prunevid.bundle import open_bundle

ROOT = Path(__file__).parents[1]

# One process imports what takes long; each case is a process that it forks, and that calibrates once.
CALIBRATE = """
import os, resource, signal, sys
from pathlib import Path
from prunevid.errors import PruneVidError
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.console.progress import Silent
from prunevid.calibration.questions import find_videos

bundle, videos, folder = map(Path, sys.argv[1:])
QUANTIZING, WRITING, JUDGING = "quantizing llm_pre", "writing llm_post", "asking the quantized bundle"

class Failing(Silent):
    def __init__(self, how):
        self.how, self.current = how, ""

    def fill(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))

    def step(self, what, total=0, done=0):
        self.current = what
        if (self.how, what) in (("full-quantizing", QUANTIZING), ("full-writing", WRITING)):
            self.fill()

    def advance(self, units=1):
        if (self.how, self.current) in (("killed-quantizing", QUANTIZING), ("killed-judging", JUDGING)):
            os.kill(os.getpid(), signal.SIGKILL)

LIMIT = 60_000

def run(how, failing):
    try:
        settings = Settings("cpu-int8", force=True, max_new_tokens=1, threads=1)
        calibrate(bundle, find_videos(videos), folder / how / "out", settings, Failing(how) if failing else None)
    except PruneVidError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except BaseException as error:
        print(f"Traceback: {error!r}", file=sys.stderr, flush=True)
        os._exit(3)
    os._exit(0)

def in_a_process(how, failing):
    child = os.fork()
    if not child:
        run(how, failing)
    _, status = os.waitpid(child, 0)
    left = " ".join(sorted(os.listdir(folder / how)))
    print(how, failing, os.waitstatus_to_exitcode(status), left, sep="|", flush=True)

for how in ("whole", "full-quantizing", "full-writing", "killed-quantizing", "killed-judging"):
    (folder / how).mkdir()
    if how != "whole":
        in_a_process(how, True)
    in_a_process(how, False)
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few encoded videos of the demo's world."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(4):
        write_video(folder / f"{index}.mp4", world.make_video("validation", 10_000 + index).frames, fps=4)
    return folder


@pytest.fixture(scope="module")
def failed(
    tiny_bundle: Callable[[str, str], Path], videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[tuple[str, bool], tuple[int, str]], str]:
    """Where calibrations that failed were gone on with; exit status and what lay there, by case and run; stderr."""
    folder = tmp_path_factory.mktemp("failed")
    command = [sys.executable, "-c", CALIBRATE, str(tiny_bundle("qwen2", "ort")), str(videos), str(folder)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=one_thread, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        how, failing, code, left = line.split("|")
        found[how, failing == "True"] = (int(code), left)
    return folder, found, done.stderr


CASES = ["full-quantizing", "full-writing", "killed-quantizing", "killed-judging"]


@pytest.mark.parametrize("how", CASES)
def test_nothing_is_half_written(failed: tuple[Path, dict[tuple[str, bool], tuple[int, str]], str], how: str) -> None:
    _, found, _ = failed
    code, left = found[how, True]
    assert code == (2 if how.startswith("full") else -signal.SIGKILL)
    assert left == ".out.calibration"


def test_a_full_disk_is_said_in_one_sentence(
    failed: tuple[Path, dict[tuple[str, bool], tuple[int, str]], str],
) -> None:
    folder, _, said = failed
    messages = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert len(messages) == 2
    for message, how in zip(messages, ("full-quantizing", "full-writing"), strict=True):
        assert str(folder / how / ".out.calibration") in message
        assert "File too large; start again to go on" in message
    assert "Traceback" not in said


@pytest.mark.parametrize("how", CASES)
def test_going_on_gives_the_same_bundle(
    failed: tuple[Path, dict[tuple[str, bool], tuple[int, str]], str], how: str
) -> None:
    folder, found, _ = failed
    assert found[how, False] == (0, "out")
    resumed, whole = (folder / name / "out" for name in (how, "whole"))
    assert (resumed / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert open_bundle(resumed).manifest.files  # the contents are what the manifest says


def test_from_a_folder_of_videos_to_an_answer(
    tiny_bundle: Callable[[str, str], Path], videos: Path, tmp_path: Path
) -> None:
    source = str(tiny_bundle("qwen2", "ort"))

    def prunevid(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prunevid.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    output = tmp_path / "out"
    options = ("--recipe", "cpu-int8", "--kv-cache", "int8", "--videos", str(videos), "--output", str(output))
    result = prunevid("calibrate", source, *options, "--force", "--max-new-tokens", "2")
    assert result.returncode == 0, result.stderr
    assert "KV cache: int8" in result.stdout
    assert "held-out questions: 6" in result.stdout
    assert "known answer" not in result.stdout
    asked = ("--video", str(videos / "0.mp4"), "--question", "what is it?", "--max-new-tokens", "3", "--json")
    result = prunevid("run", str(output), *asked)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kv_bytes"] > 0
