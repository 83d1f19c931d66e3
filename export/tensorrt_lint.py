"""Which nodes of a graph a release of TensorRT could not parse, told without TensorRT.

What each release takes is data: :mod:`prunevid.export.tensorrt_operators`. A graph is looked at as the parser will see
it: releases with plugins for the ``prunevid`` operators get their nodes, older ones the bodies of their functions,
written out. Element types and shapes come from ONNX's shape inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import inliner, shape_inference
from onnx.external_data_helper import uses_external_data

from prunevid.bundle import GraphSpec
from prunevid.errors import PruneVidError
from prunevid.export import tensorrt_operators as table
from prunevid.export.engine import plugins

# Checked of every portable bundle: JetPack 7.1's, JetPack 7.2's, and the newest whose table was read.
RELEASES = ("10.13", "10.16", "11.1")

_ONNX_DOMAINS = ("", "ai.onnx")
_OLDEST_OPSET = 9
_MAX_RANK = 8
# ONNX's names of element types where NumPy's differ.
_TYPE_NAMES = {"float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float4e2m1": "float4_e2m1"}
# Whose types the table speaks of, where it is not the first input: numbers of inputs.
_TYPED_INPUTS = {"Where": (1, 2), "OneHot": (2,), "Pow": (0, 1), "ScatterElements": (0, 2), "ScatterND": (0, 2)}
_ALL_INPUTS = frozenset(
    {"Add", "Concat", "Div", "Equal", "Gemm", "MatMul", "Max", "Min", "Mul", "Range", "Scan", "Sub"}
)
_OUTPUTS_TOO = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape", "If", "Loop", "Scan"})


class Finding(NamedTuple):
    """A node that a release does not take: its name, its operator, and why not."""

    node: str
    operator: str
    why: str


def unsupported(model: onnx.ModelProto, version: str, *, sizes: Mapping[str, int] | None = None) -> list[Finding]:
    """What TensorRT ``version`` ("10.3", "10.13.2.6") could not parse of a model, in the order of its nodes.

    Looks into function bodies and into the graphs inside nodes (If, Loop, Scan). Weights need not be loaded. sizes:
    the largest size of each of the graph's symbolic dimensions, which bounds what depends on them (TopK's K).
    Raises PruneVidError for a release older than those that are known.
    """
    release = release_of(version)
    if release < table.OLDEST:
        oldest = ".".join(map(str, table.OLDEST))
        raise PruneVidError(f"TensorRT {version} is too old: its parser is known from {oldest} on")
    seen = _as_parsed(model, release, sizes or {})
    findings = list(_opset_findings(seen, release))
    for value in (*seen.graph.input, *seen.graph.output):
        kind = _type_name(value.type.tensor_type.elem_type)
        if kind not in table.IO_TYPES:
            findings.append(Finding(value.name, "input or output", f"an engine has none of type {kind or 'unknown'}"))
    rules = _Rules(release)
    findings += rules.graph(seen.graph, _Scope())
    return findings


def refuse_unsupported(model: onnx.ModelProto, version: str, *, sizes: Mapping[str, int] | None = None) -> None:
    """Raise PruneVidError where TensorRT ``version`` could not parse a model; see :func:`unsupported`."""
    findings = unsupported(model, version, sizes=sizes)
    if not findings:
        return
    first = findings[0]
    more = f" (and {len(findings) - 1} nodes more)" if len(findings) > 1 else ""
    hint = ": use fewer frames" if first.operator == "TopK" else ""
    raise PruneVidError(
        f"TensorRT {version} cannot parse {model.graph.name}: {first.operator} at {first.node}: {first.why}{more}{hint}"
    )


def check_graphs(folder: Path, graphs: Mapping[str, GraphSpec]) -> None:
    """Raise PruneVidError where one of :data:`RELEASES` could not parse a graph that is written in ``folder``."""
    for spec in graphs.values():
        model = onnx.load(folder / spec.file, load_external_data=False)
        for release in RELEASES:
            refuse_unsupported(model, release)


def release_of(version: str) -> tuple[int, int]:
    """Major and minor number of a version ("10.13.2.6" is (10, 13)). Raises PruneVidError for what is none."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        raise PruneVidError(f"{version!r} is no version of TensorRT: versions look like 10.13.2") from None
    return major, minor


