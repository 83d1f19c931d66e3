"""What stands above every picture: the question, the answer, and how the tokens became fewer; and captions of views."""

from __future__ import annotations

import numpy as np
from PIL import Image

from prunevid.runtime.look.pen import Pen
from prunevid.runtime.look.style import DYNAMIC, MUTED, STATIC, TEXT, TRACK, heat, shortened, wrapped
from prunevid.runtime.show.maps import TokenMaps

WIDTH, MARGIN = 900, 24
HEADER_HEIGHT = 200

_TEXT_WIDTH = 440
_BARS_LEFT = 500
_SMALL = 13
# Font sizes of question and answer, with the height of a line and how many there may be: the first that fits all.
_SIZES = ((23, 28, 2), (17, 21, 3))
_HEAT_BAR = (90, 9)


def draw_header(pen: Pen, maps: TokenMaps) -> None:
    """Question and answer to the left, the token counts as bars to the right; HEADER_HEIGHT high."""
    y = float(MARGIN + 10)
    for label, text, colour in (("Question", maps.question, TEXT), ("Answer", maps.answer or "(no text)", DYNAMIC)):
        pen.text(MARGIN, y, label, _SMALL, MUTED)
        size, height, rows = _fitted(text, pen.scale)
        for row in rows:
            y += height
            pen.text(MARGIN, y, row, size, colour)
        y += 30
    _draw_counts(pen, maps)


def _fitted(text: str, scale: int) -> tuple[int, int, list[str]]:
    """Font size, height of a line, and the lines of a question or an answer."""
    for size, height, lines in _SIZES:
        rows = wrapped(text, size * scale, _TEXT_WIDTH * scale)
        if len(rows) <= lines:
            return size, height, rows
    return size, height, shortened(rows, lines)


def _draw_counts(pen: Pen, maps: TokenMaps) -> None:
    """A bar for the tokens of the video, one after merging, one for what is kept; static and dynamic in each."""
    frames, patches = maps.token.shape
    names = (
        f"visual tokens: {frames} frames of {maps.side} x {maps.side} patches",
        "after merging over time and in space",
        f"kept for the answer ({maps.retained:.1%})",
    )
    width = WIDTH - MARGIN - _BARS_LEFT
    for index, (name, (static, dynamic)) in enumerate(zip(names, maps.counts, strict=True)):
        y = MARGIN + 13 + 43 * index
        end = pen.text(_BARS_LEFT, y, str(static + dynamic), 20)
        pen.text(end + 8, y, name, _SMALL, MUTED)
        pen.box(_BARS_LEFT, y + 8, width, 9, TRACK)
        unit = width / maps.token.size
        pen.box(_BARS_LEFT, y + 8, static * unit, 9, STATIC)
        pen.box(_BARS_LEFT + static * unit, y + 8, dynamic * unit, 9, DYNAMIC)
    x = float(_BARS_LEFT)
    y = MARGIN + 13 + 43 * 3
    for colour, name in ((STATIC, "static: still in its scene"), (DYNAMIC, "dynamic: changes over time")):
        x = _swatch(pen, x, y, colour, name) + 18


def caption(maps: TokenMaps, view: str) -> tuple[str, str]:
    """The name of a view, and what to know about it."""
    return {
        "frame": ("Frame", "as the model saw it"),
        "merged": ("Merged", "one colour is one token"),
        "attention": ("Attention", f"of the question at layer {maps.layer}"),
        "kept": ("Kept", "bright: used for the answer"),
    }[view]


def draw_key(pen: Pen, view: str, right: float, baseline: float) -> None:
    """What the colours of a view mean, in a line that ends at `right`."""
    if view == "merged":
        left = pen.text(right, baseline, "dynamic: one frame's own", _SMALL, MUTED, from_right=True)
        pen.box(left - 17, baseline - 10, 11, 11, DYNAMIC, 2)
        left = pen.text(left - 35, baseline, "static: shared by the whole scene", _SMALL, MUTED, from_right=True)
        pen.box(left - 17, baseline - 10, 11, 11, STATIC, 2)
    elif view == "attention":
        left = pen.text(right, baseline, "most", _SMALL, MUTED, from_right=True) - 8 - _HEAT_BAR[0]
        width, height = (side * pen.scale for side in _HEAT_BAR)
        ramp = heat(np.linspace(0, 1, width))[None].repeat(height, axis=0)
        pen.paste(Image.fromarray(ramp.astype(np.uint8)), left, baseline - 9)
        pen.text(left - 8, baseline, "none", _SMALL, MUTED, from_right=True)


def _swatch(pen: Pen, x: float, baseline: float, colour: tuple[int, int, int], name: str) -> float:
    pen.box(x, baseline - 10, 11, 11, colour, 2)
    return pen.text(x + 17, baseline, name, _SMALL, MUTED)
