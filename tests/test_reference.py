import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from drawn import configs, seeds, videos
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid import PruneConfig, PruneVidError, merge_tokens, select_tokens
from prunevid.methods.clustering import dpc_knn, squared_distances
from prunevid.methods.prunevid import dynamic_group, static_group, static_positions
from prunevid.methods.segments import refine_segments, segment_frames
from prunevid.methods.selection import group_topk

Array = npt.NDArray[Any]

prove = settings(derandomize=True, deadline=None, max_examples=100)


# --- merging -----------------------------------------------------------------------------------------------


@prove
@given(videos(), configs())
def test_every_patch_has_one_token_and_every_token_a_patch(video: Array, config: PruneConfig) -> None:
    merged = merge_tokens(video, config)
    assert merged.patch_to_token.shape == video.shape[:2]
    assert merged.patch_to_token.dtype == merged.group.dtype == merged.segments.dtype == np.int64
    assert np.array_equal(np.unique(merged.patch_to_token), np.arange(len(merged.tokens)))
    assert len(merged.group) == len(merged.tokens)


@prove
@given(videos(), configs())
def test_a_token_is_the_mean_of_its_patches(video: Array, config: PruneConfig) -> None:
    # A static position counts once for each frame of its segment, which leaves the mean as it is.
    merged = merge_tokens(video, config)
    for number, token in enumerate(merged.tokens):
        expected = video[merged.patch_to_token == number].mean(axis=0)
        np.testing.assert_allclose(token, expected, rtol=1e-12, atol=1e-12)


@prove
@given(videos(), configs())
def test_groups_are_where_their_patches_are(video: Array, config: PruneConfig) -> None:
    merged = merge_tokens(video, config)
    segments = segment_frames(video, config)
    is_static = static_positions(video, segments, config.static_threshold)
    first_frame = np.searchsorted(segments, segments)
    frames = np.arange(len(video))
    static_groups, dynamic_groups = first_frame + segments, frames + segments + 1
    expected = np.where(is_static[segments], static_groups[:, np.newaxis], dynamic_groups[:, np.newaxis])
    for frame, segment in enumerate(segments.tolist()):
        assert static_groups[frame] == static_group(int(first_frame[frame]), segment)
        assert dynamic_groups[frame] == dynamic_group(frame, segment)
    assert np.array_equal(merged.segments, segments)
    assert np.array_equal(merged.group[merged.patch_to_token], expected)
    assert (np.diff(merged.group) >= 0).all()
    assert merged.group.max() < len(video) + len(is_static)


@prove
@given(videos(), configs())
def test_group_sizes_are_looked_up(video: Array, config: PruneConfig) -> None:
    merged = merge_tokens(video, config)
    counts = config.cluster_counts(video.shape[1])
    patch_group = merged.group[merged.patch_to_token]
    for group in np.unique(merged.group):
        positions = (patch_group == group).any(axis=0).sum()
        assert (merged.group == group).sum() == counts[positions]


@prove
@given(videos(), configs())
def test_merging_is_deterministic_and_leaves_its_input_alone(video: Array, config: PruneConfig) -> None:
    before = video.copy()
    first, second = merge_tokens(video, config), merge_tokens(video, config)
    assert np.array_equal(video, before)
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.patch_to_token, second.patch_to_token)


@prove
@given(videos(), st.sampled_from([np.float16, np.float32, np.float64]))
def test_disabled_is_the_identity(video: Array, dtype: type[np.floating[Any]]) -> None:
    config = PruneConfig.disabled()
    features = video.astype(dtype)
    merged = merge_tokens(features, config)
    frames, tokens, channels = video.shape
    assert np.array_equal(merged.tokens, features.reshape(-1, channels))
    assert np.array_equal(merged.patch_to_token.ravel(), np.arange(frames * tokens))
    scores = np.zeros(len(merged.group))
    assert np.array_equal(select_tokens(scores, merged.group, config), np.arange(len(scores)))


