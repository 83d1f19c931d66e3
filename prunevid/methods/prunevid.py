"""PruneVid's merge in plain NumPy (arXiv 2412.16117, section 3): what is static over time, then clusters in space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunevid.config import PruneConfig
from prunevid.errors import InvalidValueError
from prunevid.methods.arrays import Booleans, Floats, Integers, integers, real
from prunevid.methods.clustering import cluster_means, cluster_tokens
from prunevid.methods.merging import MergedTokens
from prunevid.methods.segments import segment_frames

__all__ = ["NORM_EPSILON", "dynamic_group", "merge", "static_group", "static_positions"]

NORM_EPSILON = 1e-12
"""Least norm a token is divided by: a zero vector is then similar to nothing, not even to itself."""


def merge(video: Floats, config: PruneConfig) -> MergedTokens:
    """Merge the visual tokens of a video over time and in space (arXiv 2412.16117, section 3).

    Tokens come segment by segment: first what is static in the segment, averaged over its frames, then the
    dynamic tokens of each frame. Each of these is a group; DPC-KNN clusters it, and a cluster becomes the
    mean of its tokens. Groups are numbered by `static_group` and `dynamic_group`.

    Args:
        video: float64 [T, N, C], finite; T frames of N tokens of C channels.
        config: the settings.

    Returns:
        The merged tokens in float64, where they came from, and the segments.
    """
    segments = segment_frames(video, config)
    is_static = static_positions(video, segments, config.static_threshold)

    tokens: list[Floats] = []
    groups: list[Integers] = []
    patch_to_token = np.empty(video.shape[:2], dtype=np.int64)

    def merge_group(number: int, frames: Integers, positions: Integers) -> None:
        """Merge what the frames show at the positions, averaged over the frames, as one group."""
        if positions.size == 0:
            return
        first_token = sum(len(part) for part in tokens)
        averaged = video[np.ix_(frames, positions)].mean(axis=0)
        cluster = cluster_tokens(averaged, config)
        merged = cluster_means(averaged, cluster)
        tokens.append(merged)
        groups.append(np.full(len(merged), number, dtype=np.int64))
        patch_to_token[np.ix_(frames, positions)] = first_token + cluster

    for segment, static in enumerate(is_static):
        frames = np.flatnonzero(segments == segment)
        merge_group(static_group(int(frames[0]), segment), frames, np.flatnonzero(static))
        for frame in frames:
            merge_group(dynamic_group(int(frame), segment), np.array([frame]), np.flatnonzero(~static))

    return MergedTokens(np.concatenate(tokens), np.concatenate(groups), patch_to_token, segments)


def static_group(first_frame: int, segment: int) -> int:
    """Return the group number of what is static in a segment that begins with this frame."""
    return first_frame + segment


def dynamic_group(frame: int, segment: int) -> int:
    """Return the group number of what is dynamic in this frame of this segment."""
    return frame + segment + 1


def static_positions(features: npt.ArrayLike, segments: npt.ArrayLike, threshold: float) -> Booleans:
    """Find the positions that stay the same throughout a segment (arXiv 2412.16117, section 3).

    A position is static when the mean cosine similarity over the W * (W - 1) ordered pairs of the segment's W
    frames is above the threshold. One frame has no pairs: all of it is dynamic.

    Args:
        features: [T, N, C] real.
        segments: [T] integers, non-decreasing from 0 without gaps.
        threshold: tau.

    Returns:
        bool [S, N]; one row per segment.

    Raises:
        InvalidValueError: when features or segments are malformed.
    """
    video = real("features", features, rank=3)
    numbers = integers("segments", segments)
    steps = np.diff(numbers, prepend=0)
    if len(numbers) != len(video) or not np.isin(steps, (0, 1)).all() or numbers[0] != 0:
        raise InvalidValueError("segments must hold one number per frame, counting up from 0 without gaps.")
    units = video / np.maximum(np.linalg.norm(video, axis=-1, keepdims=True), NORM_EPSILON)
    is_static = np.zeros((int(numbers[-1]) + 1, video.shape[1]), dtype=np.bool_)
    for segment in range(len(is_static)):
        frames = units[numbers == segment]
        if len(frames) > 1:
            for position in range(video.shape[1]):
                is_static[segment, position] = _mean_similarity(frames[:, position]) > threshold
    return is_static


def _mean_similarity(units: Floats) -> float:
    """Average the cosine similarity over the ordered pairs of different unit vectors [W, C], W > 1."""
    similarity = units @ units.T
    is_pair = ~np.eye(len(units), dtype=np.bool_)
    return float(similarity[is_pair].mean())
