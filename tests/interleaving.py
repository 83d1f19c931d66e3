"""The rule by which a video's tokens and what stands among them are laid out, stated plainly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VISUAL = -1

Gaps = Sequence[Sequence[int]]
"""Ids of what stands before each frame, and of what stands behind the last one: one more than frames."""


def stated_rows(group: npt.NDArray[np.int64], segments: npt.NDArray[np.int64], gaps: Gaps) -> list[int]:
    """Ids of a merged video's rows, VISUAL for tokens, in their order.

    By docs/architecture.md: segment by segment, the static group of a segment s that begins at frame f is f + s, and
    that of frame t's dynamic tokens t + s + 1. A segment's static tokens stand behind what belongs before its first
    frame, each frame's dynamic tokens behind what belongs before that frame.
    """
    rows: list[int] = []
    for segment in range(int(segments.max()) + 1):
        frames = np.flatnonzero(segments == segment)
        for frame in frames.tolist():
            rows += gaps[frame]
            if frame == frames[0]:
                rows += [VISUAL] * np.count_nonzero(group == frame + segment)
            rows += [VISUAL] * np.count_nonzero(group == frame + segment + 1)
    return [*rows, *gaps[len(segments)]]


def plain_rows(frames: int, tokens: int, gaps: Gaps) -> list[int]:
    """The same of a video of which nothing is merged."""
    return [*(row for frame in range(frames) for row in (*gaps[frame], *[VISUAL] * tokens)), *gaps[frames]]
