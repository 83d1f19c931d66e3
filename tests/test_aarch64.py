"""The runtime on aarch64, which is what a Jetson is: Debian's Python and PyPI's wheels in an emulator (.ci/aarch64).

What is shown is that it runs and decides alike, not how fast.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_aarch64 import decoded, observed

from prunevid.runtime.demo.asking import questions

ROOT = Path(__file__).resolve().parents[1]
MACHINE = ROOT / "build" / "aarch64"

pytestmark = pytest.mark.skipif(
    not (MACHINE / "ready").exists(), reason="no emulated aarch64 machine: .ci/aarch64 unpacks one (Debian)"
)


def emulated(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the emulated machine, this checkout and its dependencies for aarch64 on its path."""
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (MACHINE / "start", ROOT, MACHINE / "site"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        "COLUMNS": "120",
    }
    command = [str(emulated_python()), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert result.returncode == 0, result.stderr
    return result


def emulated_python() -> Path:
    """A program of this machine that is the other one's Python, which starts its own processes by it, too: the kernel
    cannot run a program for aarch64 by itself."""
    python = MACHINE / "root" / "usr" / "bin" / "python3.11"
    emulator = MACHINE / "emulator" / "usr" / "bin" / "qemu-aarch64-static"
    wrapper, start = MACHINE / "python", MACHINE / "start"
    start.mkdir(exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec "{emulator}" -cpu max -L "{MACHINE / "root"}" "{python}" "$@"\n')
    wrapper.chmod(0o755)
    (start / "sitecustomize.py").write_text(f"import sys\n\nsys.executable = {str(wrapper)!r}\n")
    return wrapper


def test_the_demo_answers_three_questions_of_three() -> None:
    # The dialect ort, in half precision, as it ships.
    shown = emulated("-m", "prunevid.cli", "demo", "--threads", "1").stdout
    for entry in questions():
        (row,) = (line for line in shown.splitlines() if entry["question"] in line)
        assert row.count(entry["answer"]) == 3, row


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What aarch64 and this machine make of the demo model in the portable dialect."""
    from prunevid.export import export

    folder = tmp_path_factory.mktemp("portable")
    bundle = export("demo", folder / "bundle", dialect="portable").path
    frames, _ = decoded()
    np.save(folder / "frames.npy", frames)
    script = str(ROOT / "tests" / "on_aarch64.py")
    there = json.loads(emulated(script, str(bundle), str(folder / "frames.npy")).stdout)
    return there, observed(str(bundle), frames)


def test_the_portable_dialect_answers_three_questions_of_three(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    there, _ = both
    assert (there["machine"], there["onnxruntime"]) == ("aarch64", "1.23.2")
    assert there["answers"] == [entry["answer"] for entry in questions()]


def test_the_same_pixels_are_merged_alike(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    # 381 tokens are left of the clip on aarch64 and 378 on x86-64, since FFmpeg converts the same luma and chroma
    # to RGB by other code there. Given the same RGB frames, both merge the same patches.
    there, here = both
    assert there["planes"] == here["planes"]
    assert there["merged_of_given"] == here["merged_of_given"] == here["merged"]
    assert there["groups_of_given"] == here["groups_of_given"]
    assert 0 < there["largest_difference"] <= 3
