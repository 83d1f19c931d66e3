"""What every kind of video source shares: sampling positions, limits, the stack of frames being filled."""

from __future__ import annotations

from collections.abc import Callable
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
    "Shrink",
    "check_dimensions",
    "sample_indices",
]

Shrink = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Makes of a frame, uint8 [H, W, 3], what is kept of it, of the same size for all frames of a size."""

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
        frames: uint8 [T, H, W, 3], RGB, in order, all different frames of the video; as they are, or what
            `shrink` made of them.
        timestamps_s: float64 [T], seconds since the first frame of the video. A folder of images and an array
            have no clock: there, one frame counts as one second.
        skipped: Damaged frames that were met and passed over; at least as many as frames that were wanted but
            not to be had.
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
    """Frames of one size collected into one array that is allocated once.

    shrink: what is kept of every frame, such as `prunevid.runtime.video.pixel_values.resize`; by default all of it.
    """

    def __init__(self, source: str, capacity: int, shrink: Shrink | None = None) -> None:
        self.size: tuple[int, int] | None = None
        """Height and width of the frames as they were added; None while there is none."""
        self._source = source
        self._capacity = capacity
        self._shrink = shrink
        self._frames: NDArray[np.uint8] | None = None
        self._timestamps: list[float] = []

    def __len__(self) -> int:
        return len(self._timestamps)

    def add(self, image: NDArray[np.uint8], timestamp_s: float) -> None:
        """Copies what is to be kept of a frame, uint8 [H, W, 3] of the first one's size, to the end.

        Raises:
            PruneVidError: All frames together would exceed MAX_TOTAL_PIXELS.
        """
        kept = image if self._shrink is None else self._shrink(image)
        if self._frames is None:
            self.size = (image.shape[0], image.shape[1])
            pixels = self._capacity * kept.shape[0] * kept.shape[1]
            if pixels > MAX_TOTAL_PIXELS:
                raise PruneVidError(
                    f"{self._source}: {self._capacity} frames of {kept.shape[1]} x {kept.shape[0]} are "
                    f"{pixels} pixels, more than {MAX_TOTAL_PIXELS}; ask for fewer or scale the video down"
                )
            self._frames = np.empty((self._capacity, *kept.shape), np.uint8)
        self._frames[len(self)] = kept
        self._timestamps.append(timestamp_s)

    def finish(self, skipped: int, decoded: int) -> SampledFrames:
        """What was collected; there must be at least one frame."""
        assert self._frames is not None
        stamps = np.array(self._timestamps, np.float64)
        return SampledFrames(self._frames[: len(self)], stamps, skipped, self._source, decoded)
