"""The dialects that graphs are written in: what each can do, as data.

Whoever wants to know whether a bundle can be built, quantized or run somewhere asks for the ability, never for the
dialect's name: a dialect is an entry here, its operators in `prunevid/bundle/operators.py`, and its spelling in
`export/graphs/`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DIALECTS", "DialectSpec"]


@dataclass(frozen=True)
class DialectSpec:
    """What graphs of one dialect can do.

    Attributes:
        name: What the command line and the manifest call it.
        cache_layout: How their KV cache lies in memory (`KvCacheSpec.layout`).
        has_int8_cache: Whether their attention takes keys and values in int8.
        has_fused_attention: Whether their attention is one operator of ONNX Runtime's own, GroupQueryAttention.
        has_fused_quantization: Whether quantized layers are operators of ONNX Runtime's own, which only its CPU
            provider has; else they are Q/DQ nodes, which any runtime may fuse.
        quantizable: Precisions that a recipe can start from.
        runs_on_tensorrt: Whether all its operators are ONNX's, as TensorRT's parsers take them.
    """

    name: str
    cache_layout: str
    has_int8_cache: bool
    has_fused_attention: bool
    has_fused_quantization: bool
    quantizable: tuple[str, ...]
    runs_on_tensorrt: bool


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        DialectSpec(
            name="ort",
            cache_layout="in_place",
            has_int8_cache=True,
            has_fused_attention=True,
            has_fused_quantization=True,
            quantizable=("fp32",),
            runs_on_tensorrt=False,
        ),
        DialectSpec(
            name="portable",
            cache_layout="appended",
            has_int8_cache=False,
            has_fused_attention=False,
            has_fused_quantization=False,
            quantizable=("fp32", "fp16"),
            runs_on_tensorrt=True,
        ),
    )
}
"""The dialects by name."""
