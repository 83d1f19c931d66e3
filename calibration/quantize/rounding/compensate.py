"""Rounding weights so that a layer's output changes least: every rounding's error is made up for by what follows.

Source: GPTQ (arXiv 2210.17323), section 3: inputs are rounded one after the other, and the weights of those that are
left move by what keeps x W nearest to what it was, which the inverse of the mean of x x^T tells. Here that mean is
known of every 128 inputs among themselves, so that errors stay within those; scales are fixed before.
"""

from __future__ import annotations

import numpy as np

MOMENT_BLOCK = 128
"""Inputs whose products with each other are known: as many as the widest block of int4 weights has."""
# Added to the diagonal, as a share of its mean: inputs that never vary would make the inverse unbounded (section 3.3).
_DAMPING = 0.01
_LEAST = 1e-12
# Inputs after which the others are updated at once, by a matrix product: less memory is moved.
_BATCH = 16


def in_blocks(by_input: np.ndarray, beyond: float = 0) -> np.ndarray:
    """[K, n] as [ceil(K / 128), 128, n], with `beyond` for inputs beyond K."""
    whole = np.pad(by_input, ((0, -len(by_input) % MOMENT_BLOCK), (0, 0)), constant_values=beyond)
    return whole.reshape(-1, MOMENT_BLOCK, by_input.shape[1])


class Rounding:
    """Rounds weights of a matrix whose inputs have these second moments.

    `moments`: float32 [ceil(K / 128), 128, 128], the mean of x x^T, as
    `prunevid.calibration.quantize.activations.Activations` has it; channels beyond K are zero.
    """

    def __init__(self, moments: np.ndarray) -> None:
        wide = moments.astype(np.float64)
        variance = np.diagonal(wide, axis1=1, axis2=2)
        # Those that matter most come first, while there are many left to make up for them.
        self._order = np.argsort(-variance, axis=1, kind="stable")
        sorted_moments = np.take_along_axis(wide, self._order[:, :, None], axis=1)
        sorted_moments = np.take_along_axis(sorted_moments, self._order[:, None, :], axis=2)
        damping = np.maximum(_DAMPING * variance.mean(axis=1), _LEAST)[:, None, None]
        damped = sorted_moments + damping * np.eye(MOMENT_BLOCK)
        # Of the inverse's upper Cholesky factor, row i says how those after i move for an error in i.
        factor = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
        self._moves = (factor / np.diagonal(factor, axis1=1, axis2=2)[:, :, None]).astype(np.float32)

    def levels(self, values: np.ndarray, steps: np.ndarray, row: int, lowest: int, highest: int) -> np.ndarray:
        """Whole numbers float32 [k, n], `lowest` to `highest`, which times `steps` stand for `values`.

        values: float32 [k, n], the weights of k inputs from `row` on, a multiple of 128; steps: float32 [k, n], not
        zero.
        """
        first, blocks = row // MOMENT_BLOCK, in_blocks(values)
        count = len(blocks)
        order, moves = self._order[first : first + count, :, None], self._moves[first : first + count]
        left = np.take_along_axis(blocks, order, axis=1)
        by_step = np.take_along_axis(in_blocks(steps, beyond=1), order, axis=1)
        found = np.empty_like(left)
        for start in range(0, MOMENT_BLOCK, _BATCH):
            stop = start + _BATCH
            errors = np.empty((count, _BATCH, left.shape[2]), np.float32)
            for index in range(start, stop):
                found[:, index] = np.clip(np.rint(left[:, index] / by_step[:, index]), lowest, highest)
                error = left[:, index] - found[:, index] * by_step[:, index]
                errors[:, index - start] = error
                left[:, index + 1 : stop] -= moves[:, index, index + 1 : stop, None] * error[:, None]
            left[:, stop:] -= moves[:, start:stop, stop:].transpose(0, 2, 1) @ errors
        levels = np.empty_like(found)
        np.put_along_axis(levels, order, found, axis=1)
        return levels.reshape(-1, left.shape[2])[: len(values)]