def _as_parsed(model: onnx.ModelProto, release: tuple[int, int], sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The model as the parser will see it, with its dimensions at their largest and all types inferred."""
    bounded = onnx.ModelProto()
    bounded.CopyFrom(model)
    for value in bounded.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    if plugins.available(release):
        bounded = inliner.inline_selected_functions(bounded, list(plugins.OPERATORS), exclude=True)
    else:
        bounded = inliner.inline_local_functions(bounded)
    return shape_inference.infer_shapes(bounded, data_prop=True)


def _opset_findings(model: onnx.ModelProto, release: tuple[int, int]) -> Iterator[Finding]:
    newest = table.newest_opset(release)
    for opset in model.opset_import:
        if opset.domain in _ONNX_DOMAINS and not _OLDEST_OPSET <= opset.version <= newest:
            yield Finding(model.graph.name, "opset", f"is {opset.version}: {_OLDEST_OPSET} to {newest} are taken")
        for node in model.graph.node:
            since, known = table.CHANGED.get(node.op_type, (0, release))
            if opset.domain in _ONNX_DOMAINS and opset.version >= since and release < known:
                yield Finding(node.name, node.op_type, f"changed in opset {since}, which is not known yet")


@dataclass
class _Scope:
    """What is known of the values that a graph's nodes can name, those of the graphs around it included."""

    types: dict[str, str] = field(default_factory=dict)
    dims: dict[str, list[int | None]] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto | None] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def inside(self, graph: onnx.GraphProto) -> _Scope:
        """The scope of a graph within this one."""
        inner = _Scope(dict(self.types), dict(self.dims), dict(self.constants), dict(self.producers))
        for value in (*graph.input, *graph.output, *graph.value_info):
            inner._add(value.name, value.type.tensor_type)
        for tensor in graph.initializer:
            inner.constants[tensor.name] = tensor
            inner.types[tensor.name] = _type_name(tensor.data_type)
            inner.dims[tensor.name] = list(tensor.dims)
        for node in graph.node:
            inner.producers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant":
                tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
                inner.constants[node.output[0]] = tensors[0] if tensors else None
        return inner

    def _add(self, name: str, kind: onnx.TypeProto.Tensor) -> None:
        self.types[name] = _type_name(kind.elem_type)
        if kind.HasField("shape"):
            self.dims[name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]