@prove
@given(videos(), configs())
def test_half_precision_is_computed_as_its_exact_values(video: Array, config: PruneConfig) -> None:
    half = video.astype(np.float16)
    merged, exact = merge_tokens(half, config), merge_tokens(half.astype(np.float64), config)
    assert merged.tokens.dtype == np.float32
    assert exact.tokens.dtype == np.float64
    assert np.array_equal(merged.tokens, exact.tokens.astype(np.float32))
    assert np.array_equal(merged.patch_to_token, exact.patch_to_token)
    assert merge_tokens(video.astype(np.float32), config).tokens.dtype == np.float32


@prove
@given(seeds, st.integers(2, 10))
def test_order_of_channels_does_not_matter(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    video = np.repeat(rng.normal(size=(2, 20, channels)), 6, axis=0) + 0.3 * rng.normal(size=(12, 20, channels))
    order = rng.permutation(channels)
    merged, permuted = merge_tokens(video, PruneConfig()), merge_tokens(video[..., order], PruneConfig())
    assert np.array_equal(merged.patch_to_token, permuted.patch_to_token)
    assert np.array_equal(merged.group, permuted.group)
    np.testing.assert_allclose(merged.tokens[:, order], permuted.tokens, rtol=1e-12)


@prove
@given(videos(), configs())
def test_flipping_signs_flips_the_tokens(video: Array, config: PruneConfig) -> None:
    merged, flipped = merge_tokens(video, config), merge_tokens(-video, config)
    assert np.array_equal(merged.patch_to_token, flipped.patch_to_token)
    assert np.array_equal(-merged.tokens, flipped.tokens)


def test_one_frame_is_all_dynamic() -> None:
    video = np.ones((1, 20, 4), dtype=np.float32)
    merged = merge_tokens(video, PruneConfig())
    assert merged.segments.tolist() == [0]
    assert merged.group.tolist() == [1] * 10
    assert (merged.tokens == 1).all()


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7])
def test_fewer_frames_than_neighbours(frames: int) -> None:
    video = np.random.default_rng(frames).normal(size=(frames, 5, 3))
    merged = merge_tokens(video, PruneConfig())
    assert merged.segments.tolist() == [0] * frames
    assert len(np.unique(merged.patch_to_token)) == len(merged.tokens)


def test_one_token_per_frame() -> None:
    video = np.array([[[1.0, 0.0]], [[1.0, 0.1]], [[1.0, 0.2]]])
    merged = merge_tokens(video, PruneConfig())
    np.testing.assert_allclose(merged.tokens, [[1.0, 0.1]])
    assert merged.group.tolist() == [0]
    assert merged.patch_to_token.tolist() == [[0], [0], [0]]


def test_equal_frames_become_one_frame() -> None:
    frame = np.random.default_rng(0).normal(size=(30, 8))
    merged = merge_tokens(np.repeat(frame[np.newaxis], 16, axis=0), PruneConfig())
    assert merged.segments.tolist() == [0] * 16
    assert merged.group.tolist() == [0] * 15
    assert (merged.patch_to_token == merged.patch_to_token[0]).all()


def test_zero_vectors_are_dynamic() -> None:
    video = np.zeros((4, 3, 2))
    video[:, 0] = 1
    merged = merge_tokens(video, PruneConfig())
    assert merged.group.tolist() == [0] + [g for frame in range(4) for g in [frame + 1] * 2]


def test_static_positions_by_hand() -> None:
    # Two scenes of two frames; position 0 holds still in the first scene, nothing does in the second.
    still, up, down, right, left = [3.0, 4.0], [0.0, 9.0], [0.0, -9.0], [90.0, 0.0], [-90.0, 0.0]
    video = np.array([[still, up], [still, down], [right, right], [left, left]])
    assert static_positions(video, [0, 0, 1, 1], 0.8).tolist() == [[True, False], [False, False]]
    assert static_positions(video, [0, 1, 2, 3], 0.8).tolist() == [[False, False]] * 4
    # A mean of exactly the threshold is not above it.
    assert not static_positions(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), [0, 0], 0.0).any()


