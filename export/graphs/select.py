"""The select graph: keep the visual tokens that the question attends to, and cut hidden states and KV to match.

The oracle is `prunevid.methods.selection.select_tokens`. Source: PruneVid (arXiv 2412.16117), section 3.3.
"""

from __future__ import annotations

import onnx_ir as ir

from prunevid.cost import DecoderShape
from prunevid.export.graphs import counting, operators
from prunevid.export.graphs.dialects import Dialect, add_output


def build_select(shape: DecoderShape, dialect: Dialect, dtype: ir.DataType, layers: int, largest: int) -> ir.Model:
    """The select graph behind `layers` decoder layers (the M + 1 of llm_pre).

    Inputs: question_scores float32 [T], token_group int64 [V], ascending, quota int64 [G], kept_count int64 [1] (the
    sum of the quotas), position_ids int64 [axes, T], video_start int64 [1], hidden [1, T, C] and the layers' KV; the
    visual tokens are the V from video_start on, everything else is text and stays. Outputs: kept int64 [R] (which of
    the V), and of the rows that stay kept_position_ids int64 [axes, T - V + R], kept_hidden and KV. Shapes depend on
    input shapes, kept_count and video_start alone. largest: the most tokens of a group where there are several.
    """
    graph, op = operators.new_graph("select", dialect.opset, (operators.DOMAIN, *dialect.domains))
    int64, float32 = ir.DataType.INT64, ir.DataType.FLOAT
    scores = op.builder.input("question_scores", float32, ["total"])
    group = op.builder.input("token_group", int64, ["visual"])
    quota = op.builder.input("quota", int64, ["groups"])
    count = op.builder.input("kept_count", int64, [1])
    position_ids = op.builder.input("position_ids", int64, ["axes", "total"])
    start = op.builder.input("video_start", int64, [1])
    hidden = op.builder.input("hidden", dtype, [1, "total", shape.hidden_size])

    end = op.Add(start, op.Shape(group))
    group_topk = operators.group_topk(dialect.opset, largest)
    marks = op.call(group_topk, op.Slice(scores, start, end, [0]), group, quota, count)
    marked = op.Cast(marks, to=ir.DataType.BOOL)
    kept = counting.list_marked(op, marked, counting.count_before_each(op, marked), count)
    rows = op.Range(0, op.Squeeze(op.Shape(scores), [0]), 1)
    index = op.Concat(op.Slice(rows, [0], start), op.Add(kept, start), op.Slice(rows, end, [2**62]), axis=0)

    add_output(op, kept, "kept", int64, ["kept"])
    add_output(op, op.Gather(position_ids, index, axis=1), "kept_position_ids", int64, ["axes", "rows"])
    add_output(op, op.Gather(hidden, index, axis=1), "kept_hidden", dtype, [1, "rows", shape.hidden_size])
    dialect.cut_cache(op, index, shape, dtype, layers)
    return operators.to_model(graph, op)
