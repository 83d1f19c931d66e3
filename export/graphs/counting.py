"""Running counts of marks, and lists of what is marked, in shapes that depend on no data.

A count is a product with a triangle of ones, by two small matmuls that are exact in float32 for up to 2^24 marks:
TensorRT's parser turned CumSum into a loop until it had a layer for it, and a list made by NonZero has a length that
nobody knows beforehand, so that its memory cannot be bound nor its graph captured.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

# Marks in a row of the table that a list is laid out in.
_ROW = 64


def earlier(op: Any, size: ir.Value) -> ir.Value:
    """Whether the item of the column stands before that of the row, bool [n, n]; size int64 [1]."""
    index = op.Range(0, op.Squeeze(size, [0]), 1)
    return op.Less(op.Unsqueeze(index, [0]), op.Unsqueeze(index, [1]))


def count_in_row(op: Any, marks: ir.Value, columns: ir.Value) -> ir.Value:
    """How many marks stand before each cell in its row; marks float32 [R, W], columns int64 [1] (W), float32 [R, W]."""
    return op.MatMul(marks, op.Transpose(_as_float(op, earlier(op, columns)), perm=[1, 0]))


def count_before(op: Any, marks: ir.Value) -> tuple[ir.Value, ir.Value]:
    """How many marks stand before each cell of a table, row by row, and before each row.

    marks: float32 [R, W] of 0 and 1. Returns float32 [R, W] and [R, 1].
    """
    rows, columns = op.Shape(marks, start=0, end=1), op.Shape(marks, start=1, end=2)
    in_row = count_in_row(op, marks, columns)
    before_row = op.MatMul(_as_float(op, earlier(op, rows)), op.ReduceSum(marks, [1], keepdims=1))
    return op.Add(in_row, before_row), before_row


def count_before_each(op: Any, marks: ir.Value) -> ir.Value:
    """How many marks stand before each item of a list; marks bool [n], the counts int64 [n]."""
    size = op.Shape(marks)
    # One item more than there are, or more: so that the filling is never empty.
    rows = op.Add(op.Div(size, [_ROW]), [1])
    zero = op.Constant(value=ir.tensor([0.0], dtype=ir.DataType.FLOAT))
    filling = op.Expand(zero, op.Sub(op.Mul(rows, [_ROW]), size))
    table = op.Reshape(op.Concat(_as_float(op, marks), filling, axis=0), [-1, _ROW])
    before, _ = count_before(op, table)
    return op.Cast(op.Slice(op.Reshape(before, [-1]), [0], size, [0]), to=ir.DataType.INT64)


def list_marked(op: Any, marks: ir.Value, before: ir.Value, room: ir.Value) -> ir.Value:
    """The numbers of the marked items, ascending, then zeros; int64 [room].

    marks: bool [n]; before: how many are marked before each, int64 [n]; room: int64 [1], as many as are marked or more.
    """
    size = op.Shape(marks)
    numbers = op.Range(0, op.Squeeze(size, [0]), 1)
    # What is not marked goes where nobody looks: behind the room.
    place = op.Where(marks, before, room)
    # Not shorter than the list of places: TensorRT-RTX's compiler takes no scattering of more than there is room for.
    empty = op.Expand(op.Constant(value_ints=[0]), op.Add(op.Add(room, size), [1]))
    return op.Slice(op.ScatterElements(empty, place, numbers, axis=0), [0], room, [0])


def _as_float(op: Any, marks: ir.Value) -> ir.Value:
    return op.Cast(marks, to=ir.DataType.FLOAT)
