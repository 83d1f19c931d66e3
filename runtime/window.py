"""A window over a video that goes on: features of its last frames, each encoded once, when it comes."""

from __future__ import annotations

from math import isfinite
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from prunevid.errors import PruneVidError
from prunevid.runtime.chain import Chain
from prunevid.runtime.features import VideoFeatures
from prunevid.runtime.timings import Stopwatch, Timings
from prunevid.runtime.video.pixel_values import preprocess, resizer
from prunevid.runtime.video.sources import read_frames

__all__ = ["FeatureWindow"]


class FeatureWindow:
    """The features of the last frames of a video. Made by `prunevid.runtime.Pipeline.window`.

    A frame is encoded alone, without those before it, and its features are written where they stay. What `features`
    gives out is never written to again, so that sessions may be opened on it while further frames come; one thread at a
    time pushes, and any may read. The features lie one behind the other in memory for twice the window. When that is
    full, the window goes on in new memory, for which each frame is copied once at most; the old memory goes when nobody
    has features in it any more.

    Args:
        chain: The bundle's graphs.
        frames: The most frames to keep; the oldest goes when another one comes.

    Raises:
        PruneVidError: The number of frames is not 1 or more.
    """

    def __init__(self, chain: Chain, frames: int) -> None:
        if isinstance(frames, bool) or not isinstance(frames, (int, np.integer)) or frames < 1:
            raise PruneVidError(f"the number of frames of a window must be an integer of at least 1, not {frames!r}")
        self.capacity = int(frames)
        self._chain = chain
        self._preprocessing = chain.manifest.preprocessing
        self._pushing = Lock()
        self._rows = self._new_rows()
        # Of the rows, those up to here are written.
        self._stop = 0
        self._frames = self._rows[:0]

    @property
    def features(self) -> VideoFeatures:
        """The frames in the window now: a view, which stays as it is when further frames come.

        Its timings are empty: the frames were encoded when they came.
        """
        return self._frames

    def push(self, frame: NDArray[np.uint8], seconds: float | None = None) -> Timings:
        """Encode one frame and append it; where the window is full, the oldest one leaves it.

        Args:
            frame: RGB, uint8 [H, W, 3].
            seconds: When the frame was, since the first one; by default a second after the frame before, as frames of
                an array are.

        Returns:
            What it took, in the stages preprocess and vision.

        Raises:
            PruneVidError: The frame has another type or shape, its time is none or before that of the last frame, or
                the frame cannot be encoded; the window stays as it was.
        """
        frame = np.asanyarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise PruneVidError(f"a frame must be RGB, uint8 of shape [H, W, 3], not {frame.dtype} {list(frame.shape)}")
        stopwatch = Stopwatch(self._chain.now)
        with stopwatch.stage("preprocess"):
            resized = read_frames(frame[None], 1, resizer(self._preprocessing)).frames
            pixel_values = preprocess(resized, self._preprocessing)
        with self._pushing:
            time = self._time(seconds)
            if self._stop == len(self._rows):
                self._move()
            row = self._rows[self._stop : self._stop + 1]
            with stopwatch.stage("vision"):
                self._chain.encode(pixel_values, into=row.features)
            row.seconds[0] = time
            self._stop += 1
            self._frames = self._rows[max(self._stop - self.capacity, 0) : self._stop]
        return stopwatch.timings

    def _time(self, seconds: float | None) -> float:
        """When the next frame was."""
        last = float(self._frames.seconds[-1]) if self._stop else None
        if seconds is None:
            return 0.0 if last is None else last + 1.0
        if not isfinite(seconds) or (last is not None and seconds < last):
            earlier = "" if last is None else f", not before the last frame's {last}"
            raise PruneVidError(f"a frame's time must be a finite number of seconds{earlier}; it is {seconds!r}")
        return float(seconds)

    def _move(self) -> None:
        """Go on in new memory, behind the frames of the window: others may still read the old."""
        rows, kept = self._new_rows(), len(self._frames.seconds)
        self._chain.memory.copy(self._frames.features, rows.features[:kept])
        rows.seconds[:kept] = self._frames.seconds
        self._rows, self._stop, self._frames = rows, kept, rows[:kept]

    def _new_rows(self) -> VideoFeatures:
        """Room for twice the window."""
        frames = 2 * self.capacity
        return VideoFeatures(self._chain.new_features(frames), np.empty(frames, np.float64))
