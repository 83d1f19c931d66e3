"""PruneVid's spatio-temporal merge as ONNX nodes: features of T frames in, fewer visual tokens out.

Written for any number of frames T and with shapes that depend on T alone: the groups of tokens that are clustered
together (a segment's static positions, a frame's dynamic ones) are rows of one padded table of 2T rows, in the order
of the merged sequence. What depends on the data is left to the ``prunevid`` operators. All of it runs in float32.
The oracle is :func:`prunevid.methods.merging.merge_tokens`. Source: PruneVid (arXiv 2412.16117), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from prunevid.export.graphs import counting, operators
from prunevid.export.graphs.dialects import add_output

# The graph is plain operators in both dialects, as the tower of vision_merge.
OPSET = 20
# Keeps the direction of an all-zero token defined; the reference uses the same value.
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class MergeSettings:
    """Graph inputs that carry the pruning settings, so that one graph serves every setting.

    segment_counts int64 [frames + 1] and cluster_counts int64 [tokens + 1] are look-up tables (see
    ``PruneConfig``): entry n is the count for n items. static_threshold is a float32 scalar.
    """

    segment_counts: ir.Value
    cluster_counts: ir.Value
    static_threshold: ir.Value


@dataclass(frozen=True)
class MergedValues:
    """What the merge yields.

    tokens float32 [T * N, C] and group int64 [T * N], of which the first ``count`` int64 [1] are meant; patch_to_token
    int64 [T, N], segment int64 [T].
    """

    tokens: ir.Value
    group: ir.Value
    count: ir.Value
    patch_to_token: ir.Value
    segment: ir.Value


@dataclass(frozen=True)
class FeatureShape:
    """Features of one frame: so many tokens and channels, of the bundle's element type."""

    tokens: int
    channels: int
    dtype: ir.DataType

    def of(self, frames: str) -> list[int | str]:
        """Shape of the features of ``frames`` frames."""
        return [frames, self.tokens, self.channels]


@dataclass(frozen=True)
class _Groups:
    """The padded table of groups: tokens float32 [2T, N, C], valid bool [2T, N], and each frame's and segment's row."""

    tokens: ir.Value
    valid: ir.Value
    static: ir.Value
    static_row: ir.Value
    dynamic_row: ir.Value


@dataclass(frozen=True)
class _Sequence:
    """The merged sequence: the table's cell of each token, int64 [T * N], and each row's first token, int64 [2T, 1].

    Behind the last token stand zeros: there are at most as many tokens as patches.
    """

    cells: ir.Value
    first_token: ir.Value


def build_merge(shape: FeatureShape, neighbours: int) -> ir.Model:
    """The merge graph: what vision_merge does behind its tower, for features that are there already. No weights.

    Inputs: features [T, N, C] and the pruning settings segment_counts, cluster_counts, static_threshold. Outputs:
    video_tokens [T * N, C] and token_group int64 [T * N], of which the first token_count int64 [1] are meant,
    patch_to_token int64 [T, N], frame_segment int64 [T].
    """
    graph, op = operators.new_graph("merge", OPSET, (operators.DOMAIN,))
    features = op.builder.input("features", shape.dtype, shape.of("frames"))
    add_merged(op, features, declare_settings(op, shape.tokens), shape, neighbours)
    return operators.to_model(graph, op)


def declare_settings(op: Any, tokens: int) -> MergeSettings:
    """Declare the graph inputs of the settings, for frames of so many tokens."""
    return MergeSettings(
        segment_counts=op.builder.input("segment_counts", ir.DataType.INT64, ["frame_counts"]),
        cluster_counts=op.builder.input("cluster_counts", ir.DataType.INT64, [tokens + 1]),
        static_threshold=op.builder.input("static_threshold", ir.DataType.FLOAT, []),
    )


def add_merged(op: Any, features: ir.Value, settings: MergeSettings, shape: FeatureShape, neighbours: int) -> None:
    """Append the merge of all frames' features, and declare what it yields as the graph's outputs."""
    merged = merge(op, features, settings, neighbours)
    int64 = ir.DataType.INT64
    add_output(op, op.Cast(merged.tokens, to=shape.dtype), "video_tokens", shape.dtype, ["patches", shape.channels])
    add_output(op, merged.group, "token_group", int64, ["patches"])
    add_output(op, merged.count, "token_count", int64, [1])
    add_output(op, merged.patch_to_token, "patch_to_token", int64, ["frames", shape.tokens])
    add_output(op, merged.segment, "frame_segment", int64, ["frames"])