def test_group_numbers_by_hand() -> None:
    frames = np.array([[9.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 9.0]] * 3)
    video = np.repeat(frames[:, np.newaxis], 2, axis=1)
    video[3:, 1] = [[0.0, 0.5, 0.1], [0.0, -0.5, 0.1], [0.0, 0.5, 0.1]]
    merged = merge_tokens(video, PruneConfig(segment_ratio=0.34))
    assert merged.segments.tolist() == [0, 0, 0, 1, 1, 1]
    # Segment 0 is all static (group 0, with 1 to 3 empty); segment 1 has static 4 and dynamic 5, 6, 7.
    assert merged.group.tolist() == [0, 0, 4, 5, 6, 7]
    assert merged.patch_to_token.tolist() == [[0, 1]] * 3 + [[2, 3], [2, 4], [2, 5]]


@pytest.mark.parametrize("cuts", [(8, 16), (6, 18), (10, 14), (12, 21)])
def test_two_hard_cuts_between_still_scenes(cuts: tuple[int, int]) -> None:
    scenes = np.random.default_rng(3).normal(size=(3, 9, 16))
    scene_of = np.searchsorted(cuts, np.arange(24), side="right")
    merged = merge_tokens(scenes[scene_of], PruneConfig())
    assert np.array_equal(merged.segments, scene_of)
    assert len(merged.tokens) == 27
    np.testing.assert_allclose(merged.tokens, scenes.reshape(27, 16))


@pytest.mark.parametrize("seed", range(5))
def test_two_hard_cuts_between_noisy_scenes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene_of = np.searchsorted((5, 13), np.arange(24), side="right")
    video = rng.normal(size=(3, 9, 16))[scene_of] + 0.01 * rng.normal(size=(24, 9, 16))
    assert np.array_equal(segment_frames(video, PruneConfig(segment_ratio=3 / 24)), scene_of)


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (np.full((2, 3, 4), np.nan), "finite"),
        (np.full((2, 3, 4), np.inf, dtype=np.float16), "finite"),
        (np.zeros((3, 4)), "rank 3, not 2"),
        (np.zeros((1, 2, 3, 4)), "rank 3, not 4"),
        (np.zeros((0, 3, 4)), "empty"),
        (np.zeros((2, 0, 4)), "empty"),
        (np.zeros((2, 3, 0)), "empty"),
        (np.zeros((2, 3, 4), dtype=np.complex128), "real numbers, not complex128"),
        (np.array([[["a"]]]), "real numbers"),
    ],
)
def test_bad_features_are_refused(features: Array, complaint: str) -> None:
    with pytest.raises(PruneVidError, match=f"^features must .*{complaint}.*\\.$"):
        merge_tokens(features, PruneConfig())


# --- static positions --------------------------------------------------------------------------------------


@prove
@given(videos(), st.sampled_from([-0.5, 0.0, 0.5, 0.8]))
def test_similarity_is_the_mean_over_ordered_pairs(video: Array, threshold: float) -> None:
    segments = np.zeros(len(video), dtype=np.int64)
    found = static_positions(video, segments, threshold)[0]
    for position in range(video.shape[1]):
        tokens = video[:, position]
        norms = [math.sqrt(sum(float(x) ** 2 for x in token)) for token in tokens]
        cosines = [
            float(np.dot(tokens[a], tokens[b])) / (norms[a] * norms[b]) if norms[a] and norms[b] else 0.0
            for a in range(len(tokens))
            for b in range(len(tokens))
            if a != b
        ]
        mean = sum(cosines) / len(cosines) if cosines else -math.inf
        if abs(mean - threshold) > 1e-9:
            assert found[position] == (mean > threshold)


@prove
@given(videos(), seeds)
def test_brightness_does_not_make_a_position_dynamic(video: Array, seed: int) -> None:
    # Powers of two scale without rounding, so that not even a tie can change sides.
    scale = 2.0 ** np.random.default_rng(seed).integers(-3, 4, size=(*video.shape[:2], 1))
    segments = np.zeros(len(video), dtype=np.int64)
    assert np.array_equal(static_positions(video, segments, 0.8), static_positions(video * scale, segments, 0.8))


