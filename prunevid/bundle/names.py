"""What the files of a bundle may be called: names that every file system takes for the same file, inside the folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

from prunevid.bundle.manifest import MANIFEST
from prunevid.validation import shown

_LONGEST = 200
# No drive, no separator but the slash, nothing hidden, and one spelling for one name.
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class InvalidNameError(ValueError):
    """A name that no file of a bundle can have; the text goes on after the bundle's."""


def check_names(names: Iterable[str]) -> None:
    """Raise InvalidNameError for a name that no file of a bundle can have, and for two that can mean one file."""
    seen: set[str] = set()
    for name in names:
        paths = PurePosixPath(name), PureWindowsPath(name)
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            raise InvalidNameError(f"names the file {shown(name)}, which lies outside it")
        if len(name) > _LONGEST or not all(_PART.fullmatch(part) for part in name.split("/")):
            raise InvalidNameError(f"names the file {shown(name)}, which no file of a bundle is called")
        # Some file systems keep no upper and lower case apart.
        if name.lower() in seen or name.lower() == MANIFEST:
            raise InvalidNameError(f"names the file {shown(name)} twice")
        seen.add(name.lower())