def merge(op: Any, features: ir.Value, settings: MergeSettings, neighbours: int) -> MergedValues:
    """Append the merge of features [T, N, C] to the graph behind ``op``; returns the merged tokens' values."""
    features = op.Cast(features, to=ir.DataType.FLOAT)
    opset = op.builder.graph.opset_imports[""]
    dpc_knn = operators.dpc_knn(opset, neighbours)
    segment = _segments(op, features, settings, dpc_knn, neighbours)
    groups = _groups(op, features, segment, settings.static_threshold)
    count = op.ReduceSum(op.Cast(groups.valid, to=ir.DataType.INT64), [1], keepdims=0)
    clusters = op.Gather(settings.cluster_counts, count)
    distances = _squared_distances(op, op.Sub(groups.tokens, op.ReduceMean(features, [0, 1], keepdims=1)))
    cluster = op.call(dpc_knn, distances, groups.valid, clusters, neighbours=neighbours)
    sequence = _sequence(op, features, clusters)
    return MergedValues(
        tokens=op.Gather(_cluster_means(op, groups.tokens, cluster), sequence.cells),
        group=op.Div(sequence.cells, op.Shape(cluster, start=1, end=2)),
        count=op.ReduceSum(clusters, [0], keepdims=1),
        patch_to_token=_patch_to_token(op, groups, segment, cluster, sequence.first_token),
        segment=segment,
    )


def _segments(op: Any, features: ir.Value, settings: MergeSettings, dpc_knn: ir.Function, neighbours: int) -> ir.Value:
    """Contiguous segment of every frame, int64 [T], from clustering the frames' mean tokens."""
    frame = op.ReduceMean(features, [1], keepdims=0)
    centred = op.Sub(frame, op.ReduceMean(frame, [0], keepdims=1))
    distances = _squared_distances(op, op.Unsqueeze(centred, [0]))
    frames = op.Shape(features, start=0, end=1)
    every = op.Expand(op.Constant(value=ir.tensor([[True]])), op.Concat([1], frames, axis=0))
    count = op.Gather(settings.segment_counts, frames)
    labels = op.call(dpc_knn, distances, every, count, neighbours=neighbours)
    return op.call(operators.refine_segments(op.builder.graph.opset_imports[""]), op.Squeeze(labels, [0]))


def _squared_distances(op: Any, tokens: ir.Value) -> ir.Value:
    """Squared euclidean distances divided by C, [G, N, N], of tokens [G, N, C] that are centred near zero.

    By a Gram matrix, which keeps the work in one matmul; centring is what keeps its float32 cancellation small.
    """
    gram = op.MatMul(tokens, op.Transpose(tokens, perm=[0, 2, 1]))
    norm = op.ReduceSumSquare(tokens, [2], keepdims=1)
    squared = op.Sub(op.Add(norm, op.Transpose(norm, perm=[0, 2, 1])), op.Mul(gram, 2.0))
    channels = op.Cast(op.Shape(tokens, start=2, end=3), to=ir.DataType.FLOAT)
    index = op.Range(0, op.Squeeze(op.Shape(tokens, start=1, end=2), [0]), 1)
    itself = op.Equal(op.Unsqueeze(index, [0]), op.Unsqueeze(index, [1]))
    return op.Where(itself, 0.0, op.Div(op.Max(squared, 0.0), channels))


def _groups(op: Any, features: ir.Value, segment: ir.Value, threshold: ir.Value) -> _Groups:
    """Split every segment into its static positions, averaged over its frames, and its frames' dynamic tokens.

    Rows are numbered in sequence order: the static group of segment s that begins at frame f is row f + s, frame t
    of segment s is row t + s + 1. Segment numbers that are not in use take the rows left over at the end.
    """
    frames = op.Shape(segment)
    index = op.Range(0, op.Squeeze(frames, [0]), 1)
    in_segment = op.Equal(op.Unsqueeze(segment, [0]), op.Unsqueeze(index, [1]))
    weight = op.Cast(in_segment, to=ir.DataType.FLOAT)
    static = _static(op, features, weight, threshold)
    size = op.ReduceSum(weight, [1], keepdims=0)
    mean = op.Div(_sum_over_frames(op, weight, features), op.Max(op.Unsqueeze(size, [1, 2]), 1.0))

    earlier_segment = op.Less(op.Unsqueeze(segment, [0]), op.Unsqueeze(index, [1]))
    first_frame = op.ReduceSum(op.Cast(earlier_segment, to=ir.DataType.INT64), [1], keepdims=0)
    static_row = op.Add(first_frame, index)
    dynamic_row = op.Add(op.Add(index, segment), 1)
    row_of_source = op.Concat(static_row, dynamic_row, axis=0)
    rows = op.Range(0, op.Squeeze(op.Shape(row_of_source), [0]), 1)
    source_of_row = op.ScatterElements(rows, row_of_source, rows, axis=0)

    dynamic = op.Not(op.Gather(static, segment))
    tokens = op.Gather(op.Concat(mean, features, axis=0), source_of_row)
    valid = op.Gather(op.Concat(static, dynamic, axis=0), source_of_row)
    return _Groups(tokens, valid, static, static_row, dynamic_row)


