"""Work that only one process may do at a time: a file that is locked while it lasts, and says who does it."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunevid.errors import PruneVidError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["only_one"]

_LONGEST = 4096


@contextmanager
def only_one(file: Path, work: str) -> Iterator[None]:
    """Hold the lock `file` while the block runs, and remove it behind it; its folder is made where it is missing.

    work: what is done, as in "calibrating x". The system gives the lock up when a process ends, however that
    happens: the file of a dead process holds nobody up. Raises PruneVidError where another process holds it, naming
    it, and OSError where the file cannot be made.
    """
    descriptor = _hold(file, work)
    try:
        yield
    finally:
        # While it is still held: another process may have opened it, and will see that it is gone.
        # Where its folder was replaced, the name is gone or another's.
        if _is_same(descriptor, file):
            file.unlink(missing_ok=True)
        os.close(descriptor)


def _hold(file: Path, work: str) -> int:
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except FileNotFoundError:  # the folder was removed just now
            continue
        try:
            if not _is_locked(descriptor):
                raise PruneVidError(f"{_holder(descriptor)} is {work} already: wait for it, or choose another output")
            if _is_same(descriptor, file):
                me = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, me.encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Lock an open file for this process; False where another one has it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise
    # A file system without locks: go by whether the process that is named lives.
    pid, host = _named(descriptor)
    return pid in (None, os.getpid()) or host != socket.gethostname() or not Path(f"/proc/{pid}").exists()


def _is_same(descriptor: int, file: Path) -> bool:
    """Whether an open file still has its name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _named(descriptor: int) -> tuple[int | None, str]:
    try:
        holder = json.loads(os.pread(descriptor, _LONGEST, 0))
        return int(holder["pid"]), str(holder["host"])
    except (ValueError, KeyError, TypeError):  # written just now, or by nobody
        return None, ""


def _holder(descriptor: int) -> str:
    pid, host = _named(descriptor)
    return f"process {pid} on {host}" if pid is not None else "another process"
