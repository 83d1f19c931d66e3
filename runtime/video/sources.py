"""Frames of a video: from a file, from a folder of images, or from an array."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunevid.errors import PruneVidError
from prunevid.runtime.video.file import SCAN_LIMIT_BYTES, read_video_file
from prunevid.runtime.video.frames import (
    MAX_FRAME_PIXELS,
    MAX_SIDE,
    MAX_TOTAL_PIXELS,
    FrameStack,
    SampledFrames,
    Shrink,
    check_dimensions,
    sample_indices,
)
from prunevid.runtime.video.pictures import read_animation, read_folder, read_picture, sniff_picture

__all__ = [
    "MAX_FRAME_PIXELS",
    "MAX_SIDE",
    "MAX_TOTAL_PIXELS",
    "SampledFrames",
    "read_frames",
    "sample_indices",
]

# What looks like the address of a stream or device; of those without a slash, what ffmpeg would take for one.
_ADDRESS = re.compile(
    r"([a-z][a-z0-9+.-]+):/"
    r"|(async|avfoundation|bluray|cache|concatf?|crypto|data|dshow|fd|file|gdigrab|hls|https?|ipfs|ipns|lavfi|pipe"
    r"|rt[ms]?p[a-z]*|s?ftp|srtp?|subfile|tcp|tls|udp|udplite|unix|v4l2|video4linux2|x11grab):",
    re.IGNORECASE,
)


def read_frames(
    source: str | os.PathLike[str] | NDArray[np.uint8],
    count: int,
    shrink: Shrink | None = None,
    scan_limit: int = SCAN_LIMIT_BYTES,
) -> SampledFrames:
    """Samples `count` frames uniformly over a video, first and last included; all of them where it has fewer.

    What a file is, is told by its content, not by its name.

    Args:
        source: A video file; a folder of images (JPEG, PNG, BMP, WebP, TIFF) in the natural order of their names,
            frame2 before frame10; one image; or RGB frames, uint8 [T, H, W, 3]. An array that need not be
            subsampled or shrunk is used as it is, without a copy.
        count: How many frames, at least 1.
        shrink: What is kept of every frame as it is read, such as `pixel_values.resizer` makes it; by default all of
            it.
        scan_limit: Size in bytes up to which the packets of any file are listed, see `read_video_file`.

    Raises:
        PruneVidError: The source is missing or no video, has no frames or none that can be decoded, or
            absurd dimensions; an array has another type or shape; or count is not a positive integer.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise PruneVidError(f"the number of frames to read must be an integer of at least 1, not {count!r}")
    if isinstance(source, np.ndarray):
        return _from_array(source, int(count), shrink)
    if not isinstance(source, (str, os.PathLike)):
        raise PruneVidError(f"a video must be a path or a uint8 array [T, H, W, 3], not a {type(source).__name__}")
    path = _existing(os.fsdecode(source))
    try:
        if path.is_dir():
            return read_folder(path, int(count), shrink)
        kind = sniff_picture(path)
        if kind == "picture":
            return read_picture(path, shrink)
        if kind == "animation":
            return read_animation(path, int(count), shrink)
        return read_video_file(path, int(count), scan_limit, shrink)
    except OSError as error:
        raise PruneVidError(f"{path}: cannot be read ({error.strerror or error})") from error


def _existing(name: str) -> Path:
    """The file or folder of this name.

    Raises:
        PruneVidError: There is none, it is neither a file nor a folder, or the name is an address.
    """
    address = _ADDRESS.match(name)
    if address and "://" in name[: address.end() + 1]:
        raise PruneVidError(_no_address(address))
    path = Path(name)
    try:
        if not name:
            raise PruneVidError("the path of the video is empty; give a video file or a folder of images")
        if not path.exists():
            if address:
                raise PruneVidError(_no_address(address))
            raise PruneVidError(f"{path}: there is no such file or folder; check the path of the video")
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # a name too long, or with a null character in it
        raise PruneVidError(f"{name[:200]!r} cannot be opened as a video: {error}"[:500]) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise PruneVidError(
            f"{path}: neither a file nor a folder, but a device, pipe or socket; streams are not files, give a video "
            "file or a folder of images"
        )
    return path


def _no_address(address: re.Match[str]) -> str:
    # An address may hold a password: only its beginning is repeated.
    scheme = address[1] or address[2]
    if scheme.lower() == "file":
        return f"'{scheme}:' begins an address, not a path; give the path of the video itself"
    return f"'{scheme}:' begins the address of a stream, and streams are not files; give a file or a folder of images"


def _from_array(array: NDArray[np.uint8], count: int, shrink: Shrink | None) -> SampledFrames:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise PruneVidError("a video array must not have masked pixels; fill them in first")
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise PruneVidError(
            f"a video array must be RGB, uint8 of shape [T, H, W, 3], not {array.dtype} {list(array.shape)}"
        )
    if not len(array):
        raise PruneVidError("the video array has no frames: its first axis is 0")
    check_dimensions(array.shape[2], array.shape[1], "video array")
    indices = sample_indices(len(array), count)
    stamps = indices.astype(np.float64)
    if shrink is None:
        frames = array if len(indices) == len(array) else array[indices]
        return SampledFrames(np.ascontiguousarray(frames), stamps, 0, "array")
    stack = FrameStack("array", len(indices), shrink)
    for index in indices.tolist():
        stack.add(array[index], float(index))
    return stack.finish(0, decoded=0)
