"""Which way up a picture is: the eight ways of turning and mirroring that files can ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunevid.errors import PruneVidError

__all__ = ["UPRIGHT", "Orientation", "orientation_of_exif", "orientation_of_matrix"]

# As far as a display matrix may be from a quarter turn, as for ffmpeg: one degree.
_SKEW = math.tan(math.radians(1))


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes the one to be seen: first transpose, then mirror (left to right) and flip."""

    transpose: bool = False
    mirror: bool = False
    flip: bool = False

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of an image, [H, W, 3], as it is to be seen."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]


UPRIGHT = Orientation()


def orientation_of_matrix(matrix: Sequence[int], where: str) -> Orientation:
    """What a display matrix says.

    It has nine numbers a, b, u, c, d, v, x, y, w, of which a pixel (p, q) is shown at (a p + c q, b p + d q), q
    counting downwards (ISO/IEC 14496-12, 8.3.2).

    Raises:
        PruneVidError: It turns by something else than quarters.
    """
    a, b, c, d = (float(matrix[index]) for index in (0, 1, 3, 4))
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if straight == crossed == 0:  # says nothing
        return UPRIGHT
    if crossed <= _SKEW * straight:
        return Orientation(False, a < 0, d < 0)
    if straight <= _SKEW * crossed:
        return Orientation(True, c < 0, b < 0)
    degrees = math.degrees(math.atan2(b, a)) % 360
    raise PruneVidError(
        f"{where}: the file asks for its frames to be turned by {degrees:.0f} degrees; only quarter turns and "
        "mirrors are supported, so turn the video and save it again"
    )


def orientation_of_exif(value: object) -> Orientation:
    """What the EXIF tag Orientation says (EXIF 2.32, 4.6.4): 1 to 8; anything else says nothing."""
    if not isinstance(value, int) or not 1 <= value <= 8:
        return UPRIGHT
    return Orientation(value >= 5, value in (2, 3, 6, 7), value in (3, 4, 7, 8))
