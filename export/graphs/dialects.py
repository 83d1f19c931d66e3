"""What differs between the two ways in which a decoder is written as ONNX.

`ort` uses ONNX Runtime's fused operators; `portable` uses plain ONNX operators that every execution provider and
TensorRT's parser accept. A dialect decides how a norm, a rotary embedding and an attention with KV cache are spelt,
and how the cache lies in memory; the decoder (`prunevid.export.graphs.decoder`) is the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from prunevid.cost import DecoderShape


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of the rows' rotary angles, float32 [S, head_dim / 2] each."""

    cos: ir.Value
    sin: ir.Value


@dataclass(frozen=True)
class Attended:
    """An attention's output [1, S, heads * head_dim] and every key it saw [kv_heads, past + S, head_dim]."""

    output: ir.Value
    keys: ir.Value


class Dialect(Protocol):
    """How the decoder's building blocks are spelt."""

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        ...

    @property
    def domains(self) -> tuple[str, ...]:
        """Operator domains beyond ONNX's own."""
        ...

    @property
    def tower_attention(self) -> str:
        """Transformers' name for how the vision tower's attention is traced."""
        ...

    def norm(self, op: Any, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """RMS norm of x over its last axis, times weight."""
        ...

    def rotate(self, op: Any, x: ir.Value, rope: Rope, heads: int) -> ir.Value:
        """Rotary embedding of x [1, S, heads * head_dim]; halves are rotated, not interleaved pairs."""
        ...

    def begin(self, op: Any, rows: ir.Value, past_length: ir.Value, first_past: ir.Value) -> Any:
        """What all attentions of a graph share (lengths, mask); rows is [1, S, C], first_past any layer's past keys."""
        ...

    def declare_past(self, op: Any, layer: int, shape: DecoderShape, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """Graph inputs `past_key.L` and `past_value.L`."""
        ...

    def attend(
        self,
        op: Any,
        shared: Any,
        shape: DecoderShape,
        layer: int,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
    ) -> Attended:
        """Causal attention of S new rows over the past and themselves; adds outputs `present_key.L`, `_value.L`."""
        ...

    def cut_cache(self, op: Any, index: ir.Value, shape: DecoderShape, dtype: ir.DataType, layers: int) -> None:
        """Append to the select graph: the KV of `layers` layers, cut to the rows of `index` int64 [R]."""
        ...


def add_output(op: Any, value: ir.Value, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
    """Declare `value` as the graph output `name` of that type and shape."""
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    op.builder.add_output(value, name)


def dialect_named(name: str) -> Dialect:
    """The dialect called `ort` or `portable`. Raises KeyError for any other name."""
    from prunevid.export.graphs.dialect_ort import OrtDialect
    from prunevid.export.graphs.dialect_portable import PortableDialect

    dialects: dict[str, Dialect] = {"ort": OrtDialect(), "portable": PortableDialect()}
    return dialects[name]
