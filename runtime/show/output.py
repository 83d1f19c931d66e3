"""Where a picture goes: what can be said against a path before any work, and writing it whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from prunevid.errors import PruneVidError
from prunevid.files import check_output, write_whole

if TYPE_CHECKING:
    from prunevid.runtime.show.maps import TokenMaps

_FORMATS = (".png", ".gif", ".html")
_WHICH = "the output must be a .png, .gif or .html file"


def check_picture(path: Path, video: str, bundle: str) -> None:
    """Raise PruneVidError unless a picture can be written to `path` without harm to what it is made from."""
    if path.suffix.lower() not in _FORMATS:
        raise PruneVidError(f"{path}: {_WHICH}")
    check_output(path, inputs=(("the video", video), ("the bundle", bundle)))


def save(maps: TokenMaps, path: Path) -> None:
    """Draw the maps in the format that the path's ending names, and write a whole file or none.

    Raises PruneVidError where the format is unknown or the file cannot be written.
    """
    write_whole(path, _drawn(maps, path))


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
