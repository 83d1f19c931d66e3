"""Density-peak clustering of tokens as ONNX nodes: a building block that merge methods share.

Groups of tokens are rows of one padded table; what depends on the data is left to the operator `DpcKnn`.
The oracle is `prunevid.methods.clustering`.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def squared_distances(op: Any, tokens: ir.Value) -> ir.Value:
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


def cluster_means(op: Any, tokens: ir.Value, cluster: ir.Value) -> ir.Value:
    """Mean token of every cluster, [2T * N, C], in the table's cells; zeros where a row has fewer clusters."""
    slots = op.Range(0, op.Squeeze(op.Shape(cluster, start=1, end=2), [0]), 1)
    member = op.Equal(op.Unsqueeze(cluster, [1]), op.Unsqueeze(slots, [0, 2]))
    weight = op.Cast(member, to=ir.DataType.FLOAT)
    size = op.ReduceSum(weight, [2], keepdims=1)
    mean = op.Div(op.MatMul(weight, tokens), op.Max(size, 1.0))
    return op.Reshape(mean, op.Concat([-1], op.Shape(tokens, start=2, end=3), axis=0))
