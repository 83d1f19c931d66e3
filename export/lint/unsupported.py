"""Which nodes of a graph a release of TensorRT or TensorRT-RTX could not parse or build, told without either.

What each takes is data: `prunevid.export.lint.tensorrt` and `prunevid.export.lint.tensorrt_rtx`. A graph is
looked at as the parser will see it: releases with plugins for the `prunevid` operators get their nodes, all others
the bodies of their functions, written out. Element types and shapes come from ONNX's shape inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import inliner, shape_inference

from prunevid.bundle import GraphSpec
from prunevid.errors import PruneVidError
from prunevid.export.engine import plugins
from prunevid.export.lint import tensorrt
from prunevid.export.lint.parsers import Parser, parser_of, release_of
from prunevid.export.lint.rules import ONNX_DOMAINS, node_findings
from prunevid.export.lint.scope import Bounds, Scope, type_name

__all__ = ["RELEASES", "Finding", "check_graphs", "refuse_unsupported", "release_of", "unsupported"]

# Checked of every portable bundle: JetPack 7.1's, JetPack 7.2's, and the newest whose table was read.
RELEASES = ("10.13", "10.16", "11.1")


class Finding(NamedTuple):
    """A node that a release does not take: its name, its operator, and why not."""

    node: str
    operator: str
    why: str


def unsupported(
    model: onnx.ModelProto, version: str, *, sizes: Mapping[str, int | tuple[int, int]] | None = None
) -> list[Finding]:
    """What a release could not parse or build of a model, in the order of its nodes.

    version: TensorRT's ("10.3", "10.13.2.6"), or TensorRT-RTX's with its name before it ("rtx-1.7.1.116"). Looks into
    function bodies and into the graphs inside nodes (If, Loop, Scan). Weights need not be loaded. sizes: of the graph's
    symbolic dimensions, and of inputs that shapes are computed from, the size, or the smallest and the largest; they
    bound what depends on them (TopK's K).
    Raises PruneVidError for a release older than those that are known.
    """
    parser = parser_of(version)
    known = {name: Bounds(*(size if isinstance(size, tuple) else (size, size))) for name, size in (sizes or {}).items()}
    shapes = {
        value.name: [_bounds(dim, known) for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
    }
    seen = _as_parsed(model, parser, known)
    opset = next((entry.version for entry in seen.opset_import if entry.domain in ONNX_DOMAINS), 0)
    findings = list(_opset_findings(seen, parser))
    for value in (*seen.graph.input, *seen.graph.output):
        kind = type_name(value.type.tensor_type.elem_type)
        if parser.read_as.get(kind, kind) not in parser.io_types:
            findings.append(Finding(value.name, "input or output", f"an engine has none of type {kind or 'unknown'}"))
    findings += _graph_findings(seen.graph, Scope(known, shapes, opset=opset), parser)
    return findings


def refuse_unsupported(
    model: onnx.ModelProto, version: str, *, sizes: Mapping[str, int | tuple[int, int]] | None = None
) -> None:
    """Raise PruneVidError where a release could not parse or build a model; see `unsupported`."""
    findings = unsupported(model, version, sizes=sizes)
    if not findings:
        return
    first = findings[0]
    more = f" (and {len(findings) - 1} nodes more)" if len(findings) > 1 else ""
    hint = ": use fewer frames" if first.operator == "TopK" else ""
    raise PruneVidError(
        f"{parser_of(version).title} cannot parse {model.graph.name}: {first.operator} at {first.node}: {first.why}"
        f"{more}{hint}"
    )


def check_graphs(folder: Path, graphs: Mapping[str, GraphSpec]) -> None:
    """Raise PruneVidError where one of `RELEASES` could not parse a graph that is written in `folder`."""
    for spec in graphs.values():
        model = onnx.load(folder / spec.file, load_external_data=False)
        for release in RELEASES:
            refuse_unsupported(model, release)


def _as_parsed(model: onnx.ModelProto, parser: Parser, sizes: Mapping[str, Bounds]) -> onnx.ModelProto:
    """The model as the parser will see it, with its dimensions at their largest and all types inferred."""
    bounded = onnx.ModelProto()
    bounded.CopyFrom(model)
    for value in bounded.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = int(sizes[dim.dim_param].high)
    if parser.plugins:
        bounded = inliner.inline_selected_functions(bounded, list(plugins.OPERATORS), exclude=True)
    else:
        bounded = inliner.inline_local_functions(bounded)
    return shape_inference.infer_shapes(bounded, data_prop=True)


def _bounds(dim: onnx.TensorShapeProto.Dimension, sizes: Mapping[str, Bounds]) -> Bounds:
    if dim.HasField("dim_value"):
        return Bounds(dim.dim_value, dim.dim_value)
    return sizes.get(dim.dim_param, Bounds(0, inf))


def _opset_findings(model: onnx.ModelProto, parser: Parser) -> Iterator[Finding]:
    for opset in model.opset_import:
        if opset.domain not in ONNX_DOMAINS:
            continue
        if parser.opsets and not parser.opsets[0] <= opset.version <= parser.opsets[1]:
            why = f"is {opset.version}: {parser.opsets[0]} to {parser.opsets[1]} are taken"
            yield Finding(model.graph.name, "opset", why)
        for node in model.graph.node:
            since, _ = tensorrt.CHANGED.get(node.op_type, (opset.version + 1, None))
            if node.op_type in parser.changed and opset.version >= since:
                yield Finding(node.name, node.op_type, f"changed in opset {since}, which is not known yet")


def _graph_findings(graph: onnx.GraphProto, outer: Scope, parser: Parser) -> Iterator[Finding]:
    """Findings of every node of a graph and of the graphs inside its nodes."""
    scope = outer.inside(graph)
    for tensor in graph.initializer:
        kind = type_name(tensor.data_type)
        if kind not in tensorrt.CONSTANT_TYPES:
            yield Finding(tensor.name, "initializer", f"constants cannot be {kind or 'of unknown type'}")
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else "")
        for why in node_findings(node, scope, parser):
            yield Finding(name, node.op_type, why)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graph_findings(inner, scope, parser)