@pytest.mark.parametrize("segments", [[0, 0], [0, 2, 2], [1, 1, 1], [0, 1, 0], [-1, 0, 0]])
def test_bad_segments_are_refused(segments: list[int]) -> None:
    with pytest.raises(PruneVidError, match="segments must hold"):
        static_positions(np.ones((3, 2, 2)), segments, 0.8)


# --- clustering --------------------------------------------------------------------------------------------


def brute_force_dpc_knn(squared: list[list[float]], clusters: int, neighbours: int) -> list[int]:
    """The same rules with nothing but loops, for one group."""
    tokens = range(len(squared))
    if clusters >= len(squared):
        return list(tokens)
    density = []
    for row in squared:
        nearest = sorted(row)[:neighbours]
        density.append(math.exp(-math.fsum(nearest) / len(nearest)))
    score = []
    for token in tokens:
        nearest_denser = math.inf
        for other in tokens:
            is_denser = density[other] > density[token] or (density[other] == density[token] and other < token)
            if is_denser:
                nearest_denser = min(nearest_denser, math.sqrt(squared[token][other]))
        if nearest_denser == math.inf:
            nearest_denser = max(math.sqrt(value) for row in squared for value in row)
        score.append(density[token] * nearest_denser)
    centres = sorted(tokens, key=lambda token: (-score[token], token))[:clusters]
    return [
        centres.index(token)
        if token in centres
        else min(range(clusters), key=lambda number: (squared[token][centres[number]], number))
        for token in tokens
    ]


@prove
@given(seeds, st.integers(1, 30), st.integers(1, 4), st.integers(1, 32), st.integers(1, 9), st.booleans())
def test_clusters_equal_brute_force(
    seed: int, count: int, channels: int, clusters: int, neighbours: int, tied: bool
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 3, size=(count, channels)) if tied else rng.normal(size=(count, channels))
    squared = squared_distances(points)
    expected = brute_force_dpc_knn(squared.tolist(), clusters, neighbours)
    assert dpc_knn(squared, clusters, neighbours).tolist() == expected


@prove
@given(seeds, st.integers(2, 20), st.integers(1, 20))
def test_no_cluster_is_empty(seed: int, count: int, clusters: int) -> None:
    points = np.random.default_rng(seed).integers(0, 2, size=(count, 2))
    found = dpc_knn(squared_distances(points), clusters)
    assert np.unique(found).tolist() == list(range(min(clusters, count)))


@pytest.mark.parametrize(
    ("line", "clusters", "neighbours", "expected"),
    [
        # Two heaps, with token 1 and token 4 in their middle, equally dense: 1 counts as the densest, and its
        # delta is the largest distance, 12; that of 4 is 10, its distance to 1; the others' are 1.
        ([0.0, 1.0, 2.0, 10.0, 11.0, 12.0], 2, 3, [0, 0, 0, 1, 1, 1]),
        # Everything in one place: all densities and scores tie, so the first tokens are the centres,
        # each keeps its own cluster, and the rest joins cluster 0.
        ([5.0, 5.0, 5.0, 5.0], 2, 7, [0, 1, 0, 0]),
        # Two tokens, one cluster.
        ([0.0, 3.0], 1, 7, [0, 0]),
        # As many clusters as tokens: left in their order, whatever their density.
        ([9.0, 0.0, 0.1], 3, 2, [0, 1, 2]),
        ([9.0, 0.0, 0.1], 8, 2, [0, 1, 2]),
        # All tie in density, so each has its delta from those before it: 7 (the largest), 1, 5, 1.
        ([0.0, 1.0, 6.0, 7.0], 2, 2, [0, 0, 1, 1]),
        # A token halfway between two centres joins the lower cluster number.
        ([0.0, 0.0, 0.0, 2.0, 4.0, 4.0, 4.0], 2, 3, [0, 0, 0, 0, 1, 1, 1]),
        # Clusters are numbered by score, not by place: the densest heap is the last here.
        ([0.0, 1.0, 10.0, 10.0, 10.0], 2, 3, [1, 1, 0, 0, 0]),
    ],
)
def test_clusters_by_hand(line: list[float], clusters: int, neighbours: int, expected: list[int]) -> None:
    squared = squared_distances(np.array(line)[:, np.newaxis])
    assert dpc_knn(squared, clusters, neighbours).tolist() == expected


