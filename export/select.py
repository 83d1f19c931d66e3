"""The select graph: keep the visual tokens that the question attends to, and cut hidden states and KV to match.

The oracle is :func:`prunevid.reference.select_tokens`. Source: PruneVid (arXiv 2412.16117), section 3.3.
"""

from __future__ import annotations

import onnx_ir as ir

from prunevid.cost import DecoderShape
from prunevid.export import operators
from prunevid.export.dialects import Dialect, add_output


def build_select(shape: DecoderShape, dialect: Dialect, dtype: ir.DataType, layers: int) -> ir.Model:
    """The select graph behind ``layers`` decoder layers (the M + 1 of llm_pre).

    Inputs: question_scores float32 [T], token_group int64 [V], quota int64 [G], video_start int64 [1], hidden
    [1, T, C] and the layers' KV; the visual tokens are the V from video_start on, everything else is text and stays.
    Outputs: kept int64 [R] (which of the V), position_ids int64 [1, T - V + R], hidden and KV of the rows that stay.
    """
    graph, op = operators.new_graph("select", dialect.opset, (operators.DOMAIN, *dialect.domains))
    int64, float32 = ir.DataType.INT64, ir.DataType.FLOAT
    scores = op.builder.input("question_scores", float32, ["total"])
    group = op.builder.input("token_group", int64, ["visual"])
    quota = op.builder.input("quota", int64, ["groups"])
    start = op.builder.input("video_start", int64, [1])
    hidden = op.builder.input("hidden", dtype, [1, "total", shape.hidden_size])

    end = op.Add(start, op.Shape(group))
    kept = op.call(operators.group_topk(dialect.opset), op.Slice(scores, start, end, [0]), group, quota)
    rows = op.Range(0, op.Squeeze(op.Shape(scores), [0]), 1)
    index = op.Concat(op.Slice(rows, [0], start), op.Add(kept, start), op.Slice(rows, end, [2**62]), axis=0)

    add_output(op, kept, "kept", int64, ["kept"])
    # Positions over the merged sequence are contiguous, so a row's position is its index.
    add_output(op, op.Unsqueeze(index, [0]), "position_ids", int64, [1, "rows"])
    add_output(op, op.Gather(hidden, index, axis=1), "kept_hidden", dtype, [1, "rows", shape.hidden_size])
    dialect.cut_cache(op, index, shape, dtype, layers)
    return operators.to_model(graph, op)
