"""Frames of a video: from a file, from a folder of images, or from an array."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from prunevid.errors import PruneVidError
from prunevid.runtime.video_file import read_video_file
from prunevid.runtime.video_frames import (
    MAX_FRAME_PIXELS,
    MAX_SIDE,
    MAX_TOTAL_PIXELS,
    FrameStack,
    SampledFrames,
    check_dimensions,
    sample_indices,
)

__all__ = [
    "MAX_FRAME_PIXELS",
    "MAX_SIDE",
    "MAX_TOTAL_PIXELS",
    "SampledFrames",
    "read_frames",
    "sample_indices",
]

_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def read_frames(source: str | os.PathLike[str] | NDArray[np.uint8], count: int) -> SampledFrames:
    """Samples `count` frames uniformly over a video, first and last included; all of them where it has fewer.

    Args:
        source: A video file; a folder of images (JPEG, PNG, BMP, WebP) in the natural order of their names,
            frame2 before frame10; one image; or RGB frames, uint8 [T, H, W, 3]. An array that need not be
            subsampled is used as it is, without a copy.
        count: How many frames, at least 1.

    Raises:
        PruneVidError: The source is missing or no video, has no frames or none that can be decoded, or
            absurd dimensions; an array has another type or shape; or count is not a positive integer.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise PruneVidError(f"the number of frames to read must be an integer of at least 1, not {count!r}")
    if isinstance(source, np.ndarray):
        return _from_array(source, int(count))
    if not isinstance(source, (str, os.PathLike)):
        raise PruneVidError(f"a video must be a path or a uint8 array [T, H, W, 3], not a {type(source).__name__}")
    path = Path(source)
    try:
        if path.is_dir():
            return _from_images(_images_in(path), path, int(count))
        if not path.exists():
            raise PruneVidError(f"{path}: there is no such file or folder; check the path of the video")
    except (OSError, ValueError) as error:  # a name too long, or with a null character in it
        raise PruneVidError(f"{str(source)[:200]!r} cannot be opened as a video: {error}") from error
    if not path.is_file():
        raise PruneVidError(f"{path}: neither a file nor a folder; give a video file or a folder of images")
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        return _from_images([path], path, int(count))
    return read_video_file(path, int(count))


def _from_array(array: NDArray[np.uint8], count: int) -> SampledFrames:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise PruneVidError(
            f"a video array must be RGB, uint8 of shape [T, H, W, 3], not {array.dtype} {list(array.shape)}"
        )
    if not len(array):
        raise PruneVidError("the video array has no frames: its first axis is 0")
    check_dimensions(array.shape[2], array.shape[1], "video array")
    indices = sample_indices(len(array), count)
    frames = array if len(indices) == len(array) else array[indices]
    return SampledFrames(np.ascontiguousarray(frames), indices.astype(np.float64), 0, "array")


def _images_in(folder: Path) -> list[Path]:
    images = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
    images = [path for path in images if not path.name.startswith(".")]
    if not images:
        raise PruneVidError(f"{folder}: no images in this folder (JPEG, PNG, BMP or WebP); give a folder of frames")
    return sorted(images, key=_natural_order)


def _natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def _from_images(images: list[Path], source: Path, count: int) -> SampledFrames:
    """Reads the sampled images only; a damaged one gives way to the next whole one before the next sample."""
    indices = sample_indices(len(images), count).tolist()
    stack = FrameStack(str(source), len(indices))
    damaged = 0
    for index, end in zip(indices, [*indices[1:], len(images)], strict=True):
        for position in range(index, end):
            image = _read_image(images[position])
            if image is None:
                damaged += 1
                continue
            if stack.size is not None and image.shape[:2] != stack.size:
                raise PruneVidError(
                    f"{images[position]}: {image.shape[1]} x {image.shape[0]} pixels, but the frames before "
                    f"it have {stack.size[1]} x {stack.size[0]}; the frames of a video must have one size"
                )
            stack.add(image, float(position))
            break
    if not len(stack):
        raise PruneVidError(f"{source}: all {damaged} images are damaged; record or copy them again")
    return stack.finish(damaged, decoded=len(stack))


def _read_image(path: Path) -> NDArray[np.uint8] | None:
    """An image as RGB, uint8 [H, W, 3], upright; None where it is damaged."""
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            check_dimensions(image.width, image.height, str(path))
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except PermissionError as error:
        raise PruneVidError(f"{path}: no permission to read this file") from error
    except Image.DecompressionBombError as error:
        raise PruneVidError(f"{path}: the image claims absurd dimensions ({error})") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
        return None
