"""Renaming folders so that nobody ever finds nothing, and nothing is lost that was not meant."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange", "rename_new"]

_HERE = -100  # AT_FDCWD
_NOREPLACE, _EXCHANGE = 1, 2
# A C library, a kernel or a file system that does not have it.
_LACKING = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def rename_new(source: Path, target: Path) -> None:
    """Give `source` the name `target`. Raises FileExistsError where there is something of that name."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders, in one step on Linux; elsewhere `other` is missing for a moment."""
    if _renameat2(one, other, _EXCHANGE):
        return
    aside = one.with_name(f"{one.name}.old")
    other.rename(aside)
    try:
        one.rename(other)
    except BaseException:
        aside.rename(other)
        raise
    aside.rename(one)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2(2); False where it is not to be had. Raises OSError where it fails."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(_HERE, os.fsencode(source), _HERE, os.fsencode(target), ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(target))
