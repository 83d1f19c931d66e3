"""Progress that a test listens to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunevid.console.progress import Silent


class Told(Silent):
    """Calls `heard` with what is being done, the units done so far and the units in all, whenever these change."""

    def __init__(self, heard: Callable[[str, float, float], Any]) -> None:
        self._heard = heard
        self._what, self._done, self._total = "", 0.0, 0.0

    def step(self, what: str, total: float = 0, done: float = 0) -> None:
        """Pass the step on."""
        self._what, self._done, self._total = what, done, total
        self._heard(what, done, total)

    def advance(self, units: float = 1) -> None:
        """Pass on how far the step is."""
        self._done += units
        self._heard(self._what, self._done, self._total)
