"""Where a picture goes: what can be said against a path before any work, and writing it whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prunevid.errors import PruneVidError

if TYPE_CHECKING:
    from prunevid.runtime.show.maps import TokenMaps

_FORMATS = (".png", ".gif", ".html")
_WHICH = "the output must be a .png, .gif or .html file"


def check_output(path: Path, video: Path) -> None:
    """Raise PruneVidError unless a picture can be written to ``path`` without harm to the video that it is of."""
    if path.suffix.lower() not in _FORMATS:
        raise PruneVidError(f"{path}: {_WHICH}")
    try:
        exists = path.exists()
    except OSError as error:  # a name too long
        raise PruneVidError(f"cannot write {str(path)[:200]!r}: {error.strerror or error}") from error
    if exists and not path.is_file():
        raise PruneVidError(f"{path} exists and is not a file: give the name of a file to write")
    if exists and os.path.exists(video) and path.samefile(video):
        raise PruneVidError(f"{path}: the output would overwrite the video: give it another name")
    if not path.parent.is_dir():
        raise PruneVidError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PruneVidError(f"cannot write {path}: no permission to write into {path.parent}")


def save(maps: TokenMaps, path: Path) -> None:
    """Draw the maps in the format that the path's ending names, and write a whole file or none.

    Raises PruneVidError where the format is unknown or the file cannot be written.
    """
    content = _drawn(maps, path)
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


def _drawn(maps: TokenMaps, path: Path) -> bytes:
    """The content of the file."""
    kind = path.suffix.lower()
    file = io.BytesIO()
    if kind == ".png":
        from prunevid.runtime.show.sheet import draw_sheet

        draw_sheet(maps).save(file, "PNG")
    elif kind == ".gif":
        from prunevid.runtime.show.animation import FRAME_MS, LAST_FRAME_MS, draw_animation

        first, *others = draw_animation(maps)
        durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
        first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    elif kind == ".html":
        from prunevid.runtime.show.page import draw_page

        file.write(draw_page(maps).encode())
    else:
        raise PruneVidError(f"{path}: {_WHICH}")
    return file.getvalue()
