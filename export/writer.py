"""Writing graphs and their weights into a bundle, one tensor block at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunevid.bundle import GraphSpec, TensorSpec
from prunevid.export.checkpoint.weights import StreamedTensor

# Called with the number of bytes just written.
Advance = Callable[[int], None]

# Weights that a runtime maps into memory lie on page boundaries; smaller tensors stay inside the graph's file.
_ALIGNMENT = 4096
_INLINE = 1024


def write_graph(model: ir.Model, folder: Path, advance: Advance) -> GraphSpec:
    """Write `NAME.onnx` and, if it has weights, `NAME.onnx.data` into `folder`; returns what the manifest says.

    Tensors that already lie in a file of the bundle (`onnx_ir.ExternalTensor`) stay there.
    """
    name = f"{model.graph.name}.onnx"
    data = folder / f"{name}.data"
    with data.open("wb") as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, StreamedTensor):
                offset = file.tell() + (-file.tell() % _ALIGNMENT if tensor.nbytes >= _INLINE else 0)
                file.seek(offset)
                for block in tensor.blocks():
                    file.write(block.tobytes())
                    advance(block.nbytes)
                value.const_value = ir.ExternalTensor(
                    data.name,
                    offset,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=tensor.shape,
                    name=value.name,
                    base_dir=folder,
                )
    if not data.stat().st_size:
        data.unlink()
    ir.save(model, folder / name)
    tensors = (value.const_value for value in model.graph.initializers.values())
    files = sorted({Path(tensor.path).name for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})
    return GraphSpec(name, tuple(files), tuple(map(_spec, model.graph.inputs)), tuple(map(_spec, model.graph.outputs)))


def write_embeddings(tensors: list[StreamedTensor], file: Path, advance: Advance) -> None:
    """Write tensors of one row length below each other as a raw table."""
    with file.open("wb") as table:
        for tensor in tensors:
            for block in tensor.blocks():
                table.write(block.tobytes())
                advance(block.nbytes)


def table_rows(file: Path, rows: int, columns: int, dtype: ir.DataType, name: str) -> ir.ExternalTensor:
    """The first `rows` of a table written by `write_embeddings`, as a weight [rows, columns] of a graph."""
    size = rows * columns * np.dtype(dtype.numpy()).itemsize
    return ir.ExternalTensor(
        file.name, 0, size, dtype, shape=ir.Shape([rows, columns]), name=name, base_dir=file.parent
    )


def weight_bytes(model: ir.Model) -> int:
    """Bytes that `write_graph` will write for the model's weights."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, StreamedTensor))


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None or value.name is None:
        raise ValueError(f"the graph's value {value} has no type: declare it where it is made")
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, str(np.dtype(value.dtype.numpy())), dims)
