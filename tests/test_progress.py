"""Progress in a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from prunevid.console.progress import PlainLines

REPORTS = """
import sys
from prunevid.console.progress import on_stderr
with on_stderr(in_bytes="bytes" in sys.argv) as progress:
    progress.step("writing", 4000000)
    progress.advance(1000000)
    progress.step("writing", 4000000, 2000000)
    progress.tell("kept [1]")
    progress.step("checking", 4000000, 4000000)
"""


def test_in_a_pipe_every_step_is_one_plain_line() -> None:
    done = subprocess.run([sys.executable, "-c", REPORTS], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "writing\nkept [1]\nchecking\n")


def test_a_step_that_begins_anew_is_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainLines()
    progress.step("asking", 2)
    progress.step("asking", 2, 1)
    progress.step("asking", 2)
    assert capsys.readouterr().err == "asking\nasking\n"


@pytest.mark.parametrize(("unit", "shown"), [("bytes", "4.0/4.0 MB"), ("steps", "100%")])
def test_on_a_terminal_it_is_a_bar_that_leaves_only_what_is_to_stay(unit: str, shown: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", REPORTS, unit]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert shown in text
    assert "kept [1]" in text
    assert "checking" in text
