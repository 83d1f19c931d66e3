"""A bundle's graphs as their files have them: held against the manifest, before anything else reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from prunevid.bundle.manifest import Manifest, TensorSpec
from prunevid.bundle.operators import check_operators
from prunevid.onnx_file import ExternalTensor, OnnxNode, OnnxValue, read_onnx
from prunevid.validation import shown

_CLUSTERING = ("prunevid", "DpcKnn")


def check_graph(folder: Path, manifest: Manifest, name: str) -> None:
    """Hold the file of the graph ``name`` against the manifest.

    Its operators are an export's, its inputs and outputs the manifest's, and its weights lie in files that the manifest
    lists. Raises ValueError where that is not so, OSError where the file cannot be read.
    """
    spec = manifest.graphs[name]
    with (folder / spec.file).open("rb") as file:
        # It was so long a moment ago; what is longer by now is not read.
        data = file.read(manifest.files[spec.file].size)
    graph = read_onnx(data)
    check_operators(graph, manifest.dialect)
    _check_tensors("input", graph.inputs, spec.inputs)
    _check_tensors("output", graph.outputs, spec.outputs)
    for tensor in graph.external:
        _check_place(tensor, PurePosixPath(spec.file).parent, manifest)
    for node in _all_nodes(graph.nodes):
        found, said = node.integers.get("neighbours"), manifest.prune.neighbours
        if (node.domain, node.operator) == _CLUSTERING and found != said:
            raise ValueError(f"it clusters by {found} neighbours, and the manifest says {said}")


def _check_tensors(what: str, found: tuple[OnnxValue, ...], said: tuple[TensorSpec, ...]) -> None:
    if [(value.name, value.dtype, value.shape) for value in found] != [(t.name, t.dtype, t.shape) for t in said]:
        raise ValueError(f"its {what}s are not those that the manifest has")


def _check_place(tensor: ExternalTensor, beside: PurePosixPath, manifest: Manifest) -> None:
    """Weights lie in a file of the bundle, whose size and checksum are known, and wholly inside it."""
    # Not joined by a path's rules: "./x", "/x" and "a/../x" are other spellings, which no export writes.
    name = tensor.location if beside == PurePosixPath() else f"{beside}/{tensor.location}"
    record = manifest.files.get(name)
    if record is None:
        raise ValueError(
            f"its weight {shown(tensor.name)} lies in {shown(tensor.location)}, which is not in the manifest's files"
        )
    if tensor.offset + tensor.length > record.size:
        raise ValueError(f"its weight {shown(tensor.name)} lies behind the end of {shown(tensor.location)}")


def _all_nodes(nodes: tuple[OnnxNode, ...]) -> Iterator[OnnxNode]:
    for node in nodes:
        yield node
        for body in node.bodies:
            yield from _all_nodes(body)
