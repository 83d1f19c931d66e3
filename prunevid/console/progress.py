"""Telling how far a long run is: a bar on a terminal, a plain line per step in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["PlainLines", "Progress", "Silent", "on_stderr"]


class Progress(Protocol):
    """What a long run reports to."""

    def step(self, what: str, total: float = 0, done: float = 0) -> None:
        """A step begins, or goes on.

        Args:
            what: What is being done.
            total: Units that there are to do; 0 while that is unknown.
            done: Units that are done already; 0 where the count begins anew.
        """
        ...

    def advance(self, units: float = 1) -> None:
        """So many more units are done."""
        ...

    def tell(self, line: str) -> None:
        """Say something that is to stay."""
        ...


class Silent:
    """Reports nothing."""

    def step(self, what: str, total: float = 0, done: float = 0) -> None:
        """Nothing is said of it."""

    def advance(self, units: float = 1) -> None:
        """Nothing is said of it."""

    def tell(self, line: str) -> None:
        """Nothing is said."""


class PlainLines:
    """A line on stderr for every step that begins."""

    def __init__(self) -> None:
        self._step = ""

    def step(self, what: str, total: float = 0, done: float = 0) -> None:
        """A line, unless the step that was said last goes on."""
        if what != self._step or not done:
            self._step = what
            self.tell(what)

    def advance(self, units: float = 1) -> None:
        """Nothing is said of it."""

    def tell(self, line: str) -> None:
        """A line."""
        print(line, file=sys.stderr, flush=True)


@contextmanager
def on_stderr(*, in_bytes: bool = False) -> Iterator[Progress]:
    """A bar where stderr is a terminal, else plain lines. in_bytes: units are bytes, which the bar shows."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    count = DownloadColumn() if in_bytes else TaskProgressColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        class Bar:
            def step(self, what: str, total: float = 0, done: float = 0) -> None:
                if done:
                    bars.update(task, description=what, total=total or None, completed=done)
                else:
                    bars.reset(task, description=what, total=total or None)

            def advance(self, units: float = 1) -> None:
                bars.advance(task, units)

            def tell(self, line: str) -> None:
                bars.console.print(line, markup=False)

        yield Bar()
