"""The rules for a node: what a parser refuses of its types, attributes, constants and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import onnx

from prunevid.export.engine import plugins
from prunevid.export.lint import tensorrt
from prunevid.export.lint.parsers import Parser
from prunevid.export.lint.particular import RULES
from prunevid.export.lint.scope import Scope

ONNX_DOMAINS = ("", "ai.onnx")
_MAX_RANK = 8
# Whose types the table speaks of, where it is not the first input: numbers of inputs.
_TYPED_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (),
    "If": (),
    "Loop": (),
    "OneHot": (2,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Where": (1, 2),
    # Of these the table has the type of the window.
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), ()),
}
_ALL_INPUTS = frozenset(
    {"Add", "Concat", "Div", "Equal", "Gemm", "GridSample", "MatMul", "Max", "Min", "Mul", "Range", "Scan", "Sub"}
)
# What shapes are computed from: numbers of inputs.
_SHAPE_INPUTS: dict[str, range] = {
    **dict.fromkeys(("Expand", "OneHot", "Pad", "Reshape", "Split", "Tile", "TopK", "Upsample"), range(1, 2)),
    **dict.fromkeys(("ConstantOfShape", "Loop"), range(1)),
    "Range": range(3),
    "Resize": range(2, 4),
    "Slice": range(1, 5),
}
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Codes of quantized values; as constants they can only be dequantized.
_CODES = frozenset({"int8", "uint8", "int4", "float8_e4m3fn", "float4_e2m1"})
_OUTPUTS_TOO = frozenset(
    {
        *("Cast", "CastLike", "Constant", "ConstantOfShape", "If", "Loop", "Scan"),
        *("BlackmanWindow", "HammingWindow", "HannWindow"),
    }
)


def node_findings(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    """Why a parser does not take a node: one sentence's end for each reason."""
    if node.domain not in ONNX_DOMAINS:
        if not (parser.plugins and plugins.is_plugin(node)):
            yield f"the parser has no operators of domain {node.domain}"
        return
    types = parser.operators.get(node.op_type)
    if types is None:
        yield "the parser does not have it"
        return
    schema = _schema(node.op_type, scope.opset)
    if schema is not None and len(node.input) < schema.min_input:
        yield f"has {len(node.input)} inputs, which are too few"
        return
    if schema is not None and node.op_type not in _QUANTIZING:
        yield from _mixed_types(node, scope, parser, schema)
    yield from _types(node, scope, parser, types)
    yield from _attributes(node, parser)
    yield from _constants(node, scope, parser)
    yield from _shapes(node, scope)
    if node.op_type in tensorrt.ONE_OUTPUT and any(node.output[1:]):
        yield "only its first output is taken"
    rule = RULES.get(node.op_type)
    if rule is not None:
        yield from rule(node, scope, parser)


@cache
def _schema(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    """What ONNX says of an operator; None of one that it does not have."""
    try:
        return onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None


def _mixed_types(node: onnx.NodeProto, scope: Scope, parser: Parser, schema: onnx.defs.OpSchema) -> Iterator[str]:
    """Inputs that ONNX wants of one type are of one: the layers want it as well, but for those that quantize."""
    found: dict[str, set[str]] = {}
    for number, name in enumerate(node.input if schema.inputs else ()):
        formal = schema.inputs[min(number, len(schema.inputs) - 1)]
        if name and formal.is_homogeneous and parser.type_of(scope, name):
            found.setdefault(formal.type_str, set()).add(parser.type_of(scope, name))
    for kinds in found.values():
        if len(kinds) > 1:
            yield f"its inputs must be of one type, and are {' and '.join(sorted(kinds))}"


def _types(node: onnx.NodeProto, scope: Scope, parser: Parser, types: Iterable[str]) -> Iterator[str]:
    if node.op_type in ("Max", "Min") and len(node.input) == 1:
        types = parser.operators["Identity"]
    if node.op_type in _ALL_INPUTS:
        names = list(node.input)
    else:
        numbers = _TYPED_INPUTS.get(node.op_type, (0,))
        names = [node.input[number] for number in numbers if number < len(node.input)]
    if node.op_type in _OUTPUTS_TOO:
        names += node.output
    for kind in sorted({parser.type_of(scope, name) for name in names if name} - set(types)):
        yield f"does not take {kind}" if kind else "the type that it gets cannot be told"
    for number, allowed in parser.input_types.get(node.op_type, {}).items():
        name = node.input[number] if number < len(node.input) else ""
        kind = parser.type_of(scope, name)
        if name in scope.constants and (kind, number) in parser.code_constants.get(node.op_type, ()):
            continue
        if kind and kind not in allowed:
            yield f"its input {number} cannot be {kind}"
    for name in node.output:
        if len(scope.dims.get(name, ())) > _MAX_RANK:
            yield f"has {len(scope.dims[name])} dimensions: tensors have at most {_MAX_RANK}"


def _attributes(node: onnx.NodeProto, parser: Parser) -> Iterator[str]:
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    for name, allowed in parser.fixed_attributes.get(node.op_type, {}).items():
        values = given.get(name, allowed[0])
        for value in values if isinstance(values, list) else [values]:
            if (value.decode() if isinstance(value, bytes) else value) not in allowed:
                yield f"its attribute {name} must be {' or '.join(map(str, allowed))}"
                break
    for name in tensorrt.REFUSED_ATTRIBUTES.get(node.op_type, ()):
        if name in given:
            yield f"its attribute {name} is not taken"


def _constants(node: onnx.NodeProto, scope: Scope, parser: Parser) -> Iterator[str]:
    for number in parser.constant_inputs.get(node.op_type, ()):
        if number < len(node.input) and node.input[number] and node.input[number] not in scope.constants:
            yield f"its input {number} must be a constant"
    if node.op_type in _QUANTIZING:
        return
    for number, name in enumerate(node.input):
        kind = scope.types.get(name, "") if name in scope.constants else ""
        if kind in _CODES and (kind, number) not in parser.code_constants.get(node.op_type, ()):
            yield f"its input {number} is a constant of {kind}, which can only be dequantized"


def _shapes(node: onnx.NodeProto, scope: Scope) -> Iterator[str]:
    """Shapes come from shapes, constants and whole numbers."""
    if node.op_type == "Loop" and len(node.output) <= len(node.input) - 2:
        return  # No output grows with the number of iterations.
    for number in _SHAPE_INPUTS.get(node.op_type, ()):
        if number < len(node.input) and node.input[number] and scope.from_floating_input(node.input[number]):
            yield f"its input {number}, a shape, is computed from an input of the graph in floating point"
