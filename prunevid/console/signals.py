"""Signals that end a command: Ctrl-C, `kill`, a terminal that was closed. Its work is undone, and nothing printed."""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

__all__ = ["Stopped", "Stopping"]

_ENDINGS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
# Of a callback in which an exception goes nowhere, some time later.
_AGAIN_S = 0.01


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end; raised wherever it was at work."""


class Stopping:
    """While its block runs, signals that end a process raise Stopped in it; the block then ends without an error.

    Signals that whoever started the process had it ignore (`nohup`, background jobs of scripts) stay ignored, and
    threads but the main one cannot be interrupted.

    Attributes:
        number: Of the signal that was received; None while there was none.
        word: What is to be said about it.
    """

    def __init__(self, last: bool) -> None:
        """Nothing is caught before the block is entered.

        Args:
            last: The process ends with the block. Ctrl-C is ignored from there on: the traceback of a process that is
                ending anyway helps nobody.
        """
        self.number: int | None = None
        self.word = ""
        self._last = last
        self._over = False
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    @property
    def status(self) -> int:
        """The exit status that shells know for the signal."""
        return 128 + (self.number or 0)

    def __enter__(self) -> Stopping:
        for name in _ENDINGS:
            number = getattr(signal, name, None)
            if number is None or (before := signal.getsignal(number)) is signal.SIG_IGN:
                continue
            try:
                signal.signal(number, self._receive)
            except ValueError:  # not the main thread
                break
            self._before[number] = before
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._over = True
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._last and number == signal.SIGINT else before)
        sys.unraisablehook = self._hook
        # A signal within an import may come out as another error.
        return error is not None and self.number is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Raise Stopped; while one is being dealt with, another signal changes nothing."""
        if self._over or _is_unwinding():
            return
        self.number, self.word = number, _ENDINGS[signal.Signals(number).name]
        raise Stopped(self.word)

    def _unraisable(self, found: Any) -> None:
        """Where an exception goes nowhere, as in a finalizer, a signal is raised again a moment later."""
        if isinstance(found.exc_value, Stopped) and self.number is not None:
            import threading

            # To the main thread: a system call that it waits in ends only for a signal of its own.
            again = (threading.main_thread().ident, self.number)
            threading.Timer(_AGAIN_S, signal.pthread_kill, again).start()
        else:
            self._hook(found)


def _is_unwinding() -> bool:
    """Whether the interrupted code is cleaning up after an earlier signal."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Stopped):
            return True
        error = error.__context__
    return False
