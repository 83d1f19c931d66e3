"""The PruneVid method in plain NumPy: the oracle that graphs and kernels are compared with.

It follows the paper (arXiv 2412.16117, section 3), computes in float64, and breaks every tie by the lower
index, so that one input has one result. It is made to be read and compared, not to be fast. `dpc_knn`,
`refine_segments` and `group_topk` are the data-dependent steps that an exported graph holds as operators of
their own; each can be compared on the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prunevid.config import PruneConfig
from prunevid.errors import InvalidValueError

__all__ = [
    "NORM_EPSILON",
    "MergedTokens",
    "dpc_knn",
    "dynamic_group",
    "group_topk",
    "merge_tokens",
    "refine_segments",
    "segment_frames",
    "select_tokens",
    "squared_distances",
    "static_group",
    "static_positions",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

NORM_EPSILON = 1e-12
"""Least norm a token is divided by: a zero vector is then similar to nothing, not even to itself."""


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """What is left of a video after merging.

    Attributes:
        tokens: [V, C], float32 for float16 and float32 features, else float64; in the order of the sequence.
        group: int64 [V], non-decreasing; the group of each token. Groups are numbered in the order of the
            sequence (`static_group`, `dynamic_group`), and an empty group keeps its number.
        patch_to_token: int64 [T, N]; the token that each patch of the video went into.
        segments: int64 [T], non-decreasing from 0; the segment of each frame.
    """

    tokens: npt.NDArray[np.floating[Any]]
    group: Integers
    patch_to_token: Integers
    segments: Integers


def merge_tokens(features: npt.ArrayLike, config: PruneConfig) -> MergedTokens:
    """Merge the visual tokens of a video over time and in space (arXiv 2412.16117, section 3).

    Tokens come segment by segment: first what is static in the segment, averaged over its frames, then the
    dynamic tokens of each frame. Each of these is a group; DPC-KNN clusters it, and a cluster becomes the
    mean of its tokens.

    Args:
        features: [T, N, C] real; T frames of N tokens of C channels. Computed in float64 whatever the type.
        config: the settings.

    Returns:
        The merged tokens, where they came from, and the segments.

    Raises:
        InvalidValueError: when features are not [T, N, C] without empty sides, not real or not finite.
    """
    given = np.asarray(features)
    video = _real("features", given, rank=3)
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
        cluster = _cluster_tokens(averaged, config)
        merged = _cluster_means(averaged, cluster)
        tokens.append(merged)
        groups.append(np.full(len(merged), number, dtype=np.int64))
        patch_to_token[np.ix_(frames, positions)] = first_token + cluster

    for segment, static in enumerate(is_static):
        frames = np.flatnonzero(segments == segment)
        merge_group(static_group(int(frames[0]), segment), frames, np.flatnonzero(static))
        for frame in frames:
            merge_group(dynamic_group(int(frame), segment), np.array([frame]), np.flatnonzero(~static))

    return MergedTokens(
        tokens=np.concatenate(tokens).astype(_output_type(given.dtype)),
        group=np.concatenate(groups),
        patch_to_token=patch_to_token,
        segments=segments,
    )


def select_tokens(scores: npt.ArrayLike, group: npt.ArrayLike, config: PruneConfig) -> Integers:
    """Choose the merged tokens that the question attends to most (arXiv 2412.16117, section 3).

    With selection "group", every group of n tokens keeps its best int(n * keep_ratio); with "global", so many
    of all tokens are kept, wherever they are. Groups of few tokens may keep none.

    Args:
        scores: [V] real; a token's largest attention probability over heads and question tokens, at layer M.
        group: [V] integers of 0 or more; the group of each token, as `MergedTokens.group`.
        config: the settings.

    Returns:
        int64 [R]; indices of the kept tokens, ascending.

    Raises:
        InvalidValueError: when scores or groups are malformed, or scores are not finite.
    """
    values, groups = _scores_and_groups(scores, group)
    if config.selection == "global":
        groups = np.zeros_like(groups)
    sizes = np.bincount(groups)
    quota = config.keep_counts(len(values))[sizes]
    return group_topk(values, groups, quota)


def static_group(first_frame: int, segment: int) -> int:
    """Return the group number of what is static in a segment that begins with this frame."""
    return first_frame + segment


def dynamic_group(frame: int, segment: int) -> int:
    """Return the group number of what is dynamic in this frame of this segment."""
    return frame + segment + 1


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
    means = _real("features", features, rank=3).mean(axis=1)
    clusters = int(config.segment_counts(len(means))[-1])
    return refine_segments(dpc_knn(squared_distances(means), clusters, config.neighbours))


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
    video = _real("features", features, rank=3)
    numbers = _integers("segments", segments)
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


def squared_distances(tokens: npt.ArrayLike) -> Floats:
    """Compute the squared euclidean distances between tokens, divided by the number of channels.

    Differences are summed directly. The usual shortcut through a Gram matrix loses the small distances
    between large vectors, and with them the order of near ties.

    Args:
        tokens: [N, C] real.

    Returns:
        float64 [N, N], symmetric, zero on the diagonal.

    Raises:
        InvalidValueError: when tokens are not [N, C] without empty sides, not real or not finite.
    """
    points = _real("tokens", tokens, rank=2)
    squared = np.zeros((len(points), len(points)))
    # Row by row: all differences of a frame of a large model at once would take gigabytes.
    for index, point in enumerate(points):
        squared[index, index:] = np.mean((points[index:] - point) ** 2, axis=1)
        squared[index:, index] = squared[index, index:]
    return squared


def dpc_knn(squared: npt.ArrayLike, clusters: int, neighbours: int = 7) -> Integers:
    """Cluster one group of tokens by density peaks with k nearest neighbours (arXiv 2412.16117, section 3).

    A token's density is exp(-mean of its k smallest squared distances, its own zero included); its delta is
    its distance to the nearest denser token, and for the densest the largest distance in the group. The
    centres are the tokens with the largest density * delta, and every token joins its nearest centre.

    Ties go to the lower index: of two tokens of one density the first counts as denser, of two candidates of
    one score the first becomes the centre, of two centres as near the one of the lower cluster number is
    joined. A centre always belongs to its own cluster, even if another centre lies at the same place.

    Args:
        squared: [N, N] real and not negative; squared distances divided by the number of channels. Row i
            holds what token i sees.
        clusters: how many clusters to make. With N or more, every token is a cluster, in the order given.
        neighbours: k; of fewer tokens, all are used.

    Returns:
        int64 [N]; the cluster of each token. Clusters are numbered by decreasing density * delta of their
        centre.

    Raises:
        InvalidValueError: when the distances are not [N, N], empty, not finite or negative, or a number is
        below 1.
    """
    table = _real("squared distances", squared, rank=2)
    count = len(table)
    if table.shape != (count, count):
        raise InvalidValueError(f"squared distances must be square, not of shape {table.shape}.")
    if table.min() < 0:
        raise InvalidValueError("squared distances must not be negative: clamp those of a Gram matrix at 0.")
    if clusters < 1 or neighbours < 1:
        raise InvalidValueError(f"clusters ({clusters}) and neighbours ({neighbours}) must be 1 or more.")
    if clusters >= count:
        return np.arange(count, dtype=np.int64)

    density = np.exp(-np.sort(table, axis=1)[:, :neighbours].mean(axis=1))
    score = density * _distance_to_denser(table, density)
    centres = np.argsort(-score, kind="stable")[:clusters]
    # Squares compare as their roots do, and rounding a root could make a tie where there is none.
    cluster: Integers = np.argmin(table[:, centres], axis=1).astype(np.int64)
    cluster[centres] = np.arange(clusters)
    return cluster


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
    refined = _integers("labels", labels).copy()
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


def group_topk(scores: npt.ArrayLike, group: npt.ArrayLike, quota: npt.ArrayLike) -> Integers:
    """Keep the tokens of the highest score in each group.

    Args:
        scores: [V] real.
        group: [V] integers below G; tokens of one group need not be neighbours.
        quota: [G] integers of 0 or more; how many tokens to keep of each group. A group that has fewer keeps
            them all.

    Returns:
        int64 [R]; indices of the kept tokens, ascending. Of equal scores, the token of the lower index is
        kept.

    Raises:
        InvalidValueError: when an argument is malformed, scores are not finite, or a group has no quota.
    """
    values, groups = _scores_and_groups(scores, group)
    quotas = _integers("quota", quota)
    if quotas.min() < 0:
        raise InvalidValueError("quota must not be negative.")
    if groups.max() >= len(quotas):
        raise InvalidValueError(f"group {groups.max()} has no quota: there are {len(quotas)}.")
    kept: list[int] = []
    for number, limit in enumerate(quotas):
        members = np.flatnonzero(groups == number)
        best_first = np.argsort(-values[members], kind="stable")
        kept.extend(members[best_first[:limit]].tolist())
    return np.array(sorted(kept), dtype=np.int64)


def _cluster_tokens(tokens: Floats, config: PruneConfig) -> Integers:
    """Cluster one group's tokens [n, C] -> [n]; a group that keeps all its tokens stays in its order."""
    clusters = int(config.cluster_counts(len(tokens))[-1])
    if clusters >= len(tokens):
        return np.arange(len(tokens), dtype=np.int64)
    return dpc_knn(squared_distances(tokens), clusters, config.neighbours)


