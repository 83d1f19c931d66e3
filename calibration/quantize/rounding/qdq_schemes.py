"""Quantization as QuantizeLinear and DequantizeLinear of standard ONNX have it, for TensorRT: weights and activations.

All is symmetric, and every scale is positive, as TensorRT wants it (its page "Quantization Schemes").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from prunevid.calibration.quantize.rounding.compensate import Rounding
from prunevid.calibration.quantize.rounding.schemes import Matrix, as_scale, column_magnitude

FLOAT8 = np.dtype(ir.DataType.FLOAT8E4M3FN.numpy())
INT4 = np.dtype(ir.DataType.INT4.numpy())
# The largest finite number of E4M3.
_FLOAT8_LARGEST = np.float32(448)


@dataclass(frozen=True)
class Float8PerChannel:
    """E4M3 weights with one scale per output: `codes` float8_e4m3fn [K, N], `scale` [N] of the matrix's type.

    scale = max |w| of the output's column / 448, rounded up where the type is float16; code = w / scale, rounded half
    to even. Per output, as NVIDIA's Model Optimizer does it for TensorRT in ONNX (its support matrix, FP8).
    """

    def quantize(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The arrays that stand for the matrix, by what they are (`codes`, `scale`); reads the matrix twice."""
        scale = as_scale(column_magnitude(matrix) / _FLOAT8_LARGEST, matrix.dtype)
        wide = scale.astype(np.float32)
        codes = np.empty(matrix.shape, FLOAT8)
        for block in matrix.blocks():
            rows = slice(block.row, block.row + block.values.shape[0])
            columns = slice(block.column, block.column + block.values.shape[1])
            codes[rows, columns] = (block.values / wide[columns]).astype(FLOAT8)
        return {"codes": codes, "scale": scale}

    def dequantize(self, arrays: Mapping[str, np.ndarray], inputs: int) -> np.ndarray:
        """The matrix [inputs, N] that the arrays stand for, float32."""
        values: np.ndarray = arrays["codes"].astype(np.float32) * arrays["scale"].astype(np.float32)
        return values


@dataclass(frozen=True)
class Int4PerBlock:
    """int4 weights with one scale per block of inputs: `codes` int4 [K, N], `scale` [K / block, N].

    scale = max(max w / 7, max -w / 8) of the block, of the matrix's type, rounded up where that is float16: the block's
    range just fits into -8 to 7. code = w / scale, rounded half to even. Blocks are whole: K must be a multiple of
    `block` (see `block_of`).
    """

    block: int = 128

    def block_of(self, inputs: int) -> int | None:
        """Block size for a matrix of so many inputs: TensorRT has 128 and 64; None where neither divides them."""
        return next((size for size in (self.block, 64) if inputs % size == 0), None)

    def quantize(self, matrix: Matrix, rounding: Rounding | None = None) -> dict[str, np.ndarray]:
        """Codes to the nearest or by `rounding`, and their scales, as every `schemes.Scheme` gives them."""
        inputs, outputs = matrix.shape
        block = self.block_of(inputs)
        if block is None:
            raise ValueError(f"{inputs} inputs are no whole blocks")
        codes = np.empty((inputs, outputs), INT4)
        scale = np.empty((inputs // block, outputs), matrix.dtype)
        for part in matrix.blocks():
            by_block = part.values.reshape(-1, block, part.values.shape[1])
            exact = np.maximum(by_block.max(axis=1) / np.float32(7), by_block.min(axis=1) / np.float32(-8))
            scales = as_scale(exact, matrix.dtype)
            first, columns = part.row // block, slice(part.column, part.column + part.values.shape[1])
            steps = scales.astype(np.float32).repeat(block, axis=0)
            if rounding is None:
                levels = np.rint(part.values / steps)
            else:
                levels = rounding.levels(part.values, steps, part.row, -8, 7)
            codes[part.row : part.row + len(levels), columns] = levels.astype(np.int8).astype(INT4)
            scale[first : first + len(scales), columns] = scales
        return {"codes": codes, "scale": scale}

    def dequantize(self, arrays: Mapping[str, np.ndarray], inputs: int) -> np.ndarray:
        """The matrix [inputs, N] that the arrays stand for, float32."""
        scale = arrays["scale"].astype(np.float32)
        values: np.ndarray = arrays["codes"].astype(np.float32) * scale.repeat(inputs // len(scale), axis=0)
        return values


class ActivationScheme(Protocol):
    """How activations are quantized, with one scale for all of them."""

    def step(self, largest: float, dtype: np.dtype) -> np.ndarray:
        """The scale, a scalar of the float type, for activations of that magnitude at most."""
        ...

    def restore(self, rows: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Activations float32, quantized and put back."""
        ...

    @property
    def zero(self) -> np.ndarray:
        """The zero point, a scalar whose type is the codes'."""
        ...


@dataclass(frozen=True)
class Int8Activations:
    """int8: step = largest / 127; code = x / step, rounded half to even, -128 to 127."""

    def step(self, largest: float, dtype: np.dtype) -> np.ndarray:
        """The scale, a scalar of the float type, for activations of that magnitude at most."""
        return as_scale(np.array(largest / 127, np.float32), dtype)

    def restore(self, rows: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Activations float32, quantized and put back."""
        wide = step.astype(np.float32)
        restored: np.ndarray = np.clip(np.rint(rows / wide), -128, 127) * wide
        return restored

    @property
    def zero(self) -> np.ndarray:
        """The zero point, a scalar whose type is the codes'."""
        return np.zeros((), np.int8)


@dataclass(frozen=True)
class Float8Activations:
    """E4M3: step = largest / 448; code = x / step, held to 448, rounded half to even."""

    def step(self, largest: float, dtype: np.dtype) -> np.ndarray:
        """The scale, a scalar of the float type, for activations of that magnitude at most."""
        return as_scale(np.array(largest, np.float32) / _FLOAT8_LARGEST, dtype)

    def restore(self, rows: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Activations float32, quantized and put back."""
        wide = step.astype(np.float32)
        held = np.clip(rows / wide, -_FLOAT8_LARGEST, _FLOAT8_LARGEST)
        restored: np.ndarray = held.astype(FLOAT8).astype(np.float32) * wide
        return restored

    @property
    def zero(self) -> np.ndarray:
        """The zero point, a scalar whose type is the codes'."""
        return np.zeros((), FLOAT8)
