"""Smoothing: what makes activations hard to quantize is moved into the weights, where it is easier.

Source: SmoothQuant (arXiv 2211.10438), section 4: x W = (x / s) (s W), with s = max |x|^a / max |w|^(1 - a) by input
channel. The paper has one strength a for a model; here it is searched for per input, as AWQ does, and so is how far
the activations' scale is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunevid.calibration.quantize.activations import Activations
from prunevid.calibration.quantize.awq import invertible
from prunevid.calibration.quantize.rounding.qdq_schemes import ActivationScheme
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Matrix, Scheme

STRENGTHS = np.linspace(0, 1, 11)
"""Strengths that are tried, besides no smoothing at all."""
CLIPS = (0.9, 0.8, 0.7)
"""Shares of the largest activation that are tried as the end of the scale, besides all of it."""
_LEAST = 1e-4


def candidate_scales(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scales float32 [12, K] to try for largest magnitudes [K] of activations and weights; the first is all ones."""
    x, w = (np.maximum(values.astype(np.float64), _LEAST) for values in (activations, weights))
    scales = x ** STRENGTHS[:, None] / w ** (1 - STRENGTHS[:, None])
    middle = np.sqrt(scales.max(axis=1, keepdims=True) * scales.min(axis=1, keepdims=True))
    return np.concatenate([np.ones((1, len(x))), scales / middle]).astype(np.float32)


def find_smoothing(
    matrices: Sequence[Matrix], weights: Scheme, inputs: ActivationScheme, seen: Activations
) -> tuple[np.ndarray | None, np.ndarray]:
    """The scale float32 [K], None for ones, and the activations' step (scalar), by which outputs change least.

    The strength is searched for first, then the clip. Weights and activations are quantized as they will be.
    """
    dtype = matrices[0].dtype
    largest_weights = np.max([_row_magnitude(matrix) for matrix in matrices], axis=0)
    scales = invertible(candidate_scales(seen.largest, largest_weights), dtype)
    whole = [float((seen.largest / scale).max()) for scale in scales]
    steps = [inputs.step(largest, dtype) for largest in whole]
    best = int(np.argmin(_errors(matrices, weights, inputs, seen.rows, list(zip(scales, steps, strict=True)))))
    scale = scales[best]
    cut = [steps[best], *(inputs.step(whole[best] * clip, dtype) for clip in CLIPS)]
    step = cut[int(np.argmin(_errors(matrices, weights, inputs, seen.rows, [(scale, one) for one in cut])))]
    return (None if best == 0 else scale), step


def _errors(
    matrices: Sequence[Matrix],
    weights: Scheme,
    inputs: ActivationScheme,
    rows: np.ndarray,
    candidates: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Sum of squared changes of rows [n, K] times all matrices, by candidate (scale, step).

    Of a wide matrix, a sample of outputs is looked at, and counted for all.
    """
    quantized = [inputs.restore(rows / scale, step) for scale, step in candidates]
    errors = np.zeros(len(candidates))
    for matrix in matrices:
        sample = matrix.sample()
        exact, share = rows @ sample, sample.shape[1] / matrix.shape[1]
        for index, (x, (scale, _)) in enumerate(zip(quantized, candidates, strict=True)):
            arrays = weights.quantize(ArrayMatrix(sample * scale[:, None], matrix.dtype))
            change = x @ weights.dequantize(arrays, len(sample)) - exact
            errors[index] += np.square(change).sum(dtype=np.float64) / share
    return errors


def _row_magnitude(matrix: Matrix) -> np.ndarray:
    """The largest magnitude float32 [K] of every input's weights."""
    largest = np.zeros(matrix.shape[0], np.float32)
    for block in matrix.blocks():
        rows = slice(block.row, block.row + len(block.values))
        np.maximum(largest[rows], np.abs(block.values).max(axis=1), out=largest[rows])
    return largest
