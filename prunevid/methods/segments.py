"""Segments of similar frames, in NumPy: a building block that merge methods share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prunevid.config import PruneConfig
from prunevid.methods.arrays import Integers, integers, real
from prunevid.methods.clustering import dpc_knn, squared_distances

__all__ = ["refine_segments", "segment_frames"]


def segment_frames(features: npt.ArrayLike, config: PruneConfig) -> Integers:
    """Cut a video into segments of similar frames (arXiv 2412.16117, section 3).

    A frame is the mean of its tokens; DPC-KNN clusters the frames, and `refine_segments` makes the clusters
    contiguous. With as many clusters as frames, no run is longer than one frame, and one segment holds them
    all.

    Args:
        features: [T, N, C] real.
        config: the settings; segment_ratio and neighbours are used.

    Returns:
        int64 [T], non-decreasing from 0.

    Raises:
        InvalidValueError: when features are not [T, N, C] without empty sides, not real or not finite.
    """
    means = real("features", features, rank=3).mean(axis=1)
    clusters = int(config.segment_counts(len(means))[-1])
    return refine_segments(dpc_knn(squared_distances(means), clusters, config.neighbours))


def refine_segments(labels: npt.ArrayLike) -> Integers:
    """Make contiguous segments of the clusters that the frames fell into (arXiv 2412.16117, section 3).

    A run is a stretch of frames of one label. Of each label, the longest run is kept (all of them, where
    several are as long) unless it is a single frame; the other runs are dissolved. From left to right, every
    dissolved frame joins the longer of its neighbours: on the left the run that ends before it, with what has
    joined it so far; on the right the next run that was kept, as long as it was at first. Of two as long, the
    left. Nothing kept is one segment.

    Args:
        labels: [T] integers; the cluster of each frame.

    Returns:
        int64 [T], non-decreasing from 0; the segment of each frame.

    Raises:
        InvalidValueError: when labels are not a row of integers, or empty.
    """
    refined = integers("labels", labels).copy()
    kept = _longest_runs(_runs(refined))
    if not kept:
        return np.zeros(len(refined), dtype=np.int64)
    is_kept = np.zeros(len(refined), dtype=np.bool_)
    for run in kept:
        is_kept[run.start : run.start + run.length] = True
    for frame in np.flatnonzero(~is_kept):
        following = next((run for run in kept if run.start > frame), None)
        if following is not None and following.length > _run_length_before(refined, int(frame)):
            refined[frame] = following.label
        else:
            refined[frame] = refined[frame - 1]
    return np.cumsum(np.diff(refined, prepend=refined[0]) != 0, dtype=np.int64)


class _Run(NamedTuple):
    """A stretch of frames of one label."""

    label: int
    start: int
    length: int


def _runs(labels: Integers) -> list[_Run]:
    """Split labels into maximal stretches of equal ones."""
    starts = [frame for frame in range(len(labels)) if frame == 0 or labels[frame] != labels[frame - 1]]
    ends = [*starts[1:], len(labels)]
    return [_Run(int(labels[start]), start, end - start) for start, end in zip(starts, ends, strict=True)]


def _longest_runs(runs: list[_Run]) -> list[_Run]:
    """Keep each label's longest runs of more than one frame, in the order of the video."""
    longest: dict[int, int] = {}
    for run in runs:
        longest[run.label] = max(run.length, longest.get(run.label, 0))
    return [run for run in runs if run.length == longest[run.label] and run.length > 1]


def _run_length_before(labels: Integers, frame: int) -> int:
    """Count the equal labels that end just before the frame."""
    length = 0
    while length < frame and labels[frame - 1 - length] == labels[frame - 1]:
        length += 1
    return length
