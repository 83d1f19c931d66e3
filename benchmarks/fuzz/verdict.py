"""What counts as answered, as refused in one sentence, and as anything else."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

from benchmarks.fuzz.job import Job, Outcome

__all__ = ["MEMORY_ALLOWED", "answer", "judge", "sentence"]

MEMORY_ALLOWED = 1 << 30
ANSWERED, REFUSED, INTERRUPTED, ELSE = "answered", "refused", "interrupted", "else"
_INTERRUPTED_STATUS = 130
# Written by others than the product: tracebacks, and the logs of the libraries below it.
_NOISE = re.compile(
    r"^Traceback|^Exception ignored|panicked at|@ 0x[0-9a-f]+\]|\[[EWF]:onnxruntime|Warning: |^\w*Error\b|"
    r"^Fatal Python|^terminate called|core dumped|^\s*File \".*\", line \d+",
    re.MULTILINE,
)


def judge(job: Job, outcome: Outcome) -> tuple[str, list[str]]:
    """One of the four words, and for `else` the reasons."""
    reasons = []
    if outcome.killed:
        reasons.append(f"killed for its {outcome.killed}")
    elif outcome.signal is not None:
        reasons.append(f"signal {signal.Signals(outcome.signal).name}")
    if outcome.peak > MEMORY_ALLOWED:
        reasons.append(f"memory: {outcome.peak >> 20} MiB")
    if noise := _NOISE.search(outcome.stderr) or _NOISE.search(outcome.stdout):
        reasons.append(f"noise: {noise.group()}")
    if outcome.status == 0:
        verdict = ANSWERED
        reasons += _left_over(outcome.new_files, (*job.outputs, *job.kept))
        if not noise:
            reasons += _wrong(job, outcome.stdout)
    elif outcome.status == _INTERRUPTED_STATUS:
        verdict = INTERRUPTED
        reasons += [] if job.interrupt_s is not None else ["exit status 130 without an interrupt"]
        reasons += _left_over(outcome.new_files, job.kept)
    elif outcome.status == 2:
        verdict = REFUSED
        reasons += _not_one_sentence(outcome.stderr)
        # Files are written before what could not be printed.
        reasons += _left_over(outcome.new_files, job.kept if job.stdout == "file" else (*job.outputs, *job.kept))
        if outcome.stdout and job.stdout == "file":
            reasons.append("output before the error")
    else:
        verdict = ELSE
        if outcome.status is not None:
            reasons.append(f"exit status {outcome.status}")
    return (ELSE, reasons) if reasons else (verdict, [])


def sentence(stderr: str) -> str:
    """The sentence of a refusal, without what differs from case to case: names, numbers, quotations."""
    last = stderr.rstrip("\n").rpartition("\n")[2]
    text = last.partition("error: ")[2] or last
    text = re.sub(r"/\S+", "PATH", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "Q", text)
    return re.sub(r"[-+]?\d[\d.e+,]*", "N", text)[:160]


def answer(stdout: str, folder: Path, outputs: tuple[str, ...]) -> Any:
    """What was answered, without times: the objects of `--json`, or the checksums of a written bundle."""
    for name in outputs:
        if (folder / name / "manifest.json").is_file():
            return json.loads((folder / name / "manifest.json").read_text())["files"]
    return [{key: value for key, value in json.loads(line).items() if key != "timings"} for line in stdout.splitlines()]


def _not_one_sentence(stderr: str) -> list[str]:
    """Exactly one line is an error, and nothing follows it; argparse puts its usage before it."""
    lines = stderr.rstrip("\n").split("\n")
    errors = [index for index, line in enumerate(lines) if re.match(r"prunevid[a-z -]*: error: .", line)]
    if len(errors) != 1:
        return [f"{len(errors)} lines of error"]
    if errors[0] != len(lines) - 1:
        return ["more than one line of error"]
    return []


def _left_over(new: tuple[str, ...], outputs: tuple[str, ...]) -> list[str]:
    unexpected = [name for name in new if name.partition("/")[0] not in outputs]
    return [f"left behind: {', '.join(unexpected[:3])}"] if unexpected else []


def _wrong(job: Job, stdout: str) -> list[str]:
    """Where it is known how many frames there are to see."""
    if job.frames is None and job.fewer_than is None:
        return []
    found = json.loads(stdout.splitlines()[0])
    shown = found["tokens"]["visual"] // TOKENS_PER_FRAME
    if job.frames is not None and shown != job.frames:
        return [f"{shown} frames shown where there are {job.frames}"]
    if job.fewer_than is not None and shown >= job.fewer_than and not found["skipped_frames"]:
        return [f"{shown} frames shown and none skipped where fewer than {job.fewer_than} are left"]
    return []


TOKENS_PER_FRAME = 64
"""Of the demo model, which answers all cases."""
