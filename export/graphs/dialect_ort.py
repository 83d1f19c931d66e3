"""The `ort` dialect: ONNX Runtime's fused operators, KV cache in one buffer that is past and present at once.

Operators: GroupQueryAttention and RotaryEmbedding of the domain com.microsoft (ONNX Runtime's ContribOperators.md)
and SimplifiedLayerNormalization. RoPE is applied outside GroupQueryAttention since the positions of kept tokens are
not contiguous. KV is [1, kv_heads, capacity, head_dim]; the runtime binds one buffer as past and as present, and the
operator writes the new rows in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from prunevid.cost import DecoderShape
from prunevid.export.graphs.dialects import Attended, Rope, add_output
from prunevid.export.graphs.vision_attention import MULTI_HEAD

_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class _Lengths:
    """Rows in the cache after this run: as the operator wants them (int32, minus one), and as a slice end."""

    last_row: ir.Value
    total: ir.Value
    end: ir.Value


@dataclass(frozen=True)
class OrtDialect:
    """Fused operators at opset 21, the newest that ONNX Runtime 1.23 on JetPack 6 runs with them."""

    opset: int = 21
    domains: tuple[str, ...] = (_CONTRIB,)
    tower_attention: str = MULTI_HEAD

    def norm(self, op: Any, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """RMS norm of x over its last axis, times weight; computes in float32 whatever the dtype of x."""
        return op.SimplifiedLayerNormalization(x, weight, axis=-1, epsilon=epsilon, stash_type=1)

    def rotate(self, op: Any, x: ir.Value, rope: Rope, heads: int) -> ir.Value:
        """Rotary embedding of x [1, S, heads * head_dim]; halves are rotated, not interleaved pairs."""
        cos, sin = op.CastLike(rope.cos, x), op.CastLike(rope.sin, x)
        # The tables hold just the rows at hand, in order: row i rotates by table row 0 + i.
        return op.RotaryEmbedding(x, op.Constant(value_ints=[0]), cos, sin, num_heads=heads, _domain=_CONTRIB)

    def begin(self, op: Any, rows: ir.Value, past_length: ir.Value, first_past: ir.Value) -> _Lengths:
        """What all attentions of a graph share (lengths, mask); rows is [1, S, C], first_past any layer's past keys."""
        end = op.Add(past_length, op.Shape(rows, start=1, end=2))
        total = op.Cast(end, to=ir.DataType.INT32)
        one = op.Constant(value=ir.tensor([1], dtype=ir.DataType.INT32))
        return _Lengths(op.Sub(total, one), op.Squeeze(total, [0]), end)

    def declare_past(self, op: Any, layer: int, shape: DecoderShape, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """Graph inputs `past_key.L` and `past_value.L`."""
        dims = [1, shape.kv_heads, "capacity", shape.head_dim]
        return (
            op.builder.input(f"past_key.{layer}", dtype, dims),
            op.builder.input(f"past_value.{layer}", dtype, dims),
        )

    def attend(
        self,
        op: Any,
        shared: _Lengths,
        shape: DecoderShape,
        layer: int,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
    ) -> Attended:
        """Causal attention of S new rows over the past and themselves; adds outputs `present_key.L`, `_value.L`."""
        output, present_key, present_value = op.GroupQueryAttention(
            query, key, value, *past, shared.last_row, shared.total,
            num_heads=shape.heads, kv_num_heads=shape.kv_heads, _domain=_CONTRIB, _outputs=3,
        )  # fmt: skip
        dtype, dims = past[0].dtype, list(past[0].shape)
        add_output(op, present_key, f"present_key.{layer}", dtype, dims)
        add_output(op, present_value, f"present_value.{layer}", dtype, dims)
        keys = op.Squeeze(op.Slice(present_key, [0], shared.end, [2]), [0])
        return Attended(output, keys)

    def cut_cache(self, op: Any, index: ir.Value, shape: DecoderShape, dtype: ir.DataType, layers: int) -> None:
        """Append to the select graph: the KV of `layers` layers, cut to the rows of `index` int64 [R].

        The cut KV is gathered straight into buffers of `capacity` rows (a graph input) with room for decoding: the
        index is filled up with row 0, and those rows are overwritten before they are ever read.
        """
        capacity = op.builder.input("capacity", ir.DataType.INT64, [1])
        room = op.Sub(capacity, op.Shape(index))
        index = op.Concat(index, op.Expand(op.Constant(value_ints=[0]), room), axis=0)
        for layer in range(layers):
            past = self.declare_past(op, layer, shape, dtype)
            for kind, value in zip(("key", "value"), past, strict=True):
                cut = op.Gather(value, index, axis=2)
                add_output(
                    op,
                    cut,
                    f"present_{kind}.{layer}",
                    dtype,
                    [1, shape.kv_heads, "new_capacity", shape.head_dim],
                )
