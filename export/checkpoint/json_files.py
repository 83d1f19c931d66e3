"""Reading a checkpoint's small files: whole, within bounds, and every failure in one sentence."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.validation import without_doubles

# Larger than any config or index there is; a tokenizer of 300,000 words has some 20 MB.
_LARGEST = 1 << 26


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, or None where there is none.

    Raises PruneVidError where the name is there but is no plain file that can be read: a folder, a link to nothing.
    """
    path = folder / name
    try:
        with reading(path):
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                if path.is_symlink():
                    raise PruneVidError(f"cannot read {path}: it is a link to a file that is not there") from None
                return None
    except ValueError as error:  # null characters in a name
        raise PruneVidError(f"cannot read {path}: {error}") from error
    if not stat.S_ISREG(mode):
        raise PruneVidError(f"cannot read {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no plain file'}")
    return path


def read_text(path: Path) -> str:
    """A text file's content. Raises PruneVidError where it cannot be read, is no UTF-8, or is larger than any is."""
    with reading(path), path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise PruneVidError(f"{path} is larger than {_LARGEST >> 20} MB, which no file of its kind is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PruneVidError(f"{path} is damaged ({error}): download the checkpoint again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file. Raises PruneVidError where it is damaged, or has a key twice."""
    text = read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=without_doubles)
    except (ValueError, RecursionError) as error:
        raise PruneVidError(f"{path} is damaged ({error}): download the checkpoint again") from error
    if not isinstance(data, dict):
        raise PruneVidError(f"{path} is damaged (no JSON object): download the checkpoint again")
    return data
