"""What a device shows of itself while it works, and how to follow a monitor that prints it."""

from __future__ import annotations

import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Follower", "Reading", "Sensors"]

_FIRST_LINE_S = 5.0


@dataclass(frozen=True)
class Reading:
    """Sensors at one moment; None is what there is no sensor for.

    memory_bytes: in use, by whomever. gpu_load: share of the time that the GPU is busy, 0 to 1. power_w: of the whole
    module or card; rails_w: of its parts, by name.
    """

    memory_bytes: int | None
    gpu_load: float | None
    power_w: float | None
    rails_w: dict[str, float] = field(default_factory=dict)


class Sensors(Protocol):
    """A device's sensors. memory_total_bytes: all of its memory, None if unknown. notes: what is missing, in words."""

    memory_total_bytes: int | None
    notes: list[str]

    def read(self) -> Reading:
        """All sensors now."""
        ...

    def close(self) -> None:
        """End what was started for reading them."""
        ...


class Follower:
    """A monitor in a process of its own that prints a line per reading; `latest` is the last one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.latest = ""
        self._process = process
        self._has_line = threading.Event()
        threading.Thread(target=self._follow, name="prunevid-follower", daemon=True).start()
        self._has_line.wait(_FIRST_LINE_S)

    @classmethod
    def start(cls, program: str, *options: str) -> Follower | None:
        """Start a program and wait for its first line; None where it is not there or cannot be started."""
        path = shutil.which(program)
        if path is None:
            return None
        try:
            process = subprocess.Popen([path, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return None
        return cls(process)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.latest = line
            self._has_line.set()
        # It ended: nobody need wait for its first line any more.
        self._has_line.set()