def _cluster_means(tokens: Floats, cluster: Integers) -> Floats:
    """Average the tokens [n, C] of each cluster -> [K, C]; no cluster is empty, since it has its centre."""
    return np.stack([tokens[cluster == number].mean(axis=0) for number in range(int(cluster.max()) + 1)])


def _mean_similarity(units: Floats) -> float:
    """Average the cosine similarity over the ordered pairs of different unit vectors [W, C], W > 1."""
    similarity = units @ units.T
    is_pair = ~np.eye(len(units), dtype=np.bool_)
    return float(similarity[is_pair].mean())


def _distance_to_denser(squared: Floats, density: Floats) -> Floats:
    """Return each token's distance to the nearest denser one; for the densest, the largest distance."""
    by_density = np.argsort(-density, kind="stable")
    delta = np.empty(len(density))
    delta[by_density[0]] = squared.max()
    for rank in range(1, len(by_density)):
        token = by_density[rank]
        delta[token] = squared[token, by_density[:rank]].min()
    return np.sqrt(delta)


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


def _scores_and_groups(scores: npt.ArrayLike, group: npt.ArrayLike) -> tuple[Floats, Integers]:
    """Check scores [V] and their groups [V]."""
    values = _real("scores", scores, rank=1)
    groups = _integers("group", group)
    if len(values) != len(groups):
        raise InvalidValueError(f"scores ({len(values)}) and group ({len(groups)}) must be of one length.")
    if groups.min() < 0:
        raise InvalidValueError("group must not be negative.")
    return values, groups


