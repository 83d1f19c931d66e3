"""A video's features, before anything is merged: what sessions with any settings begin from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.timings import Timings

__all__ = ["VideoFeatures"]


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """Frames as the vision tower and the projector see them. Made by `Pipeline.features` and `FeatureWindow.features`.

    Attributes:
        features: [T, N, C] of the bundle's dtype, where the graphs run.
        seconds: float64 [T], when each frame was, since the first one of the video.
        skipped: Unreadable frames of the video.
        timings: What it took to make them, in the stages video, preprocess and vision.
    """

    features: Array
    seconds: NDArray[np.float64]
    skipped: int = 0
    timings: Timings = field(default_factory=Timings)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.seconds)

    def __getitem__(self, frames: slice) -> VideoFeatures:
        """Some of the frames, in steps of 1: a view of the same memory. What all took is not told of a part."""
        return VideoFeatures(self.features[frames], self.seconds[frames])
