"""A moving picture of a video's maps: one frame after the other, in all views side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from prunevid.runtime.look.pen import Pen
from prunevid.runtime.look.style import BACKGROUND, DYNAMIC, MUTED, STATIC, TEXT, TRACK
from prunevid.runtime.show.header import HEADER_HEIGHT, MARGIN, WIDTH, caption, draw_header
from prunevid.runtime.show.maps import TokenMaps
from prunevid.runtime.show.panels import VIEWS, Panels

FRAME_MS, LAST_FRAME_MS = 600, 2000

_GAP, _CAPTION, _TIMELINE = 8, 48, 52
# Colours closer than this count as one when the palette is chosen.
_PALETTE_STEP = 8
_FIXED = (BACKGROUND, TRACK, TEXT, MUTED, STATIC, DYNAMIC)


def draw_animation(maps: TokenMaps) -> list[Image.Image]:
    """One picture of 900 pixels width for every frame, mode P with one palette for all."""
    pictures = list(_pictures(maps))
    palette = _palette(pictures)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]


def _pictures(maps: TokenMaps) -> Iterator[Image.Image]:
    total, height, width = maps.frames.shape[:3]
    panel = (WIDTH - 2 * MARGIN - _GAP * (len(VIEWS) - 1)) // len(VIEWS)
    size = (panel, round(panel * height / width))
    panels = Panels(maps, size)
    top = HEADER_HEIGHT + _CAPTION
    lefts = [MARGIN + column * (panel + _GAP) for column in range(len(VIEWS))]
    still = Pen.on_empty(WIDTH, top + size[1] + _TIMELINE + MARGIN, 1)
    draw_header(still, maps)
    for view, left in zip(VIEWS, lefts, strict=True):
        name, note = caption(maps, view)
        still.text(left, HEADER_HEIGHT + 16, name, 15)
        still.text(left, HEADER_HEIGHT + 36, note, 13, MUTED)
    for frame in range(total):
        pen = Pen(still.image.copy(), 1)
        for view, left in zip(VIEWS, lefts, strict=True):
            pen.paste(panels.draw(view, frame), left, top)
        _draw_timeline(pen, maps, frame, top + size[1] + 18)
        yield pen.image


def _draw_timeline(pen: Pen, maps: TokenMaps, frame: int, y: float) -> None:
    """A tick for every frame, wider apart between scenes, the present one bright."""
    unit = (WIDTH - 2 * MARGIN) / len(maps.segment)
    for index, segment in enumerate(maps.segment):
        begins = index > 0 and segment != maps.segment[index - 1]
        left = MARGIN + index * unit + (4 if begins else 0)
        pen.box(left, y, unit - 2 - (4 if begins else 0), 6, TEXT if index == frame else TRACK)
    scenes = int(maps.segment[-1]) + 1
    end = pen.text(MARGIN, y + 28, f"frame {frame + 1} of {len(maps.segment)}", 13)
    pen.text(end + 14, y + 28, maps.title, 13, MUTED)
    pen.text(WIDTH - MARGIN, y + 28, f"scene {maps.segment[frame] + 1} of {scenes}", 13, MUTED, from_right=True)


def _palette(pictures: list[Image.Image]) -> Image.Image:
    """256 colours for all pictures, the layout's own among them.

    The rest is found by median cut over the colours that occur, each as often as the fourth root of its pixels: small
    things are what moves, and would drown in the background.
    """
    occurs = np.zeros((256 // _PALETTE_STEP,) * 3, np.int64)
    for picture in pictures:
        red, green, blue = (np.asarray(channel) // _PALETTE_STEP for channel in picture.split())
        np.add.at(occurs, (red, green, blue), 1)
    colours = np.argwhere(occurs) * _PALETTE_STEP + _PALETTE_STEP // 2
    weighed = colours.repeat(np.ceil(occurs[occurs > 0] ** 0.25).astype(np.int64), axis=0)
    found = Image.fromarray(weighed[None].astype(np.uint8)).quantize(256 - len(_FIXED)).getpalette()
    assert found is not None
    palette = Image.new("P", (1, 1))
    palette.putpalette([*found[: 3 * (256 - len(_FIXED))], *(part for colour in _FIXED for part in colour)])
    return palette
