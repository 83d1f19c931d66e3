"""Standard output and standard error, whatever they are: another encoding, closed, full, a pipe that nobody reads.

Characters that a stream cannot take are written as escapes. What cannot be written to standard output is an error of
one sentence, raised once; a reader who went away is a BrokenPipeError. Standard error only accompanies the work: what
it cannot take is lost, and the work goes on.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from prunevid.errors import PruneVidError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["guarded"]

_READER_GONE = (errno.EPIPE, errno.ECONNRESET)


class _Raw(io.FileIO):
    """A file descriptor that is written to until that fails."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._failed:
            return memoryview(data).nbytes
        try:
            # None: a pipe that does not block is full.
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            self._failed = True
            self.fail(error)
            return memoryview(data).nbytes
        return written

    def fail(self, error: OSError) -> None:
        """Nothing: nobody would read of it."""


class _RawOutput(_Raw):
    def fail(self, error: OSError) -> None:
        if error.errno in _READER_GONE:
            raise error
        raise PruneVidError(f"cannot write to standard output: {error.strerror or error}") from error


@contextmanager
def guarded() -> Iterator[bool]:
    """While the block runs, `sys.stdout` and `sys.stderr` are as said above; gives whether there is an output."""
    before = sys.stdout, sys.stderr
    _fill_descriptors()
    try:
        sys.stderr = _guard(before[1], 2, _Raw)
        sys.stdout = _guard(before[0], 1, _RawOutput)
        yield before[0] is not None
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, PruneVidError):  # told of before, or there is nobody left to tell
                stream.flush()
        sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """Open the null device for standard streams that are closed: else a file of ours would take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _guard(stream: TextIO | None, descriptor: int, raw: type[_Raw]) -> TextIO:
    """`stream` over a descriptor that fails as it should; a stream without one, such as a test's, is left alone."""
    if stream is not None:
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            return stream
    settings: dict[str, Any] = {"encoding": getattr(stream, "encoding", None) or "utf-8", "errors": "backslashreplace"}
    if os.name != "posix":
        # A console of Windows is no plain file descriptor.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream if stream is not None else open(os.devnull, "w", encoding="utf-8")
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
    at_once = bool(getattr(stream, "line_buffering", True) or getattr(stream, "write_through", False))
    return io.TextIOWrapper(io.BufferedWriter(raw(descriptor)), line_buffering=at_once, **settings)
