"""Colours, font and text of the pictures.

Blue is static and amber is dynamic: a pair that red-green blind eyes tell apart, and that differs in lightness, too.
"""

from __future__ import annotations

import unicodedata
from colorsys import hls_to_rgb
from functools import cache

import numpy as np
from PIL import ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (14, 18, 26)
TRACK: Colour = (38, 46, 60)
TEXT: Colour = (240, 244, 250)
MUTED: Colour = (152, 163, 180)
STATIC: Colour = (88, 150, 255)
DYNAMIC: Colour = (255, 180, 60)

# Matplotlib's inferno at ten even steps: lightness grows with the value, whatever colours an eye can tell.
_HEAT = np.array(
    [
        (0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96),
        (207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164),
    ],
    np.float32,
)  # fmt: skip
# The R2 sequence (powers of the inverse plastic number): consecutive tokens come out far apart in both.
_HUE_STEP, _LIGHTNESS_STEP = 0.75488, 0.56984
_TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "×": "x", "…": "..."})


def heat(values: np.ndarray) -> np.ndarray:
    """Colours float32 [..., 3] of values from 0 to 1, from black over red to pale yellow."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, _HEAT[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)


def token_colours(static: np.ndarray) -> np.ndarray:
    """A colour for every token, uint8 [V, 3]: shades of blue for the static ones (bool [V]), of amber for the rest."""
    colours = np.empty((len(static), 3), np.uint8)
    for index, is_static in enumerate(static):
        first_hue, hues = (0.54, 0.13) if is_static else (0.045, 0.085)
        hue = first_hue + hues * (index * _HUE_STEP % 1)
        lightness = 0.36 + 0.44 * (index * _LIGHTNESS_STEP % 1)
        colours[index] = [round(255 * part) for part in hls_to_rgb(hue, lightness, 0.85)]
    return colours


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font, so many pixels high."""
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def drawable(text: str) -> str:
    """The text in the letters that the built-in font has: accents are dropped, other scripts become question marks."""
    spaced = " ".join(text.translate(_TYPOGRAPHY).split())
    return "".join(
        character if character.isascii() else "?"
        for character in unicodedata.normalize("NFKD", spaced)
        if not unicodedata.combining(character) and character.isprintable()
    )


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Text of a font size broken between words, or within those that are too long, into lines of a width in pixels."""
    face, rows = font(size), [""]
    for word in drawable(text).split():
        longer = f"{rows[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            rows[-1] = longer
            continue
        rows += [""] if rows[-1] else []
        for letter in word:
            if rows[-1] and face.getlength(rows[-1] + letter) > width:
                rows.append("")
            rows[-1] += letter
    return rows


def shortened(rows: list[str], lines: int) -> list[str]:
    """The first so many lines; where that leaves some out, the last ends in dots."""
    return rows if len(rows) <= lines else [*rows[: lines - 1], rows[lines - 1][:-3].rstrip() + " ..."]
