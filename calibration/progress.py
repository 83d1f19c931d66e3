"""Telling how far a long run is: a bar on a terminal, a plain line per step in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a long run reports to."""

    def step(self, what: str, total: float) -> None:
        """A step of `total` units begins."""
        ...

    def advance(self, units: float = 1) -> None:
        """So many more units of the step are done."""
        ...

    def tell(self, line: str) -> None:
        """Say something that is to stay."""
        ...


class Silent:
    """Reports nothing."""

    def step(self, what: str, total: float) -> None:
        """A step of `total` units begins."""

    def advance(self, units: float = 1) -> None:
        """So many more units of the step are done."""

    def tell(self, line: str) -> None:
        """Say something that is to stay."""


class PlainLines:
    """A line on stderr for every step that begins."""

    def step(self, what: str, total: float) -> None:
        """A step of `total` units begins."""
        self.tell(what)

    def advance(self, units: float = 1) -> None:
        """So many more units of the step are done."""

    def tell(self, line: str) -> None:
        """Say something that is to stay."""
        print(line, file=sys.stderr, flush=True)


@contextmanager
def on_stderr() -> Iterator[Progress]:
    """A bar where stderr is a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        class Bar:
            def step(self, what: str, total: float) -> None:
                bars.reset(task, description=what, total=total or None)

            def advance(self, units: float = 1) -> None:
                bars.advance(task, units)

            def tell(self, line: str) -> None:
                bars.console.print(line, markup=False)

        yield Bar()