def _static(op: Any, features: ir.Value, weight: ir.Value, threshold: ir.Value) -> ir.Value:
    """Static positions, bool [T, N] by segment number: mean cosine over ordered pairs of frames above the threshold.

    The mean over W(W-1) ordered pairs is (|sum of unit vectors|^2 - sum of their squares) / (W(W-1)), which one
    matmul gives for all segments at once.
    """
    square = op.ReduceSumSquare(features, [2], keepdims=1)
    unit = op.Div(features, op.Max(op.Sqrt(square), _SMALLEST_NORM))
    own = op.MatMul(weight, op.ReduceSumSquare(unit, [2], keepdims=0))
    together = op.ReduceSumSquare(_sum_over_frames(op, weight, unit), [2], keepdims=0)
    size = op.ReduceSum(weight, [1], keepdims=1)
    pairs = op.Mul(size, op.Sub(size, 1.0))
    similarity = op.Div(op.Sub(together, own), op.Max(pairs, 1.0))
    return op.And(op.Greater(similarity, threshold), op.Greater(pairs, 0.0))


def _sum_over_frames(op: Any, weight: ir.Value, values: ir.Value) -> ir.Value:
    """Weighted sums over frames: weight [S, T] and values [T, N, C] to [S, N, C]."""
    flat = op.Reshape(values, op.Concat(op.Shape(values, start=0, end=1), [-1], axis=0))
    return op.Reshape(op.MatMul(weight, flat), op.Shape(values))


def _cluster_means(op: Any, tokens: ir.Value, cluster: ir.Value) -> ir.Value:
    """Mean token of every cluster, [2T * N, C], in the table's cells; zeros where a row has fewer clusters."""
    slots = op.Range(0, op.Squeeze(op.Shape(cluster, start=1, end=2), [0]), 1)
    member = op.Equal(op.Unsqueeze(cluster, [1]), op.Unsqueeze(slots, [0, 2]))
    weight = op.Cast(member, to=ir.DataType.FLOAT)
    size = op.ReduceSum(weight, [2], keepdims=1)
    mean = op.Div(op.MatMul(weight, tokens), op.Max(size, 1.0))
    return op.Reshape(mean, op.Concat([-1], op.Shape(tokens, start=2, end=3), axis=0))


def _sequence(op: Any, features: ir.Value, clusters: ir.Value) -> _Sequence:
    """Lay the table's clusters, so many in each row, one behind the other."""
    frames, width = op.Shape(features, start=0, end=1), op.Shape(features, start=1, end=2)
    slots = op.Range(0, op.Squeeze(width, [0]), 1)
    in_use = op.Less(op.Unsqueeze(slots, [0]), op.Unsqueeze(clusters, [1]))
    before, before_row = counting.count_before(op, op.Cast(in_use, to=ir.DataType.FLOAT))
    before, first = (op.Cast(count, to=ir.DataType.INT64) for count in (before, before_row))
    cells = counting.list_marked(op, op.Reshape(in_use, [-1]), op.Reshape(before, [-1]), op.Mul(frames, width))
    return _Sequence(cells, first)


def _patch_to_token(op: Any, groups: _Groups, segment: ir.Value, cluster: ir.Value, first_token: ir.Value) -> ir.Value:
    """Index of the merged token that each patch went into, int64 [T, N]."""
    token = op.Add(cluster, first_token)
    static_row = op.Unsqueeze(op.Gather(groups.static_row, segment), [1])
    dynamic_row = op.Unsqueeze(groups.dynamic_row, [1])
    row = op.Where(op.Gather(groups.static, segment), static_row, dynamic_row)
    width = op.Shape(cluster, start=1, end=2)
    position = op.Unsqueeze(op.Range(0, op.Squeeze(width, [0]), 1), [0])
    return op.Gather(op.Reshape(token, [-1]), op.Add(op.Mul(row, width), position))
