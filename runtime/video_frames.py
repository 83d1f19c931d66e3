"""What every kind of video source shares: sampling positions, limits, the stack of frames being filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunevid.errors import PruneVidError

__all__ = [
    "MAX_FRAME_PIXELS",
    "MAX_SIDE",
    "MAX_TOTAL_PIXELS",
    "FrameStack",
    "SampledFrames",
    "check_dimensions",
    "sample_indices",
]

MAX_SIDE = 16384
"""Longest side of a frame, in pixels."""

MAX_FRAME_PIXELS = 2**26
"""Pixels of one frame: twice 8K. A decoder keeps a dozen frames: a forged header could ask for gigabytes."""

MAX_TOTAL_PIXELS = 2**30
"""Pixels of all sampled frames together: 3 GiB of RGB, which is 32 frames of 8K."""


@dataclass(frozen=True)
class SampledFrames:
    """Frames sampled from a video.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB, in order, all different frames of the video.
        timestamps_s: float64 [T], seconds since the first frame of the video. A folder of images and an array
            have no clock: there, one frame counts as one second.
        skipped: Damaged frames that were met and passed over.
        source: What was read, for messages.
        decoded: Frames decoded to get these: in a video file, those since the key frames before them too.
    """

    frames: NDArray[np.uint8]
    timestamps_s: NDArray[np.float64]
    skipped: int
    source: str
    decoded: int = 0


def sample_indices(total: int, count: int) -> NDArray[np.int64]:
    """`count` positions spread uniformly over `total` frames, ends included; all of them where it has fewer.

    Rounded down, as the LLaVA-OneVision examples of transformers do; int64 [min(total, count)].
    """
    return np.linspace(0, total - 1, min(total, count)).astype(np.int64)


def check_dimensions(width: int, height: int, where: str) -> None:
    """Raises PruneVidError unless a frame of this many pixels is one that can reasonably be processed."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE) or width * height > MAX_FRAME_PIXELS:
        raise PruneVidError(
            f"{where}: frames of {width} x {height} pixels are outside what is supported (sides of 1 to "
            f"{MAX_SIDE}, {MAX_FRAME_PIXELS} pixels a frame); scale the video down"
        )


class FrameStack:
    """Frames of one size collected into one array that is allocated once."""

    def __init__(self, source: str, capacity: int) -> None:
        self._source = source
        self._capacity = capacity
        self._frames: NDArray[np.uint8] | None = None
        self._timestamps: list[float] = []

    def __len__(self) -> int:
        return len(self._timestamps)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the frames; None while there is none."""
        return None if self._frames is None else (self._frames.shape[1], self._frames.shape[2])

    def add(self, image: NDArray[np.uint8], timestamp_s: float) -> None:
        """Copies a frame, uint8 [H, W, 3] of the first one's size, to the end.

        Raises:
            PruneVidError: All frames together would exceed MAX_TOTAL_PIXELS.
        """
        if self._frames is None:
            pixels = self._capacity * image.shape[0] * image.shape[1]
            if pixels > MAX_TOTAL_PIXELS:
                raise PruneVidError(
                    f"{self._source}: {self._capacity} frames of {image.shape[1]} x {image.shape[0]} are "
                    f"{pixels} pixels, more than {MAX_TOTAL_PIXELS}; ask for fewer or scale the video down"
                )
            self._frames = np.empty((self._capacity, *image.shape), np.uint8)
        self._frames[len(self)] = image
        self._timestamps.append(timestamp_s)

    def finish(self, skipped: int, decoded: int) -> SampledFrames:
        """What was collected; there must be at least one frame."""
        assert self._frames is not None
        stamps = np.array(self._timestamps, np.float64)
        return SampledFrames(self._frames[: len(self)], stamps, skipped, self._source, decoded)
