"""A bundle's graphs as their files have them: held against the manifest, before anything else reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from prunevid.bundle.manifest import FileRecord, Manifest, TensorSpec
from prunevid.bundle.operators import check_operators
from prunevid.onnx_file import ExternalTensor, OnnxFile, OnnxNode, OnnxValue, read_onnx
from prunevid.validation import shown

_CLUSTERING = ("prunevid", "DpcKnn")


def check_graph(folder: Path, manifest: Manifest, name: str) -> None:
    """Hold the file of the graph `name` against the manifest.

    Its operators are an export's, its inputs and outputs the manifest's, and its weights lie in files that the manifest
    lists. Raises ValueError where that is not so, OSError where the file cannot be read.
    """
    spec = manifest.graphs[name]
    graph = read_graph(folder / spec.file, manifest.files[spec.file])
    check_operators(graph, manifest.dialect)
    _check_tensors("input", graph.inputs, spec.inputs)
    _check_tensors("output", graph.outputs, spec.outputs)
    for tensor in graph.external:
        _check_place(tensor, spec.file, manifest)
    if list(spec.files) != weight_files(graph, spec.file):
        raise ValueError("its weights are not in the files that the manifest has for them")
    for node in _all_nodes(graph.nodes):
        found, said = node.integers.get("neighbours"), manifest.prune.neighbours
        if (node.domain, node.operator) == _CLUSTERING and found != said:
            raise ValueError(f"it clusters by {found} neighbours, and the manifest says {said}")


def read_graph(path: Path, record: FileRecord) -> OnnxFile:
    """Read a graph's file, which had the recorded size. Raises ValueError where it is none, OSError where it fails."""
    with path.open("rb") as file:
        # It was so long a moment ago; what is longer by now is not read.
        return read_onnx(file.read(record.size))


def _check_tensors(what: str, found: tuple[OnnxValue, ...], said: tuple[TensorSpec, ...]) -> None:
    if [(value.name, value.dtype, value.shape) for value in found] != [(t.name, t.dtype, t.shape) for t in said]:
        raise ValueError(f"its {what}s are not those that the manifest has")


def weight_files(graph: OnnxFile, file: str) -> list[str]:
    """The bundle's files that hold weights of a graph, which is in the bundle's `file`, each once, ascending."""
    return sorted({_beside(file, tensor.location) for tensor in graph.external})


def _beside(file: str, location: str) -> str:
    # Not joined by a path's rules: "./x", "/x" and "a/../x" are other spellings, which no export writes.
    folder = PurePosixPath(file).parent
    return location if folder == PurePosixPath() else f"{folder}/{location}"


def _check_place(tensor: ExternalTensor, file: str, manifest: Manifest) -> None:
    """Weights lie in a file of the bundle, whose size and checksum are known, and wholly inside it."""
    record = manifest.files.get(_beside(file, tensor.location))
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
