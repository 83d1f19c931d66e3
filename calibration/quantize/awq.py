"""Activation-aware scales of weights: channels that carry large activations are quantized more finely.

Source: AWQ (arXiv 2306.00978), section 3.2: x W = (x / s) (s W) for any s > 0; s is the mean magnitude of each input
channel to a power that is searched for, so that the layer's output on calibration data changes least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunevid.calibration.quantize.activations import Activations
from prunevid.calibration.quantize.rounding.compensate import in_blocks
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Block, Matrix, Scheme

POWERS = np.linspace(0, 1, 11)
"""Powers that are tried; 0 is no scaling."""
_LEAST_MAGNITUDE = 1e-4


@dataclass(frozen=True)
class ScaledMatrix:
    """A matrix with every row (input) multiplied by its entry of `scale` float32 [K]."""

    matrix: Matrix
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs K and outputs N."""
        return self.matrix.shape

    @property
    def dtype(self) -> np.dtype:
        """The float type that it is stored in, and that its scales get."""
        return self.matrix.dtype

    def blocks(self) -> Iterator[Block]:
        """All of the matrix; every block has all rows or all columns, and begins at a multiple of 256 rows."""
        for block in self.matrix.blocks():
            scale = self.scale[block.row : block.row + len(block.values), None]
            yield Block(block.row, block.column, block.values * scale)

    def sample(self) -> np.ndarray:
        """Columns (outputs) float32 [K, n] that stand for all of them: see `sampled_columns`."""
        scaled: np.ndarray = self.matrix.sample() * self.scale[:, None]
        return scaled


def candidate_scales(magnitude: np.ndarray) -> np.ndarray:
    """Scales float32 [11, K] to try for mean magnitudes [K]; the largest times the smallest of each is 1."""
    scales = np.maximum(magnitude.astype(np.float64), _LEAST_MAGNITUDE) ** POWERS[:, None]
    middle = np.sqrt(scales.max(axis=1, keepdims=True) * scales.min(axis=1, keepdims=True))
    normed: np.ndarray = (scales / middle).astype(np.float32)
    return normed


def invertible(scales: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Scales float32 whose inverses, which inputs are multiplied by, a graph in float16 can hold exactly."""
    if dtype == np.float32:
        return scales
    held: np.ndarray = np.float32(1) / (np.float32(1) / scales).astype(dtype).astype(np.float32)
    return held


def output_errors(matrix: Matrix, scheme: Scheme, scales: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Mean squared change [S] of a unit row times the matrix, rounded to the nearest with each of `scales` [S, K].

    With E the change of the matrix and `moments` float32 [ceil(K / 128), 128, 128] the mean of x x^T / |x|^2 by
    blocks of channels (`prunevid.calibration.quantize.activations.Activations`), it is the sum of
    tr(E_b^T M_b E_b): what all rows say, not a sample of them. Products across blocks are left out. Of a wide matrix, a
    sample of outputs is looked at, and counted for all.
    """
    sample = matrix.sample()
    errors: np.ndarray = np.empty(len(scales))
    for index, scale in enumerate(scales):
        by_input = scale[:, None]
        arrays = scheme.quantize(ArrayMatrix(sample * by_input, matrix.dtype))
        change = in_blocks(scheme.dequantize(arrays, len(sample)) / by_input - sample)
        errors[index] = np.vdot(change, moments @ change)
    errors *= matrix.shape[1] / sample.shape[1]
    return errors


def find_scale(matrices: Sequence[Matrix], scheme: Scheme, activations: Activations) -> np.ndarray:
    """The scale float32 [K] for layers that share an input, by which their outputs change least in all."""
    scales = invertible(candidate_scales(activations.magnitude), matrices[0].dtype)
    errors = sum(output_errors(matrix, scheme, scales, activations.moments) for matrix in matrices)
    best: np.ndarray = scales[int(np.argmin(errors))]
    return best


def scaled_moments(moments: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The moments float32 [ceil(K / 128), 128, 128] of an input that is divided by `scale` [K]."""
    by_block = in_blocks(scale[:, None], beyond=1)
    divided: np.ndarray = moments / by_block / by_block.transpose(0, 2, 1)
    return divided
