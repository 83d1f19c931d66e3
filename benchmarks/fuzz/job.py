"""What one case runs, and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Job", "Outcome"]


@dataclass(frozen=True)
class Job:
    """One run of `prunevid` in a folder of its own, which holds its damaged input.

    arguments: of the command line. mutation: the family of damage, by which results are counted; detail: what exactly.
    outputs: names that may be new in the folder after success; kept: after anything, such as what a calibration has
    finished, which the next one goes on from. heavy: needs torch. fresh: by an interpreter of its own
    instead of a fork. stdout: a `file`, or one that is `full`, or `closed`. interrupt_s: SIGINT comes after so
    many seconds. frames: of an undamaged video, to be shown all; fewer_than: frames of the video before some were cut.
    """

    arguments: tuple[str, ...]
    mutation: str
    detail: str = ""
    outputs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    heavy: bool = False
    fresh: bool = False
    stdout: str = "file"
    encoding: str = "utf-8"
    interrupt_s: float | None = None
    frames: int | None = None
    fewer_than: int | None = None

    def order(self, folder: str) -> dict[str, Any]:
        """The job as plain values for the process that runs it in `folder`."""
        return {**asdict(self), "folder": folder}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit status or signal, whether it was killed for its time or memory, and what it wrote.

    peak: largest resident memory in bytes, of the process or of one that it started.
    """

    status: int | None
    signal: int | None
    killed: str | None
    seconds: float
    peak: int
    stdout: str
    stderr: str
    new_files: tuple[str, ...] = ()
