"""How a model wants its frames: settings that the exporter writes into a bundle and the runtime reads from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prunevid.errors import PruneVidError

RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_MAX_SIZE = 4096


@dataclass(frozen=True)
class Preprocessing:
    """From 8-bit frames to pixel values: a square of ``size``, then (value * rescale - mean) / std.

    Attributes:
        size: Side of the square that frames are resized to, in pixels; their aspect ratio is not kept.
        mean: Subtracted from the rescaled red, green and blue.
        std: What the difference is divided by.
        rescale: Multiplied to the 8-bit values first.
        resample: One of RESAMPLE; all antialias when shrinking but nearest.

    Raises:
        PruneVidError: A value is out of its range.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= _MAX_SIZE:
            raise PruneVidError(f"preprocessing: size must be from 1 to {_MAX_SIZE}, not {self.size!r}")
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean))
        object.__setattr__(self, "std", _three_numbers("std", self.std))
        if any(value <= 0 for value in self.std):
            raise PruneVidError(f"preprocessing: std must be positive, not {self.std}")
        if not _is_number(self.rescale) or self.rescale <= 0:
            raise PruneVidError(f"preprocessing: rescale must be a positive number, not {self.rescale!r}")
        if self.resample not in RESAMPLE:
            raise PruneVidError(f"preprocessing: resample must be one of {', '.join(RESAMPLE)}, not {self.resample!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    if isinstance(values, (tuple, list)) and len(values) == 3 and all(map(_is_number, values)):
        return float(values[0]), float(values[1]), float(values[2])
    raise PruneVidError(f"preprocessing: {name} must be three finite numbers, not {values!r}")
