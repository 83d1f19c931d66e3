"""Segments of similar frames as ONNX nodes: a building block that merge methods share.

The oracle is `prunevid.methods.segments`.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from prunevid.export.graphs import operators
from prunevid.export.graphs.clustering import squared_distances


def segment_frames(op: Any, features: ir.Value, counts: ir.Value, dpc_knn: ir.Function, neighbours: int) -> ir.Value:
    """Contiguous segment of every frame, int64 [T], from clustering the frames' mean tokens.

    Args:
        op: the builder.
        features: float32 [T, N, C].
        counts: the graph's input segment_counts.
        dpc_knn: the operator, of so many `neighbours`.
        neighbours: k of its density.
    """
    frame = op.ReduceMean(features, [1], keepdims=0)
    centred = op.Sub(frame, op.ReduceMean(frame, [0], keepdims=1))
    distances = squared_distances(op, op.Unsqueeze(centred, [0]))
    frames = op.Shape(features, start=0, end=1)
    every = op.Expand(op.Constant(value=ir.tensor([[True]])), op.Concat([1], frames, axis=0))
    count = op.Gather(counts, frames)
    labels = op.call(dpc_knn, distances, every, count, neighbours=neighbours)
    return op.call(operators.refine_segments(op.builder.graph.opset_imports[""]), op.Squeeze(labels, [0]))
