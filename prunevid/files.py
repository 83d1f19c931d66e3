"""Files: errors of reading; what speaks against an output before the work begins, and writing it whole or not."""

from __future__ import annotations

import codecs
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunevid.errors import PruneVidError

__all__ = ["STDOUT", "check_output", "copy_file", "read_blocks", "reading", "write_output", "write_whole"]

STDOUT = "-"
"""As the name of an output: standard output."""

_JSON_ESCAPES = "prunevid-json"
_LONGEST_SHOWN = 500
_BLOCK = 1 << 24


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every OSError of what reads `path` into a PruneVidError that says which file could not be read and why."""
    try:
        yield
    except OSError as error:
        name = os.fspath(path) if error.filename is None else os.fsdecode(error.filename)
        raise PruneVidError(f"cannot read {name[:_LONGEST_SHOWN]}: {error.strerror or error}") from error


def read_blocks(path: Path, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """A file's `size` bytes from `start` on, by default all, piece by piece.

    Raises PruneVidError where it cannot be read or ends before that.
    """
    left = size
    with reading(path), path.open("rb", buffering=0) as file:
        file.seek(start)
        while left is None or left:
            block = file.read(_BLOCK if left is None else min(left, _BLOCK))
            if not block:
                break
            left = None if left is None else left - len(block)
            yield block
    if left:
        raise PruneVidError(f"{path} ends too early: it was changed while it was read")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content. Raises PruneVidError where `source` cannot be read, OSError where `target` fails."""
    with target.open("wb") as output:
        for block in read_blocks(source):
            output.write(block)


def check_output(
    path: Path, what: str = "", *, inputs: Iterable[tuple[str, str | os.PathLike[str] | None]] = ()
) -> None:
    """Raise PruneVidError unless a file can be written to `path` without harm to what is read.

    what: it is, with a space behind it. inputs: what is read, each by a name such as "the video" and its path (None:
    there is none); the output may not replace one of them, nor lie within a folder of them.
    """
    for name, source in inputs:
        if source is not None:
            _check_apart(path, name, source)
    path = _followed(path)
    try:
        exists = path.exists()
    except OSError as error:  # a name too long
        raise PruneVidError(f"cannot write {what}{str(path)[:200]!r}: {error.strerror or error}") from error
    if exists and not path.is_file():
        raise PruneVidError(f"{path} exists and is not a file: give the name of a file to write")
    if not path.parent.is_dir():
        raise PruneVidError(f"cannot write {what}{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PruneVidError(f"cannot write {what}{path}: no permission to write into {path.parent}")


def _check_apart(output: Path, name: str, source: str | os.PathLike[str]) -> None:
    try:
        at = os.stat(source)
    except (OSError, ValueError):  # whoever reads it says so
        return
    # By what the names lead to: links and hard links are other names of the same.
    place = Path(os.path.realpath(output))
    for folder in (place, *place.parents):
        try:
            same = os.path.samestat(os.stat(folder), at)
        except OSError:
            continue
        if same and folder == place:
            raise PruneVidError(f"{output}: the output would overwrite {name}: give it another name")
        if same:
            raise PruneVidError(f"{output}: the output would lie within {name}, {source}: give a place outside of it")


def write_whole(path: Path, content: bytes) -> None:
    """Write a whole file or none; of a link, the file that it leads to.

    Raises PruneVidError where that fails; what was there before then stays.
    """
    path = _followed(path)
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".prunevid-", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException as error:
        if partial:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise PruneVidError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def _followed(path: Path) -> Path:
    """Where a link leads: what is written to a link goes there, as everywhere."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_output(output: str, text: str) -> None:
    """Write text to a file in UTF-8, whole or not at all, or to standard output where `output` is STDOUT.

    What cannot be encoded is written as the escapes of JSON, so that it stays JSON, or of HTML where it is a page.
    """
    escapes = "xmlcharrefreplace" if text.startswith("<") else _JSON_ESCAPES
    if output == STDOUT:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, escapes).decode(encoding))
        sys.stdout.flush()
    else:
        write_whole(Path(output), text.encode("utf-8", escapes))


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""An error handler of codecs: `\uXXXX`, two of them for what is beyond U+FFFF."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)), error.end


codecs.register_error(_JSON_ESCAPES, _escape)