@prove
@given(seeds, st.integers(2, 20))
def test_distances_are_symmetric_and_do_not_depend_on_the_origin(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).integers(-8, 8, size=(count, 4)).astype(np.float64)
    squared = squared_distances(points)
    assert np.array_equal(squared, squared.T)
    assert (np.diag(squared) == 0).all()
    assert np.array_equal(squared, squared_distances(points + 1000))
    assert squared[0, 1] == ((points[0] - points[1]) ** 2).sum() / 4


@pytest.mark.parametrize(
    ("squared", "clusters", "neighbours", "complaint"),
    [
        ([[0.0, 1.0]], 1, 7, "square"),
        ([[0.0, -1.0], [1.0, 0.0]], 1, 7, "negative"),
        ([[0.0, np.nan], [1.0, 0.0]], 1, 7, "finite"),
        ([[0.0]], 0, 7, "clusters \\(0\\)"),
        ([[0.0]], 1, 0, "neighbours \\(0\\)"),
        (np.zeros((0, 0)), 1, 7, "empty"),
    ],
)
def test_bad_distances_are_refused(squared: npt.ArrayLike, clusters: int, neighbours: int, complaint: str) -> None:
    with pytest.raises(PruneVidError, match=complaint):
        dpc_knn(squared, clusters, neighbours)


