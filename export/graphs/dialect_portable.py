"""The `portable` dialect: plain ONNX operators at opset 20, for TensorRT and every execution provider.

KV is [1, rows, kv_heads, head_dim], so that the first P rows of a preallocated buffer are one contiguous block: the
graph reads them as `past_*` and yields only the new rows as `present_*`, which the runtime binds to the rows that
follow. Nothing is copied and nothing grows. Rows of the past at or beyond `past_length` are masked, so a runtime
may as well bind the whole buffer and keep every shape fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunevid.cost import DecoderShape
from prunevid.export.graphs.dialects import Attended, Rope, add_output


@dataclass(frozen=True)
class PortableDialect:
    """Plain operators only; see the module's text for the layout of the KV cache."""

    opset: int = 20
    domains: tuple[str, ...] = ()
    tower_attention: str = "sdpa"

    def norm(self, op: Any, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """RMS norm of x over its last axis, times weight; computes in float32 whatever the dtype of x."""
        wide = op.Cast(x, to=ir.DataType.FLOAT)
        mean_square = op.ReduceMean(op.Mul(wide, wide), [-1], keepdims=1)
        return op.Mul(op.CastLike(op.Div(wide, op.Sqrt(op.Add(mean_square, epsilon))), x), weight)

    def rotate(self, op: Any, x: ir.Value, rope: Rope, heads: int) -> ir.Value:
        """Rotary embedding of x [1, S, heads * head_dim]; halves are rotated, not interleaved pairs."""
        split = op.Reshape(x, [0, 0, heads, -1])
        first, second = op.Split(split, axis=3, num_outputs=2, _outputs=2)
        cos = op.CastLike(op.Unsqueeze(rope.cos, [1]), x)
        sin = op.CastLike(op.Unsqueeze(rope.sin, [1]), x)
        rotated = op.Concat(
            op.Sub(op.Mul(first, cos), op.Mul(second, sin)),
            op.Add(op.Mul(second, cos), op.Mul(first, sin)),
            axis=3,
        )
        return op.Reshape(rotated, [0, 0, -1])

    def begin(self, op: Any, rows: ir.Value, past_length: ir.Value, first_past: ir.Value) -> ir.Value:
        """What all attentions of a graph share: the additive causal mask [S, P + S]."""
        past = op.Squeeze(op.Shape(first_past, start=1, end=2), [0])
        new = op.Squeeze(op.Shape(rows, start=1, end=2), [0])
        row = op.Unsqueeze(op.Range(0, new, 1), [1])
        column = op.Unsqueeze(op.Range(0, op.Add(past, new), 1), [0])
        in_past = op.Less(column, past_length)
        causal = op.And(op.GreaterOrEqual(column, past), op.LessOrEqual(op.Sub(column, past), row))
        # The most negative finite number of float16, which float32 takes as well: exp() of it is zero.
        return op.CastLike(op.Where(op.Or(in_past, causal), 0.0, -65504.0), rows)

    def declare_past(self, op: Any, layer: int, shape: DecoderShape, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """Graph inputs `past_key.L` and `past_value.L`."""
        dims = [1, "past", shape.kv_heads, shape.head_dim]
        return (
            op.builder.input(f"past_key.{layer}", dtype, dims),
            op.builder.input(f"past_value.{layer}", dtype, dims),
        )

    def attend(
        self,
        op: Any,
        shared: ir.Value,
        shape: DecoderShape,
        layer: int,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
    ) -> Attended:
        """Causal attention of S new rows over the past and themselves; adds outputs `present_key.L`, `_value.L`."""
        new = []
        for kind, rows in (("key", key), ("value", value)):
            split = op.Reshape(rows, [0, 0, shape.kv_heads, shape.head_dim])
            add_output(
                op,
                split,
                f"present_{kind}.{layer}",
                past[0].dtype,
                [1, "rows", shape.kv_heads, shape.head_dim],
            )
            new.append(split)
        keys = op.Transpose(op.Concat(past[0], new[0], axis=1), perm=[0, 2, 1, 3])
        values = op.Transpose(op.Concat(past[1], new[1], axis=1), perm=[0, 2, 1, 3])
        group = shape.heads // shape.kv_heads
        scaled = op.Mul(query, op.CastLike(float(1.0 / np.sqrt(shape.head_dim)), query))
        # Heads that share a KV head are laid side by side: [kv_heads, group, S, head_dim] against [kv_heads, 1, ...].
        heads = op.Reshape(scaled, [-1, shape.kv_heads, group, shape.head_dim])
        heads = op.Transpose(heads, perm=[1, 2, 0, 3])
        keys_t = op.Transpose(op.Squeeze(keys, [0]), perm=[0, 2, 1])
        scores = op.Add(op.MatMul(heads, op.Unsqueeze(keys_t, [1])), shared)
        mixed = op.MatMul(op.Softmax(scores, axis=-1), op.Transpose(values, perm=[1, 0, 2, 3]))
        merged = op.Reshape(op.Transpose(mixed, perm=[2, 0, 1, 3]), [1, -1, shape.heads * shape.head_dim])
        return Attended(merged, op.Squeeze(keys, [0]))

    def cut_cache(self, op: Any, index: ir.Value, shape: DecoderShape, dtype: ir.DataType, layers: int) -> None:
        """Append to the select graph: the KV of `layers` layers, cut to the rows of `index` int64 [R]."""
        for layer in range(layers):
            past = self.declare_past(op, layer, shape, dtype)
            for kind, value in zip(("key", "value"), past, strict=True):
                cut = op.Gather(value, index, axis=1)
                add_output(op, cut, f"present_{kind}.{layer}", dtype, [1, "rows", shape.kv_heads, shape.head_dim])
