"""From a padded table of clusters to the merged sequence, as ONNX nodes: a building block that merge methods share.

Shapes depend on the number of frames alone: there is room for as many tokens as there are patches, and how many are
meant is an output of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from prunevid.export.graphs import counting


@dataclass(frozen=True)
class Sequence:
    """The merged sequence. There are at most as many tokens as patches.

    Attributes:
        cells: int64 [T * N], the table's cell of each token; behind the last token stand zeros.
        first_token: int64 [2T, 1], each row's first token.
    """

    cells: ir.Value
    first_token: ir.Value


def sequence_of(op: Any, features: ir.Value, clusters: ir.Value) -> Sequence:
    """Lay the clusters of a table of groups, 2T rows of N cells, one behind the other.

    Args:
        op: the builder.
        features: [T, N, C], whose patches were clustered.
        clusters: int64 [2T], how many clusters each row has; they stand in its first cells.
    """
    frames, width = op.Shape(features, start=0, end=1), op.Shape(features, start=1, end=2)
    slots = op.Range(0, op.Squeeze(width, [0]), 1)
    in_use = op.Less(op.Unsqueeze(slots, [0]), op.Unsqueeze(clusters, [1]))
    before, before_row = counting.count_before(op, op.Cast(in_use, to=ir.DataType.FLOAT))
    before, first = (op.Cast(count, to=ir.DataType.INT64) for count in (before, before_row))
    cells = counting.list_marked(op, op.Reshape(in_use, [-1]), op.Reshape(before, [-1]), op.Mul(frames, width))
    return Sequence(cells, first)


def place_of_patches(op: Any, cluster: ir.Value, token: ir.Value, row: ir.Value) -> ir.Value:
    """Index of the merged token that each patch went into, int64 [T, N].

    Args:
        op: the builder.
        cluster: int64 [2T, N], the cluster in its row that each cell of the table of groups is in.
        token: int64 [2T, N], the token that each cell went into.
        row: int64 [T, N], the row of the table in which a patch's group stands, at the patch's own column.
    """
    width = op.Shape(cluster, start=1, end=2)
    position = op.Unsqueeze(op.Range(0, op.Squeeze(width, [0]), 1), [0])
    return op.Gather(op.Reshape(token, [-1]), op.Add(op.Mul(row, width), position))