# --- segments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # Contiguous already; labels are renumbered in order.
        ([4, 4, 4, 1, 1], [0, 0, 0, 1, 1]),
        # One frame, or nothing but single frames: one segment.
        ([5], [0]),
        ([0, 1, 2, 0, 1], [0, 0, 0, 0, 0]),
        # Between two as long: left.
        ([0, 0, 1, 2, 2], [0, 0, 0, 1, 1]),
        # The right is longer.
        ([0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1]),
        # The left is longer.
        ([0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 1, 1]),
        # Dissolved at the beginning and at the end: only one neighbour.
        ([1, 0, 0], [0, 0, 0]),
        ([2, 1, 0, 0, 3, 3], [0, 0, 0, 0, 1, 1]),
        ([0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1]),
        ([0, 0, 0, 1, 1, 2, 3], [0, 0, 0, 1, 1, 1, 1]),
        # The shorter run of a label is dissolved, though it is longer than one frame.
        ([0, 0, 0, 1, 0, 0, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1]),
        ([2, 2, 0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]),
        # Both runs of 0 are its longest; what lies between joins them, and they become one segment.
        ([0, 0, 1, 0, 0], [0, 0, 0, 0, 0]),
        # Both are kept, and stay apart.
        ([0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 2, 2]),
        # Several frames between: each goes on the side that the first went to.
        ([0, 0, 3, 4, 1, 1], [0, 0, 0, 0, 1, 1]),
        ([0, 0, 3, 4, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]),
        # Label 1 had 3 frames and gained one on its left; so it ties with the 4 to its right, and wins.
        ([0, 0, 9, 1, 1, 1, 8, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]),
        # Two runs of 0 and the frame between them are one run of 5 when the next dissolved frame looks left.
        ([0, 0, 5, 0, 0, 6, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_segments_by_hand(labels: list[int], expected: list[int]) -> None:
    found = refine_segments(labels)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@prove
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_segments_are_contiguous_and_longer_than_a_frame(labels: list[int]) -> None:
    segments = refine_segments(labels).tolist()
    assert segments[0] == 0
    assert all(after - before in (0, 1) for before, after in pairwise(segments))
    assert len(labels) == 1 or min(segments.count(number) for number in set(segments)) > 1


@prove
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.permutations(range(5)))
def test_names_of_labels_do_not_matter(labels: list[int], names: list[int]) -> None:
    renamed = [names[label] for label in labels]
    assert np.array_equal(refine_segments(labels), refine_segments(renamed))


@prove
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_refined_segments_stay_as_they_are(labels: list[int]) -> None:
    segments = refine_segments(labels)
    assert np.array_equal(refine_segments(segments), segments)


@pytest.mark.parametrize("labels", [[], [[0, 1]], [0.5, 1.0]])
def test_bad_labels_are_refused(labels: npt.ArrayLike) -> None:
    with pytest.raises(PruneVidError, match="^labels must"):
        refine_segments(np.array(labels))


# --- selection ---------------------------------------------------------------------------------------------


@prove
@given(seeds, st.integers(1, 60), st.integers(1, 8), configs(), st.booleans())
def test_selection_keeps_each_quota_of_the_best(
    seed: int, count: int, groups: int, config: PruneConfig, tied: bool
) -> None:
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, groups, size=count))
    scores = rng.integers(0, 4, size=count) / 4 if tied else rng.random(count)
    kept = select_tokens(scores, group, config)
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    pools = (
        [np.arange(count)]
        if config.selection == "global"
        else [np.flatnonzero(group == number) for number in range(groups)]
    )
    for pool in pools:
        best_first = sorted(pool.tolist(), key=lambda token: (-scores[token], token))
        expected = best_first[: int(len(pool) * config.keep_ratio)]
        assert np.intersect1d(kept, pool).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("scores", "group", "quota", "expected"),
    [
        ([0.1, 0.9, 0.5], [0, 0, 0], [2], [1, 2]),
        ([0.5, 0.5, 0.5], [0, 0, 0], [2], [0, 1]),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], [1, 1], [2, 3]),
        ([0.4, 0.3, 0.2, 0.1], [0, 1, 0, 1], [1, 2], [0, 1, 3]),
        ([0.1, 0.2], [0, 2], [1, 5, 0], [0]),
        ([0.1, 0.2], [1, 1], [3, 3], [0, 1]),
        ([0.1, 0.2], [0, 0], [0], []),
        ([-0.1, -0.2, 0.0, -0.0], [0, 0, 0, 0], [1], [2]),
    ],
)
def test_topk_by_hand(scores: list[float], group: list[int], quota: list[int], expected: list[int]) -> None:
    found = group_topk(scores, group, quota)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_small_groups_may_keep_nothing() -> None:
    assert select_tokens([0.3, 0.2, 0.9], [0, 1, 1], PruneConfig()).tolist() == []
    assert select_tokens([0.3, 0.2, 0.9], [0, 1, 1], PruneConfig(selection="global")).tolist() == [2]


@pytest.mark.parametrize(
    ("scores", "group", "complaint"),
    [
        ([np.nan, 0.1], [0, 0], "scores must be finite"),
        ([0.1, 0.2], [0], "one length"),
        ([0.1, 0.2], [0, -1], "group must not be negative"),
        ([0.1, 0.2], [0.0, 1.0], "group must be integers"),
        ([[0.1, 0.2]], [0, 0], "scores must have rank 1"),
        ([], [], "must not be empty"),
    ],
)
def test_bad_scores_are_refused(scores: npt.ArrayLike, group: npt.ArrayLike, complaint: str) -> None:
    with pytest.raises(PruneVidError, match=complaint):
        select_tokens(np.array(scores), np.array(group), PruneConfig())


def test_bad_quotas_are_refused() -> None:
    with pytest.raises(PruneVidError, match="group 2 has no quota: there are 2"):
        group_topk([0.1, 0.2], [0, 2], [1, 1])
    with pytest.raises(PruneVidError, match="quota must not be negative"):
        group_topk([0.1, 0.2], [0, 0], [-1])
