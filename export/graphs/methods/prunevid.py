"""PruneVid's spatio-temporal merge as ONNX nodes: features of T frames in, fewer visual tokens out.

Written for any number of frames T and with shapes that depend on T alone: the groups of tokens that are clustered
together (a segment's static positions, a frame's dynamic ones) are rows of one padded table of 2T rows, in the order
of the merged sequence. What depends on the data is left to the `prunevid` operators. All of it runs in float32.
The oracle is `prunevid.methods.prunevid`. Source: PruneVid (arXiv 2412.16117), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from prunevid.config import PruneConfig
from prunevid.export.graphs import operators
from prunevid.export.graphs.clustering import cluster_means, squared_distances
from prunevid.export.graphs.compaction import place_of_patches, sequence_of
from prunevid.export.graphs.merge import MergedValues
from prunevid.export.graphs.segments import segment_frames
from prunevid.methods.prunevid import NORM_EPSILON


@dataclass(frozen=True)
class _Groups:
    """The padded table of groups: tokens float32 [2T, N, C], valid bool [2T, N], and each frame's and segment's row."""

    tokens: ir.Value
    valid: ir.Value
    static: ir.Value
    static_row: ir.Value
    dynamic_row: ir.Value


def merge(op: Any, features: ir.Value, settings: Mapping[str, ir.Value], prune: PruneConfig) -> MergedValues:
    """Append the merge of features [T, N, C] to the graph behind `op` (`prunevid.export.graphs.merge.MergeGraph`)."""
    neighbours = prune.neighbours
    features = op.Cast(features, to=ir.DataType.FLOAT)
    opset = op.builder.graph.opset_imports[""]
    dpc_knn = operators.dpc_knn(opset, neighbours)
    segment = segment_frames(op, features, settings["segment_counts"], dpc_knn, neighbours)
    groups = _groups(op, features, segment, settings["static_threshold"])
    count = op.ReduceSum(op.Cast(groups.valid, to=ir.DataType.INT64), [1], keepdims=0)
    clusters = op.Gather(settings["cluster_counts"], count)
    distances = squared_distances(op, op.Sub(groups.tokens, op.ReduceMean(features, [0, 1], keepdims=1)))
    cluster = op.call(dpc_knn, distances, groups.valid, clusters, neighbours=neighbours)
    sequence = sequence_of(op, features, clusters)
    return MergedValues(
        tokens=op.Gather(cluster_means(op, groups.tokens, cluster), sequence.cells),
        group=op.Div(sequence.cells, op.Shape(cluster, start=1, end=2)),
        count=op.ReduceSum(clusters, [0], keepdims=1),
        patch_to_token=_patch_to_token(op, groups, segment, cluster, sequence.first_token),
        segment=segment,
    )


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
    unit = op.Div(features, op.Max(op.Sqrt(square), NORM_EPSILON))
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


def _patch_to_token(op: Any, groups: _Groups, segment: ir.Value, cluster: ir.Value, first_token: ir.Value) -> ir.Value:
    """Index of the merged token that each patch went into, int64 [T, N]."""
    token = op.Add(cluster, first_token)
    static_row = op.Unsqueeze(op.Gather(groups.static_row, segment), [1])
    dynamic_row = op.Unsqueeze(groups.dynamic_row, [1])
    return place_of_patches(op, cluster, token, op.Where(op.Gather(groups.static, segment), static_row, dynamic_row))
