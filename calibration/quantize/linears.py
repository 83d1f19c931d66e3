"""The linear layers of a graph: matrix products with a constant weight, and how their weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunevid.calibration.quantize.rounding.schemes import Block, sampled_columns, spans
from prunevid.files import reading


@dataclass(frozen=True, eq=False)
class Linear:
    """A MatMul or Gemm of a graph whose weight is a file's.

    name: as in the checkpoint, less `.weight`; node: the product, its input is `node.inputs[0]`; weight: its
    matrix.
    """

    name: str
    node: ir.Node
    weight: StoredMatrix


@dataclass(frozen=True)
class StoredMatrix:
    """A float matrix in an external data file, [K, N] or, if transposed, [N, K]."""

    tensor: ir.ExternalTensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs K and outputs N."""
        rows, columns = (int(size) for size in self.tensor.shape)
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> np.dtype:
        """The float type that it is stored in, and that its scales get."""
        dtype: np.dtype = np.dtype(self.tensor.dtype.numpy())
        return dtype

    def blocks(self) -> Iterator[Block]:
        """All of the matrix; every block has all rows or all columns, and begins at a multiple of 256 rows."""
        rows, columns = (int(size) for size in self.tensor.shape)
        for start, stop in spans(rows, columns):
            values = read_rows(self.tensor, start, stop).astype(np.float32, copy=False)
            yield Block(0, start, values.T) if self.transposed else Block(start, 0, values)

    def sample(self) -> np.ndarray:
        """Columns (outputs) float32 [K, n] that stand for all of them: see `sampled_columns`."""
        ranges = list(sampled_columns(self.shape[1]))
        if self.transposed:
            strips = [read_rows(self.tensor, start, stop).T for start, stop in ranges]
        else:
            strips = [_read_columns(self.tensor, start, stop) for start, stop in ranges]
        return np.concatenate(strips, axis=1).astype(np.float32, copy=False)


def _read_columns(tensor: ir.ExternalTensor, start: int, stop: int) -> np.ndarray:
    """Columns `start` to `stop` of a matrix in a data file, by plain reads."""
    dtype = np.dtype(tensor.dtype.numpy())
    rows, columns = (int(size) for size in tensor.shape)
    values = np.empty((rows, stop - start), dtype)
    with reading(tensor.path), Path(tensor.path).open("rb", buffering=0) as file:
        for row in range(rows):
            file.seek((tensor.offset or 0) + (row * columns + start) * dtype.itemsize)
            values[row] = np.frombuffer(file.read(values[row].nbytes), dtype)
    return values


def read_rows(tensor: ir.ExternalTensor, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of a tensor in a data file, by a plain read: mapped pages would count as memory."""
    dtype = np.dtype(tensor.dtype.numpy())
    shape = tuple(int(size) for size in tensor.shape)
    width = math.prod(shape[1:])
    offset = (tensor.offset or 0) + start * width * dtype.itemsize
    with reading(tensor.path):
        values = np.fromfile(Path(tensor.path), dtype, (stop - start) * width, offset=offset)
    return values.reshape(stop - start, *shape[1:])


def load_graph(file: Path) -> ir.Model:
    """A graph of a bundle; its weights stay in their file. Raises PruneVidError where it cannot be read."""
    with reading(file):
        return ir.load(file)


def find_linears(model: ir.Model) -> list[Linear]:
    """The linear layers of a graph, in its order.

    Products of two activations (attention, the Gram matrices of merging) have no constant weight and are none; nor is
    a product whose weight something else uses as well.
    """
    return [linear for node in model.graph if (linear := _as_linear(node)) is not None]


def _as_linear(node: ir.Node) -> Linear | None:
    if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if weight is None or not isinstance(weight.const_value, ir.ExternalTensor) or len(weight.uses()) != 1:
        return None
    if len(weight.const_value.shape) != 2 or weight.const_value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    transposed = False
    if node.op_type == "Gemm":
        transposed = node.attributes.get_int("transB", 0) == 1
        plain = node.attributes.get_int("transA", 0) == 0 and node.attributes.get_float("alpha", 1.0) == 1.0
        if not plain or (len(node.inputs) > 2 and node.inputs[2] is not None):
            return None
    name = str(weight.name).removesuffix(".T").removesuffix(".weight")
    return Linear(name, node, StoredMatrix(weight.const_value, transposed))
