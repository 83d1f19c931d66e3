"""A still picture of a video's maps: a few frames in every view, then all frames small."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from prunevid.runtime.look.pen import Pen
from prunevid.runtime.look.style import MUTED, TEXT
from prunevid.runtime.show.header import HEADER_HEIGHT, MARGIN, WIDTH, caption, draw_header, draw_key
from prunevid.runtime.show.maps import TokenMaps
from prunevid.runtime.show.panels import VIEWS, Panels
from prunevid.runtime.video.sources import sample_indices

# Pixels of the picture for every unit of the layout: sharp on dense displays, and where a page shrinks it.
_SCALE = 2
_INNER = WIDTH - 2 * MARGIN
# Side of a square panel, about; others have its area. Where there are few frames, no side is longer than _LONGEST.
_PANEL, _LONGEST = 150, 220
_GAP, _CAPTION, _SCENE_LINE, _FRAME_LABEL = 6, 30, 26, 18
_SMALL_COLUMNS = 16
_FOOTER = 40


def draw_sheet(maps: TokenMaps) -> Image.Image:
    """The picture, RGB, 1800 pixels wide: some frames in all views; if those are not all, all of them below."""
    height, width = maps.frames.shape[1:3]
    columns = max(1, round(_INNER / (_PANEL * math.sqrt(width / height))))
    bands = [_views(maps, sample_indices(len(maps.frames), columns))]
    if columns < len(maps.frames):
        bands.append(_film_strip(maps))
    total = HEADER_HEIGHT + sum(band.height for band in bands) / _SCALE + _FOOTER
    pen = Pen.on_empty(WIDTH, total, _SCALE)
    draw_header(pen, maps)
    y = float(HEADER_HEIGHT)
    for band in bands:
        pen.paste(band, 0, y)
        y += band.height / _SCALE
    pen.text(WIDTH - MARGIN, total - 14, maps.title, 12, MUTED, from_right=True)
    return pen.image


def _views(maps: TokenMaps, frames: np.ndarray) -> Image.Image:
    """The given frames side by side, a row for every view."""
    width, height = _panel_size(maps, len(frames))
    lefts = [MARGIN + column * (width + _GAP) for column in range(len(frames))]
    pen = Pen.on_empty(WIDTH, _SCENE_LINE + _FRAME_LABEL + len(VIEWS) * (_CAPTION + height), _SCALE)
    _draw_scenes(pen, maps.segment[frames], lefts, width, 0)
    for frame, left in zip(frames, lefts, strict=True):
        pen.text(left, _SCENE_LINE + 12, f"frame {frame + 1}", 12, MUTED)
    panels = Panels(maps, (round(width * _SCALE), round(height * _SCALE)))
    y = float(_SCENE_LINE + _FRAME_LABEL)
    for view in VIEWS:
        name, note = caption(maps, view)
        pen.text(pen.text(MARGIN, y + 20, name, 15) + 10, y + 20, note, 13, MUTED)
        draw_key(pen, view, WIDTH - MARGIN, y + 20)
        y += _CAPTION
        for frame, left in zip(frames, lefts, strict=True):
            pen.paste(panels.draw(view, int(frame)), left, y)
        y += height
    return pen.image


def _film_strip(maps: TokenMaps) -> Image.Image:
    """What is kept of every frame, as many lines as it takes."""
    width, height = _panel_size(maps, _SMALL_COLUMNS)
    total = len(maps.frames)
    lines = math.ceil(total / _SMALL_COLUMNS)
    pen = Pen.on_empty(WIDTH, _CAPTION + 6 + lines * (_SCENE_LINE + height), _SCALE)
    pen.text(MARGIN, 24, f"Kept of all {total} frames", 15)
    panels = Panels(maps, (round(width * _SCALE), round(height * _SCALE)))
    for line in range(lines):
        y = _CAPTION + line * (_SCENE_LINE + height)
        frames = range(line * _SMALL_COLUMNS, min((line + 1) * _SMALL_COLUMNS, total))
        lefts = [MARGIN + column * (width + _GAP) for column in range(len(frames))]
        _draw_scenes(pen, maps.segment[frames.start : frames.stop], lefts, width, y)
        for frame, left in zip(frames, lefts, strict=True):
            pen.paste(panels.draw("kept", frame), left, y + _SCENE_LINE)
    return pen.image


def _panel_size(maps: TokenMaps, columns: int) -> tuple[float, float]:
    """Width and height, in layout units, of the panels of which so many fill a line."""
    aspect = maps.frames.shape[2] / maps.frames.shape[1]
    width = min((_INNER - _GAP * (columns - 1)) / columns, _LONGEST, _LONGEST * aspect)
    return width, width / aspect


def _draw_scenes(pen: Pen, segment: np.ndarray, lefts: list[float], width: float, y: float) -> None:
    """A line over each stretch of columns that belong to one segment, with its number."""
    starts = np.flatnonzero(np.diff(segment, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(segment)], strict=True):
        pen.text(lefts[start], y + 13, f"Scene {segment[start] + 1}", 12, TEXT)
        pen.box(lefts[start], y + 18, lefts[stop - 1] + width - lefts[start], 2, MUTED)
