"""Video frames as the vision tower wants them: resized, rescaled and normalised as transformers' processor
does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunevid.errors import PruneVidError

__all__ = ["Preprocessing", "preprocess"]

_MAX_SIZE = 4096
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its frames; part of a bundle's manifest.

    Attributes:
        size: Side of the square that frames are resized to, in pixels; their aspect ratio is not kept.
        mean: Subtracted from the rescaled red, green and blue.
        std: What the difference is divided by.
        rescale: Multiplied to the 8-bit values first.
        resample: nearest, box, bilinear, hamming, bicubic or lanczos; all antialias when shrinking but
            nearest.

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
        if not isinstance(self.resample, str) or self.resample not in _RESAMPLE:
            raise PruneVidError(f"preprocessing: resample must be one of {', '.join(_RESAMPLE)}, not {self.resample!r}")

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary that json can write."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What to_json() gave, back.

        Raises:
            PruneVidError: A field is missing, unknown or has an unusable value.
        """
        if not isinstance(values, Mapping):
            raise PruneVidError(f"preprocessing: must be a JSON object, not a {type(values).__name__}")
        known = set(cls.__dataclass_fields__)
        unknown, missing = set(values) - known, {"size", "mean", "std"} - set(values)
        if unknown or missing:
            problem = f"unknown {sorted(unknown)}" if unknown else f"missing {sorted(missing)}"
            raise PruneVidError(f"preprocessing: {problem} in the fields; export the bundle again")
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    if isinstance(values, (tuple, list)) and len(values) == 3 and all(map(_is_number, values)):
        return float(values[0]), float(values[1]), float(values[2])
    raise PruneVidError(f"preprocessing: {name} must be three finite numbers, not {values!r}")


def preprocess(frames: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Pixel values for the vision tower.

    Args:
        frames: uint8 [T, H, W, 3], RGB.
        preprocessing: Size, normalisation and resampling.

    Returns:
        float32 [T, 3, size, size]: equal to transformers' Pillow processors for frames no higher than wide,
        and within one level of 255, rarely two, of its video processor for all.

    Raises:
        PruneVidError: The frames have another type or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:]:
        raise PruneVidError(f"frames must be RGB, uint8 of shape [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    size = preprocessing.size
    filter_ = _RESAMPLE[preprocessing.resample]
    table = _values_of_levels(preprocessing)
    pixels = np.empty((len(frames), 3, size, size), np.float32)
    for frame, out in zip(frames, pixels, strict=True):
        # In two steps, because the order matters where the first one clips: the video processor resizes
        # along the width first, as Pillow did up to version 12; Pillow 13 does what is cheaper.
        image = Image.fromarray(frame).resize((size, frame.shape[0]), filter_)
        resized = np.asarray(image.resize((size, size), filter_))
        for channel in range(3):
            np.take(table[channel], resized[..., channel], out=out[channel], mode="clip")
    return pixels


def _values_of_levels(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What each of the 256 levels becomes, per channel: float32 [3, 256].

    Frames have 8 bits after resizing, so that normalising is a look-up; the arithmetic is in transformers'
    order and types, which makes the result equal to the last bit.
    """
    levels = (np.arange(256).astype(np.float64) * preprocessing.rescale).astype(np.float32)
    mean = np.array(preprocessing.mean, np.float32)[:, None]
    std = np.array(preprocessing.std, np.float32)[:, None]
    return ((levels[None] - mean) / std).astype(np.float32)
