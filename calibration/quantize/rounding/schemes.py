"""How one weight matrix is quantized: plain NumPy over blocks of it, so that no large one is ever in memory as floats.

A matrix is [K inputs, N outputs], whichever way it is stored. Every scheme is symmetric: a quantized weight times its
scale is the weight, without a zero point to subtract (int4 keeps its codes unsigned, with 8 standing for zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prunevid.calibration.quantize.rounding.compensate import MOMENT_BLOCK, Rounding

# Elements that are read as floats and quantized at once.
_BLOCK = 1 << 20
# Rows per read are a multiple of this, so that no quantization block is ever cut.
_ROWS = 256
_STRIPS, _STRIP = 8, 64


@dataclass(frozen=True)
class Block:
    """A part of a matrix [K, N]: its first row (input), its first column (output), and its values float32 [k, n]."""

    row: int
    column: int
    values: np.ndarray


class Matrix(Protocol):
    """A weight matrix that is read in parts."""

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs K and outputs N."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The float type that it is stored in, and that its scales get."""
        ...

    def blocks(self) -> Iterator[Block]:
        """All of the matrix; every block has all rows or all columns, and begins at a multiple of 256 rows."""
        ...

    def sample(self) -> np.ndarray:
        """Columns (outputs) float32 [K, n] that stand for all of them: see `sampled_columns`."""
        ...


