"""Video frames as the vision tower wants them: resized, rescaled and normalised as transformers' processor does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.errors import PruneVidError

__all__ = ["preprocess", "resize", "resizer"]

# Of a frame that is resized, at a time.
_BLOCK_PIXELS = 2**20


def preprocess(frames: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Pixel values for the vision tower.

    Args:
        frames: uint8 [T, H, W, 3], RGB; frames that went through `resize` give the same as those that did not.
        preprocessing: Size, normalisation and resampling.

    Returns:
        float32 [T, 3, size, size]: equal to transformers' Pillow processors for frames no higher than wide,
        and within one level of 255, rarely two, of its video processors for all.

    Raises:
        PruneVidError: The frames have another type or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:]:
        raise PruneVidError(f"frames must be RGB, uint8 of shape [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    table = _values_of_levels(preprocessing)
    pixels = np.empty((len(frames), 3, preprocessing.size, preprocessing.size), np.float32)
    for frame, out in zip(frames, pixels, strict=True):
        resized = resize(frame, preprocessing)
        for channel in range(3):
            np.take(table[channel], resized[..., channel], out=out[channel], mode="clip")
    return pixels


def resize(frame: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """A frame, uint8 [H, W, 3], as large as the vision tower sees it: uint8 [size, size, 3].

    What this makes of each frame is all that need be kept of a video. Of the frame itself, nothing is copied as a
    whole: frames may be large.
    """
    size, filter_ = preprocessing.size, Image.Resampling[preprocessing.resample.upper()]
    height, width = frame.shape[:2]
    new_height, new_width = _resized(height, width, preprocessing)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    # In two steps, because the order matters where the first one clips: the video processor resizes along
    # the width first, as Pillow did up to version 12; Pillow 13 does what is cheaper. And in blocks, of which only what
    # is shown is kept: an edge of a long and narrow frame may become far longer than it was.
    narrow = np.empty((height, size, 3), np.uint8)
    rows = max(1, _BLOCK_PIXELS // max(width, new_width))
    for start in range(0, height, rows):
        block = np.ascontiguousarray(frame[start : start + rows])
        resized = np.asarray(Image.fromarray(block).resize((new_width, len(block)), filter_))
        narrow[start : start + rows] = resized[:, left : left + size]
    shown = np.empty((size, size, 3), np.uint8)
    columns = max(1, _BLOCK_PIXELS // max(height, new_height))
    for start in range(0, size, columns):
        block = np.ascontiguousarray(narrow[:, start : start + columns])
        resized = np.asarray(Image.fromarray(block).resize((block.shape[1], new_height), filter_))
        shown[:, start : start + columns] = resized[top : top + size]
    return shown


def _resized(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of a frame before anything is cut off.

    Source: `get_resize_output_image_size` in transformers' image_transforms.py, which rounds the longer edge down.
    """
    size = preprocessing.size
    if not preprocessing.center_crop:
        return size, size
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def resizer(preprocessing: Preprocessing) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """`resize` with these settings, to shrink frames as they are read."""
    return partial(resize, preprocessing=preprocessing)


def _values_of_levels(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What each of the 256 levels becomes, per channel: float32 [3, 256].

    Frames have 8 bits after resizing, so that normalising is a look-up; the arithmetic is in transformers'
    order and types, which makes the result equal to the last bit.
    """
    levels = (np.arange(256).astype(np.float64) * preprocessing.rescale).astype(np.float32)
    mean = np.array(preprocessing.mean, np.float32)[:, None]
    std = np.array(preprocessing.std, np.float32)[:, None]
    return ((levels[None] - mean) / std).astype(np.float32)
