"""Quantized weights on disk, layer by layer, until it is decided which of them the bundle will have."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunevid.calibration.quantize.awq import ScaledMatrix
from prunevid.calibration.quantize.linears import Linear
from prunevid.calibration.quantize.rounding.compensate import Rounding
from prunevid.calibration.quantize.rounding.schemes import Matrix
from prunevid.calibration.workspace import Workspace
from prunevid.files import read_blocks

# Tensors that a runtime maps into memory lie on page boundaries, the small ones between them where they fit.
_PAGE = 4096
_WORD = 16
# Arrays of a layer that belong to its input, and are the same for all layers that share it.
INPUT_PARTS = ("inverse", "step", "zero")


@dataclass(frozen=True)
class InputScaling:
    """What is done to an input before products: `scale` float32 [K] that it is divided by, None for nothing.

    arrays: what else is kept of it, by names of `INPUT_PARTS`; rounding: how weights that it is multiplied by
    are rounded, None for what their scheme does by itself.
    """

    scale: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    rounding: Rounding | None = None


class WeightStore:
    """The quantized weights of one graph, in one file of the workspace."""

    def __init__(self, workspace: Workspace, graph: str) -> None:
        self._workspace, self._graph = workspace, graph
        self._file = workspace.folder / f"{graph}.weights"
        self._file.touch()

    def has(self, linear: Linear) -> bool:
        """Whether a layer was quantized before."""
        return self._step(linear.name) in self._workspace

    def quantize(
        self, linear: Linear, quantize: Callable[[Matrix, InputScaling], dict[str, np.ndarray]], inputs: InputScaling
    ) -> None:
        """Quantize a layer's matrix, unless that was done before. At most one layer is in memory.

        Where the input is divided by a scale, the matrix's rows are multiplied by it, and `inverse`, what the input
        is to be multiplied by, is kept beside the scheme's arrays, in the matrix's float type.
        """
        if self.has(linear):
            return
        if inputs.scale is None:
            quantized = quantize(linear.weight, inputs)
        else:
            quantized = quantize(ScaledMatrix(linear.weight, inputs.scale), inputs)
            quantized["inverse"] = (np.float32(1) / inputs.scale).astype(linear.weight.dtype)
        quantized |= inputs.arrays
        arrays: dict[str, dict[str, object]] = {}
        with self._file.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            for part, array in quantized.items():
                # What a killed run left behind its last finished layer stays as a gap.
                kind, stored = ir.DataType.from_numpy(array.dtype), _as_stored(array)
                file.seek(_padding(file.tell(), stored.nbytes), os.SEEK_CUR)
                arrays[part] = {
                    "type": kind.name, "shape": list(array.shape), "offset": file.tell(), "bytes": stored.nbytes
                }  # fmt: skip
                file.write(stored.data)
            file.flush()
            os.fsync(file.fileno())
        self._workspace.record(self._step(linear.name), arrays)

    def tensors(self, name: str) -> dict[str, ir.ExternalTensor]:
        """The arrays of a layer that was quantized, by what they are, each named `LAYER.PART`."""
        return {
            part: ir.ExternalTensor(
                self._file.name,
                entry["offset"],
                entry["bytes"],
                ir.DataType[entry["type"]],
                shape=ir.Shape(entry["shape"]),
                name=f"{name}.{part}",
                base_dir=self._file.parent,
            )
            for part, entry in self._workspace[self._step(name)].items()
        }

    def _step(self, layer: str) -> str:
        return f"quantize {self._graph} {layer}"


def write_rewritten(
    model: ir.Model, folder: Path, shared: frozenset[str], advance: Callable[[int], None]
) -> tuple[str, ...]:
    """Write `NAME.onnx` and `NAME.onnx.data` into `folder`, copying weights block by block from where they lie.

    shared: names of files that the graph goes on to share with the rest of the bundle, such as the embedding table.
    advance is called with the bytes just written. Returns the names of the files that hold its weights, ascending.
    """
    path = folder / f"{model.graph.name}.onnx"
    with (folder / f"{path.name}.data").open("wb") as data:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor) or Path(tensor.path).name in shared:
                continue
            data.seek(_padding(data.tell(), tensor.nbytes), os.SEEK_CUR)
            offset = data.tell()
            for block in read_blocks(Path(tensor.path), tensor.offset or 0, tensor.nbytes):
                data.write(block)
                advance(len(block))
            value.const_value = ir.ExternalTensor(
                f"{path.name}.data", offset, tensor.nbytes, tensor.dtype,
                shape=tensor.shape, name=value.name, base_dir=folder,
            )  # fmt: skip
    ir.save(model, path)
    tensors = (value.const_value for value in model.graph.initializers.values())
    return tuple(sorted({Path(tensor.path).name for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}))


def stored_bytes(model: ir.Model, shared: frozenset[str]) -> int:
    """Bytes that `write_rewritten` will write for the model's weights."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(t.nbytes for t in tensors if isinstance(t, ir.ExternalTensor) and Path(t.path).name not in shared)


def _as_stored(array: np.ndarray) -> np.ndarray:
    """An array's bytes uint8, as ONNX keeps them: of 4-bit numbers two to a byte, the earlier one in the lower half.

    4-bit arrays have an even last axis.
    """
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if ir.DataType.from_numpy(array.dtype).bitwidth != 4:
        return raw
    packed: np.ndarray = (raw[0::2] & 15) | (raw[1::2] << 4)
    return packed


def _padding(position: int, size: int) -> int:
    """Bytes to leave out behind `position` before a tensor of `size` bytes."""
    return -position % (_PAGE if size >= _PAGE else _WORD)