def _real(name: str, value: npt.ArrayLike, rank: int) -> Floats:
    """Check that an array is real, finite, of this rank and not empty, and return it in float64."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InvalidValueError(f"{name} must be real numbers, not {array.dtype}.")
    _check_shape(name, array, rank)
    if not np.isfinite(array).all():
        raise InvalidValueError(f"{name} must be finite: NaN or infinity found.")
    return array.astype(np.float64)


def _integers(name: str, value: npt.ArrayLike) -> Integers:
    """Check that an array is a row of integers and not empty, and return it in int64."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise InvalidValueError(f"{name} must be integers, not {array.dtype}.")
    _check_shape(name, array, rank=1)
    return array.astype(np.int64)


def _check_shape(name: str, array: npt.NDArray[Any], rank: int) -> None:
    if array.ndim != rank:
        raise InvalidValueError(f"{name} must have rank {rank}, not {array.ndim} (shape {array.shape}).")
    if array.size == 0:
        raise InvalidValueError(f"{name} must not be empty (shape {array.shape}).")


def _output_type(given: np.dtype[Any]) -> type[np.floating[Any]]:
    """Answer in float32 what came in half or single precision; float64 keeps its precision."""
    return np.float32 if given in (np.dtype(np.float16), np.dtype(np.float32)) else np.float64
