"""Rules of single operators: what a parser or builder refuses of each beyond types and attributes.

Sources: the parser's code at 10.1 (onnxOpImporters.cpp, onnxOpCheckers.cpp at 96e7811), its checkers at dd0a3a9, which
know the operators of 10.15, and what TensorRT-RTX's parser and builder said to ONNX's own node tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from math import inf

import numpy as np
import onnx

from prunevid.export.lint import tensorrt
from prunevid.export.lint.parsers import Parser
from prunevid.export.lint.scope import Bounds, Scope


def _topk(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    """K is bounded by its own value and by the length of the axis. `sorted` = 0 passes: results come sorted."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    sizes = scope.sizes(node.input[0])
    length = sizes[axis] if -len(sizes) <= axis < len(sizes) else Bounds(0, inf)
    largest = min(length.high, scope.bounds(_inputs(node, 2)[1]).high)
    if largest == inf:
        yield f"nothing bounds its K, which must be below {parser.topk_most + 1}"
    elif largest > parser.topk_most:
        yield f"its K can be {int(largest)}: it must be below {parser.topk_most + 1}"


def _quantization(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    """Zero points are constants and zero; codes are of few types; int4 comes in blocks, with two weights in a byte."""
    values, scale, zero = _inputs(node, 3)
    codes = values if node.op_type == "DequantizeLinear" else next(iter(node.output), "")
    kind = scope.types.get(codes, "")
    if zero:
        point = scope.values(zero)
        if point is not None and point.astype(np.float32).any():
            yield "its zero point must be zero"
        if zero not in scope.constants and kind != "float8_e4m3fn":
            yield "its zero point must be a constant"
    allowed = parser.operators[node.op_type] if node.op_type == "DequantizeLinear" else tensorrt.CODES
    if kind not in allowed:
        yield f"its codes are {kind or 'of unknown type'}: {', '.join(sorted(allowed))} are taken"
    given = (parser.type_of(scope, values), "float32")
    if node.op_type == "QuantizeLinear" and kind == "float8_e4m3fn" and parser.type_of(scope, scale) not in given:
        yield "its scale must be of the type that it quantizes, or float32"
    sizes = scope.values(scale)
    if sizes is not None and not (sizes.astype(np.float32) > 0).all():
        yield "its scales must be above zero"
    dims, scales = scope.static(codes), scope.static(scale)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if dims and scales and len(scales) == 1 < len(dims) and scales[0] not in (1, *dims[axis : axis + 1 or None]):
        yield f"its {scales[0]} scales are neither one nor as many as there are along axis {axis}"
    if kind in ("int4", "float4_e2m1") and parser.int4_blocks is None and dims is not None and math.prod(dims) % 2:
        yield f"{kind} needs an even number of elements"
    if kind == "int4":
        yield from _int4(dims, scales, parser)


def _int4(dims: list[int] | None, scales: list[int] | None, parser: Parser) -> Iterator[str]:
    if parser.int4_blocks is None:
        if dims and scales and len(dims) == len(scales) and sum(a != b for a, b in zip(dims, scales, strict=True)) > 1:
            yield "int4 blocks must lie along one axis"
        return
    if not dims or not scales or len(dims) != len(scales):
        yield "int4 must have a scale per block"
        return
    sizes = [size / count for size, count in zip(dims, scales, strict=True) if size and count and size != count]
    if len(sizes) != 1 or sizes[0] not in parser.int4_blocks:
        yield f"int4 blocks must be of {' or '.join(map(str, parser.int4_blocks))} weights along one axis"
    if dims[-1] % 2:
        yield "int4 needs an even last dimension"


def _modulo(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    truncating = any(attribute.name == "fmod" and attribute.i for attribute in node.attribute)
    if not truncating and scope.types.get(node.input[0], "").startswith(("float", "bfloat")):
        yield "takes floating-point numbers with fmod = 1 alone"


def _clip(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    limits = [*node.input[1:], ""]
    if scope.types.get(node.input[0]) == "int8" and not (limits[0] and all(x in scope.constants for x in limits if x)):
        yield "takes int8 with constants as its limits alone, of which the lower must be there"


def _slice(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    if any(scope.types.get(name) == "int32" and name not in scope.constants for name in node.input[1:]):
        yield "takes int32 as places in constants alone"


def _attention(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    """Source: IAttention in TensorRT's API; sizes of heads were tried with TensorRT-RTX."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    query, key, value, mask = _inputs(node, 4)
    kinds = [parser.type_of(scope, name) for name in (query, key, value)]
    if len(set(kinds)) > 1:
        yield "query, key and value must be of one type"
    if mask and scope.types.get(mask) not in (kinds[0], "bool"):
        yield "its mask must be of the query's type, or of truth values"
    if mask and given.get("is_causal"):
        yield "takes a mask, or is causal, and not both"
    sizes = [scope.static(name) for name in (query, key, value)]
    if sizes[1] != sizes[2]:
        yield "key and value must be of one shape"
    heads = given.get("q_num_heads", 1)
    if sizes[0] and parser.least_head and sizes[0][-1] // heads < parser.least_head:
        yield f"has no kernel for heads of fewer than {parser.least_head}"
    if mask and all(sizes) and len(sizes[0] or []) == 4:
        whole = (*(sizes[0] or [])[:3], (sizes[1] or [])[2])
        pairs = zip(reversed(scope.static(mask) or []), reversed(whole), strict=False)
        if any(size not in (1, other) for size, other in pairs):
            yield "its mask must have the shape of the scores"


def _rotary(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    given = {attribute.name: attribute.i for attribute in node.attribute}
    values, cosines = (scope.static(name) for name in _inputs(node, 2))
    if values and cosines:
        turned = given.get("rotary_embedding_dim", 0) or values[-1] // (given.get("num_heads", 0) or 1)
        if cosines[-1] * 2 != turned:
            yield f"its {cosines[-1]} cosines are not half of the {turned} numbers that it turns"


def _dropout(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    training = scope.values(node.input[2]) if len(node.input) > 2 else None
    if training is not None and training.any():
        yield "cannot train"
    if scope.types.get(node.input[0]) == "float8_e4m3fn" and any(node.output[1:]):
        yield "makes no mask of float8"


def _resize(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
    scales = node.input[2] if len(node.input) > 2 else ""
    whole = list(range(len(scope.dims.get(node.input[0], axes or []))))
    if axes is not None and axes != whole and scales and scales not in scope.constants:
        yield "its axes must be all of them where its scales are no constant"


def _scatter(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    """Along no axis more indices than places, at the largest sizes too: TensorRT-RTX compiles for all."""
    places, indices = (scope.dims.get(name, []) for name in _inputs(node, 2))
    for axis, (place, index) in enumerate(zip(places, indices, strict=False)):
        if place is not None and index is not None and index > place:
            yield f"has {index} indices for {place} places along axis {axis}"


def _tensor_scatter(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    if len(scope.dims.get(node.input[0], range(4))) != 4:
        yield "takes a cache of four dimensions"
    if len(node.input) > 1 and node.input[1] in scope.constants:
        yield "does not take a constant as what it writes"


def _product_of_vector(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    ranks = [len(scope.dims[name]) for name in node.input if name in scope.dims]
    if len(ranks) == 2 and ranks[0] == 1 and ranks[1] > 2:
        yield "does not multiply a vector by a stack of matrices"


def _split(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    given = {attribute.name: attribute.i for attribute in node.attribute}
    sizes, axis = scope.dims.get(node.input[0], []), given.get("axis", 0)
    length = sizes[axis] if -len(sizes) <= axis < len(sizes) else None
    parts = given.get("num_outputs", 0)
    if parts and isinstance(length, int) and length < -(-length // parts) * (parts - 1):
        yield f"its last part of {parts} would be of negative length"


def _branches(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    """Both branches of If yield tensors of as many dimensions, unless the condition is a constant."""
    sides = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    ranks = [[_rank(value) for value in side.output] for side in sides]
    if len(ranks) != 2 or node.input[0] in scope.constants:
        return
    if any(first != second for first, second in zip(*ranks, strict=False) if None not in (first, second)):
        yield "its branches yield other numbers of dimensions"


def _einsum(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    equation = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "equation"), "")
    if not re.fullmatch("[a-z>., -]*", equation):
        yield "its equation must be of small letters"


def _loop(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    body = next((attribute.g for attribute in node.attribute if attribute.name == "body"), onnx.GraphProto())
    used = {name for inner in body.node for name in inner.input} | {value.name for value in body.output}
    if not _inputs(node, 2)[1] and len(body.input) > 1 and body.input[1].name in used:
        yield "its body asks for a condition that it is not given"


def _rank(value: onnx.ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None


def _inputs(node: onnx.NodeProto, count: int) -> list[str]:
    """The names of a node's first inputs, empty for those that it does not have."""
    return [*node.input, *[""] * count][:count]


RULES: dict[str, Callable[[onnx.NodeProto, Scope, Parser], Iterator[str]]] = {
    "Attention": _attention,
    "Clip": _clip,
    "DequantizeLinear": _quantization,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "If": _branches,
    "Loop": _loop,
    "MatMul": _product_of_vector,
    "Mod": _modulo,
    "QuantizeLinear": _quantization,
    "Resize": _resize,
    "RotaryEmbedding": _rotary,
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "Slice": _slice,
    "Split": _split,
    "TensorScatter": _tensor_scatter,
    "TopK": _topk,
}
