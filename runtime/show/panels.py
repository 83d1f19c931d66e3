"""One frame of a video in four views: as it is, merged, by attention, and what is kept of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from prunevid.runtime.look.style import heat, token_colours
from prunevid.runtime.show.maps import TokenMaps

VIEWS = ("frame", "merged", "attention", "kept")

_TINT = 0.62
_DIMMED = 0.3
_OUTLINE = 0.35
# Levels per colour step: camera noise in the lowest two bits would be half of a PNG's size.
_STEP = 4


class Panels:
    """Draws the panels of one video, each of `size` (width, height) in pixels."""

    def __init__(self, maps: TokenMaps, size: tuple[int, int]) -> None:
        self._maps, self._size = maps, size
        self._colours = token_colours(maps.of_tokens(maps.static)).astype(np.float32)
        # Which row and column of the patch grid every pixel is in.
        self._columns, self._rows = (np.arange(length) * maps.side // length for length in size)
        # No lines in thumbnails: there would be little else.
        self._line = max(size) // 130

    def draw(self, view: str, frame: int) -> Image.Image:
        """One of `VIEWS` of a frame."""
        picture = Image.fromarray(self._maps.frames[frame]).resize(self._size, Image.Resampling.LANCZOS)
        pixels = np.asarray(picture, np.float32)
        if view == "merged":
            pixels = self._merged(pixels, frame)
        elif view == "attention":
            pixels = self._attention(pixels, frame)
        elif view == "kept":
            pixels = self._kept(pixels, frame)
        return Image.fromarray((pixels.clip(0, 255) // _STEP * _STEP + _STEP // 2).astype(np.uint8))

    def _merged(self, pixels: np.ndarray, frame: int) -> np.ndarray:
        """Each token in a colour of its own over the grey frame."""
        token = self._spread(self._maps.token[frame])
        mixed: np.ndarray = (1 - _TINT) * _grey(pixels) + _TINT * self._colours[token]
        mixed[_borders(token, self._line)] *= _OUTLINE
        return mixed

    def _attention(self, pixels: np.ndarray, frame: int) -> np.ndarray:
        """Heat over the dark grey frame. Its colour grows with the root: a few tokens draw most attention."""
        strength = np.sqrt(self._spread(self._maps.attention[frame]))[..., None]
        opacity = heat_opacity(strength)
        mixed: np.ndarray = (1 - opacity) * 0.8 * _grey(pixels) + opacity * heat(strength[..., 0])
        return mixed

    def _kept(self, pixels: np.ndarray, frame: int) -> np.ndarray:
        """Kept patches as they are within a white line, the rest dark and grey."""
        kept = self._spread(self._maps.kept[frame])
        shown: np.ndarray = np.where(kept[..., None], pixels, _DIMMED * _grey(pixels))
        shown[_borders(kept, self._line)] = 225
        return shown

    def _spread(self, patches: np.ndarray) -> np.ndarray:
        """Values of a frame's patches [N] at every pixel, [height, width]."""
        side = self._maps.side
        return patches.reshape(side, side)[np.ix_(self._rows, self._columns)]


def heat_opacity(strength: np.ndarray) -> np.ndarray:
    """How much heat of a strength from 0 to 1 covers the frame below it."""
    return 0.2 + 0.65 * strength


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Pixels [height, width, 3] without colour (ITU-R BT.601)."""
    return (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, axis=-1)


def _borders(regions: np.ndarray, line: int) -> np.ndarray:
    """Pixels bool [height, width] along the borders between regions of different values."""
    borders = np.zeros(regions.shape, np.bool_)
    if line == 0:
        return borders
    borders[:, line:] |= regions[:, line:] != regions[:, :-line]
    borders[line:] |= regions[line:] != regions[:-line]
    return borders