class Scheme(Protocol):
    """A way to quantize a matrix and to put it back."""

    def quantize(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The arrays that stand for the matrix, by what they are (`codes`, `scale`)."""
        ...

    def dequantize(self, arrays: Mapping[str, np.ndarray], inputs: int) -> np.ndarray:
        """The matrix [inputs, N] that the arrays stand for, float32."""
        ...


@dataclass(frozen=True)
class ArrayMatrix:
    """A matrix [K, N] that is in memory; `scale_type`: as what it counts, if not as the values' type."""

    values: np.ndarray
    scale_type: np.dtype | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs K and outputs N."""
        return int(self.values.shape[0]), int(self.values.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """`scale_type` where it is given, else the values' own."""
        return self.scale_type or self.values.dtype

    def blocks(self) -> Iterator[Block]:
        """All of the matrix; every block has all rows or all columns, and begins at a multiple of 256 rows."""
        for start, stop in spans(self.shape[0], self.shape[1]):
            yield Block(start, 0, self.values[start:stop])

    def sample(self) -> np.ndarray:
        """Columns (outputs) float32 [K, n] that stand for all of them: see `sampled_columns`."""
        strips = [self.values[:, start:stop] for start, stop in sampled_columns(self.shape[1])]
        return np.concatenate(strips, axis=1).astype(np.float32, copy=False)


def spans(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about a million elements each, in multiples of 256."""
    step = max(1, _BLOCK // (_ROWS * width)) * _ROWS
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def sampled_columns(columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns that stand for all: all of 512, or eight strips of 64 that are evenly spread over more.

    Every output has its own scales, so that what quantization does to the mean output is told by some of them.
    """
    if columns <= _STRIPS * _STRIP:
        yield 0, columns
        return
    for start in np.linspace(0, columns - _STRIP, _STRIPS).astype(np.int64).tolist():
        yield start, start + _STRIP


@dataclass(frozen=True)
class Int8PerChannel:
    """int8 weights with one scale per output: `codes` int8 [K, N], `scale` [N] of the matrix's type.

    scale = max |w| of the output's column / 127, rounded up where the type is float16; code = w / scale, rounded half
    to even.
    """

    def quantize(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The arrays that stand for the matrix, by what they are (`codes`, `scale`); reads the matrix twice."""
        inputs, outputs = matrix.shape
        scale = as_scale(column_magnitude(matrix) / np.float32(127), matrix.dtype)
        wide = scale.astype(np.float32)
        codes = np.empty((inputs, outputs), np.int8)
        for block in matrix.blocks():
            rows = slice(block.row, block.row + block.values.shape[0])
            columns = slice(block.column, block.column + block.values.shape[1])
            codes[rows, columns] = np.rint(block.values / wide[columns])
        return {"codes": codes, "scale": scale}

    def dequantize(self, arrays: Mapping[str, np.ndarray], inputs: int) -> np.ndarray:
        """The matrix [inputs, N] that the arrays stand for, float32."""
        values: np.ndarray = arrays["codes"].astype(np.float32) * arrays["scale"].astype(np.float32)
        return values


@dataclass(frozen=True)
class Int4Blocks:
    """4-bit weights in blocks along the inputs, as the operator MatMulNBits wants them.

    `codes` uint8 [N, ceil(K / block), block / 2], two codes a byte, the earlier input in the lower half; `scale`
    float32 [N, ceil(K / block)]. scale = the block's value of largest magnitude / -8, so that this value is met
    exactly; code = w / scale + 8, rounded, 0 to 15. Inputs beyond K are zero. Source: ONNX Runtime's ContribOperators
    (MatMulNBits), and its own quantizer, which gives the same codes and scales.
    """

    block: int

    def quantize(self, matrix: Matrix, rounding: Rounding | None = None) -> dict[str, np.ndarray]:
        """The arrays that stand for the matrix: codes to the nearest, or by `rounding`, which leaves the scales alone.

        `rounding` takes whole blocks: in one that is all zero, it has no error to make up for.
        """
        if rounding is not None and self.block % MOMENT_BLOCK:
            raise ValueError(f"blocks of {self.block} inputs are not rounded by their activations")
        inputs, outputs = matrix.shape
        blocks = -(-inputs // self.block)
        codes = np.empty((outputs, blocks, self.block // 2), np.uint8)
        scale = np.empty((outputs, blocks), np.float32)
        for part in matrix.blocks():
            values = _padded(part.values, self.block)
            first = part.row // self.block
            count = len(values) // self.block
            by_block = values.reshape(count, self.block, -1)
            largest = np.take_along_axis(by_block, np.abs(by_block).argmax(axis=1)[:, None], axis=1)
            scales = largest / np.float32(-8)
            if rounding is None:
                with np.errstate(divide="ignore"):
                    inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
                levels = np.clip(np.floor(by_block * inverse + np.float32(8.5)), 0, 15).astype(np.uint8)
            else:
                steps = np.where(scales != 0, scales, np.float32(1)).repeat(self.block, axis=1).reshape(values.shape)
                by_input = rounding.levels(values, steps, part.row, -8, 7)
                levels = (by_input + 8).astype(np.uint8).reshape(by_block.shape)
            packed = levels[:, 0::2] | levels[:, 1::2] << 4
            columns = slice(part.column, part.column + values.shape[1])
            codes[columns, first : first + count] = packed.transpose(2, 0, 1)
            scale[columns, first : first + count] = scales[:, 0].T
        return {"codes": codes, "scale": scale}

    def dequantize(self, arrays: Mapping[str, np.ndarray], inputs: int) -> np.ndarray:
        """The matrix [inputs, N] that the arrays stand for, float32."""
        packed, scale = arrays["codes"], arrays["scale"]
        levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scale.shape, self.block)
        values = (levels.astype(np.float32) - 8) * scale[..., None]
        return np.ascontiguousarray(values.reshape(len(scale), -1)[:, :inputs].T)


def column_magnitude(matrix: Matrix) -> np.ndarray:
    """The largest magnitude float32 [N] of every output's weights."""
    largest = np.zeros(matrix.shape[1], np.float32)
    for block in matrix.blocks():
        columns = slice(block.column, block.column + block.values.shape[1])
        np.maximum(largest[columns], np.abs(block.values).max(axis=0), out=largest[columns])
    return largest


def as_scale(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Scales float32 of any shape in a float type, never below what they were: no code leaves its range.

    Zero becomes 1, since zero divided by zero is no weight.
    """
    scale = exact.astype(dtype)
    scale = np.where(scale.astype(np.float32) < exact, np.nextafter(scale, np.array(np.inf, dtype)), scale)
    nonzero: np.ndarray = np.where(scale > 0, scale, np.array(1, dtype)).astype(dtype)
    return nonzero


def _padded(values: np.ndarray, multiple: int) -> np.ndarray:
    missing = -len(values) % multiple
    return np.pad(values, ((0, missing), (0, 0))) if missing else values
