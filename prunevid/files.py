"""Result files: what can be said against a path before the work begins, and writing it whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from prunevid.errors import PruneVidError

__all__ = ["STDOUT", "check_output", "write_output", "write_whole"]

STDOUT = "-"
"""As the name of an output: standard output."""


def check_output(path: Path) -> None:
    """Raise PruneVidError unless a file can be written to ``path``."""
    try:
        exists = path.exists()
    except OSError as error:  # a name too long
        raise PruneVidError(f"cannot write {str(path)[:200]!r}: {error.strerror or error}") from error
    if exists and not path.is_file():
        raise PruneVidError(f"{path} exists and is not a file: give the name of a file to write")
    if not path.parent.is_dir():
        raise PruneVidError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PruneVidError(f"cannot write {path}: no permission to write into {path.parent}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a whole file or none. Raises PruneVidError where that fails; what was there before then stays."""
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".prunevid-", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if partial:
            partial.unlink(missing_ok=True)
        raise PruneVidError(f"cannot write {path}: {error.strerror or error}") from error


def write_output(output: str, text: str) -> None:
    """Write text to a file, whole or not at all, or to standard output where ``output`` is STDOUT."""
    if output == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_whole(Path(output), text.encode())