class _Rules:
    """The table's rules for one release."""

    def __init__(self, release: tuple[int, int]) -> None:
        self._release = release
        self._operators = table.operators(release)
        self._has_plugins = plugins.available(release)

    def graph(self, graph: onnx.GraphProto, outer: _Scope) -> Iterator[Finding]:
        """Findings of every node of a graph and of the graphs inside its nodes."""
        scope = outer.inside(graph)
        for node in graph.node:
            name = node.name or (node.output[0] if node.output else "")
            for why in self._node(node, scope):
                yield Finding(name, node.op_type, why)
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    yield from self.graph(inner, scope)

    def _node(self, node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
        if node.domain not in _ONNX_DOMAINS:
            if not (self._has_plugins and plugins.is_plugin(node)):
                yield f"the parser has no operators of domain {node.domain}"
            return
        types = self._operators.get(node.op_type)
        if types is None:
            yield "the parser does not have it"
            return
        yield from _type_findings(node, scope, types)
        yield from _attribute_findings(node)
        yield from self._constant_findings(node, scope)
        if node.op_type in table.ONE_OUTPUT and any(node.output[1:]):
            yield "only its first output is taken"
        if node.op_type == "TopK":
            yield from _topk_findings(node, scope)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantization_findings(node, scope)

    def _constant_findings(self, node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
        needed = table.CONSTANT_INPUTS.get(node.op_type, ())
        if node.op_type == "Pad" and self._release < table.PAD_TAKES_AXES:
            needed = (3,)
        for number in needed:
            if number < len(node.input) and node.input[number] and node.input[number] not in scope.constants:
                yield f"its input {number} must be a constant"


def _type_findings(node: onnx.NodeProto, scope: _Scope, types: frozenset[str]) -> Iterator[str]:
    if node.op_type in _ALL_INPUTS:
        names = list(node.input)
    else:
        numbers = _TYPED_INPUTS.get(node.op_type, () if node.op_type in ("If", "Loop", "ConstantOfShape") else (0,))
        names = [node.input[number] for number in numbers if number < len(node.input)]
    if node.op_type in _OUTPUTS_TOO:
        names += node.output
    for kind in sorted({scope.types.get(name, "") for name in names if name} - types):
        yield f"does not take {kind}" if kind else "the type that it gets cannot be told"
    for name in node.output:
        if len(scope.dims.get(name, ())) > _MAX_RANK:
            yield f"has {len(scope.dims[name])} dimensions: tensors have at most {_MAX_RANK}"


def _attribute_findings(node: onnx.NodeProto) -> Iterator[str]:
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, value in table.FIXED_ATTRIBUTES.get(node.op_type, {}).items():
        found = onnx.helper.get_attribute_value(given[name]) if name in given else value
        if (found.decode() if isinstance(found, bytes) else found) != value:
            yield f"its attribute {name} must be {value}"
    for name in table.REFUSED_ATTRIBUTES.get(node.op_type, ()):
        if name in given:
            yield f"its attribute {name} is not taken"


def _quantization_findings(node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
    """Zero points are zero; codes are int8, int4 or float8; int4 comes in blocks, with pairs of columns in a byte."""
    zero = scope.constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and not uses_external_data(zero) and onnx.numpy_helper.to_array(zero).astype(np.float32).any():
        yield "its zero point must be zero"
    codes = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
    kind = scope.types.get(codes, "")
    if kind not in ("int8", "int4", "float8_e4m3fn"):
        yield f"its codes are {kind or 'of unknown type'}: int8, int4 and float8_e4m3fn are taken"
    if kind != "int4":
        return
    dims, blocks = scope.dims.get(codes, []), scope.dims.get(node.input[1], [])
    if len(dims) != len(blocks) or None in dims or None in blocks:
        yield "int4 must have a scale per block"
        return
    sizes = [size / count for size, count in zip(dims, blocks, strict=True) if size and count and size != count]
    if len(sizes) != 1 or sizes[0] not in table.INT4_BLOCKS:
        yield f"int4 blocks must be of {' or '.join(map(str, table.INT4_BLOCKS))} weights along one axis"
    if (dims[-1] or 0) % 2:
        yield "int4 needs an even last dimension"


def _topk_findings(node: onnx.NodeProto, scope: _Scope) -> Iterator[str]:
    """K is bounded by its own value and by the length of the axis. ``sorted`` = 0 passes: results come sorted."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    dims = scope.dims.get(node.input[0], [])
    length = dims[axis] if -len(dims) <= axis < len(dims) else None
    bounds = [bound for bound in (length, _largest(node.input[1], scope)) if bound is not None]
    if not bounds:
        yield f"nothing bounds its K, which must be below {table.TOPK_LIMIT}"
    elif min(bounds) >= table.TOPK_LIMIT:
        yield f"its K can be {min(bounds)}: it must be below {table.TOPK_LIMIT}"


def _largest(name: str, scope: _Scope) -> int | None:
    """Upper bound of an integer that is a constant or computed from shapes; None where nothing is known."""
    if name in scope.constants:
        tensor = scope.constants[name]
        return None if tensor is None else int(onnx.numpy_helper.to_array(tensor).max())
    node = scope.producers.get(name)
    if node is None:
        return None
    if node.op_type in ("Cast", "Gather", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return _largest(node.input[0], scope)
    if node.op_type == "Min":
        known = [bound for bound in (_largest(part, scope) for part in node.input) if bound is not None]
        return min(known, default=None)
    if node.op_type == "Shape":
        limits = {attribute.name: attribute.i for attribute in node.attribute}
        dims = scope.dims.get(node.input[0])
        part = dims[limits.get("start", 0) : limits.get("end", len(dims))] if dims else []
        return max((dim for dim in part if dim is not None), default=None) if None not in part else None
    return None


def _type_name(number: int) -> str:
    """NumPy's name of an ONNX element type; empty for an unknown one."""
    if not number:
        return ""
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return _TYPE_NAMES.get(name, name)
