"""Kernels that were compiled for this GPU, kept in the user's home from one start to the next.

They are code, and come from nowhere else: never from a bundle. Whatever is wrong with a file or with the folder costs
another compilation and nothing more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prunevid.errors import PruneVidError
from prunevid.files import write_whole

_LOG = logging.getLogger("prunevid")
_MAGIC = b"prunevid kernels 1\n"
_DIGEST = 32
# A file that is larger is neither written nor read: kernels for a hundred thousand shapes are no help.
_LARGEST = 1 << 28


class KernelStore:
    """Files of compiled kernels below `.cache/prunevid`, in the folder `name`.

    Several processes may use it at once: a file is there whole or not at all, and the last one to write it counts.
    """

    def __init__(self, name: str) -> None:
        self._told = False
        self._folder: Path | None = None
        with suppress(RuntimeError):  # a user without a home
            self._folder = Path.home() / ".cache" / "prunevid" / name

    def read(self, key: Mapping[str, str]) -> bytes | None:
        """What was kept under `key`; None where there is nothing, and what cannot be used is thrown away."""
        path, content = self._path(key), b""
        if path is None:
            return None
        try:
            found = path.lstat()
        except OSError:
            return None
        if stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST:
            with suppress(OSError):
                content = path.read_bytes()
        start = len(_MAGIC) + _DIGEST
        if content[:start] == _MAGIC + _digest(key, content[start:]):
            return content[start:]
        self.discard(key)
        return None

    def write(self, key: Mapping[str, str], content: bytes) -> None:
        """Keep `content` under `key`. Where that fails, a note says so, once."""
        path = self._path(key)
        if path is None:
            self.tell("this user has no home folder")
        elif len(content) > _LARGEST - len(_MAGIC) - _DIGEST:
            self.tell(f"those of one engine are {len(content) / 1e6:,.0f} MB")
        else:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(path, _MAGIC + _digest(key, content) + content)
            except (OSError, PruneVidError) as error:
                self.tell(str(error))

    def discard(self, key: Mapping[str, str]) -> None:
        """Throw away what was kept under `key`."""
        path = self._path(key)
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def tell(self, reason: str) -> None:
        """Note why kernels are not kept, the first time."""
        if not self._told:
            self._told = True
            _LOG.warning("note: compiled kernels are not kept for the next start: %s", reason)

    def _path(self, key: Mapping[str, str]) -> Path | None:
        named = hashlib.sha256(_text(key)).hexdigest()[:32]
        return self._folder and self._folder / f"{named}.kernels"


def _text(key: Mapping[str, str]) -> bytes:
    return json.dumps(dict(key), sort_keys=True).encode()


def _digest(key: Mapping[str, str], content: bytes) -> bytes:
    hashed = hashlib.sha256(_text(key))
    hashed.update(content)
    return hashed.digest()
