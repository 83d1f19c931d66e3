"""How a model wants its frames: settings that the exporter writes into a bundle and the runtime reads from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunevid.errors import InvalidValueError
from prunevid.validation import is_number, require, require_integer, require_number, shown

RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_MAX_SIZE = 4096
# Means, deviations and factors up to this, and down to its inverse, keep pixel values finite in float32.
_LARGEST_NUMBER = 1e6


@dataclass(frozen=True)
class Preprocessing:
    """From 8-bit frames to pixel values: a square of `size`, then (value * rescale - mean) / std.

    Attributes:
        size: Side of the square that frames become, in pixels.
        mean: Subtracted from the rescaled red, green and blue.
        std: What the difference is divided by.
        rescale: Multiplied to the 8-bit values first.
        resample: One of RESAMPLE; all antialias when shrinking but nearest.
        center_crop: Whether frames keep their aspect ratio: the shorter edge becomes `size`, and the square in the
            middle is cut out. Otherwise they are shown whole, squeezed into the square.

    Raises:
        InvalidValueError: A value is out of its range.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    resample: str = "bicubic"
    center_crop: bool = False

    def __post_init__(self) -> None:
        require_integer("preprocessing: size", self.size, 1, _MAX_SIZE)
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean))
        object.__setattr__(self, "std", _three_numbers("std", self.std))
        for value in self.mean:
            require_number("preprocessing: mean", value, -_LARGEST_NUMBER, _LARGEST_NUMBER)
        if any(value <= 0 for value in self.std):
            raise InvalidValueError(f"preprocessing: std must be positive, not {self.std}")
        for value in self.std:
            require_number("preprocessing: std", value, 1 / _LARGEST_NUMBER, _LARGEST_NUMBER)
        if not is_number(self.rescale) or self.rescale <= 0:
            raise InvalidValueError(f"preprocessing: rescale must be a positive number, not {shown(self.rescale)}")
        require_number("preprocessing: rescale", self.rescale, 1 / _LARGEST_NUMBER, _LARGEST_NUMBER)
        if self.resample not in RESAMPLE:
            raise InvalidValueError(
                f"preprocessing: resample must be one of {', '.join(RESAMPLE)}, not {shown(self.resample)}"
            )
        require("preprocessing: center_crop", self.center_crop, isinstance(self.center_crop, bool), "true or false")


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    if isinstance(values, (tuple, list)) and len(values) == 3 and all(map(is_number, values)):
        return float(values[0]), float(values[1]), float(values[2])
    raise InvalidValueError(f"preprocessing: {name} must be three finite numbers, not {shown(values)}")
