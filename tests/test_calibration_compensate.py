"""Rounding that makes up for its errors, beside a plain statement of it, and that outputs change less by it."""

from __future__ import annotations

import numpy as np
import pytest
from activations import activations_of
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid.calibration.quantize.rounding.compensate import Rounding
from prunevid.calibration.quantize.rounding.qdq_schemes import Int4PerBlock
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Int4Blocks


def correlated(rng: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    """Rows whose channels hang together, as activations do: a few directions carry most of them."""
    directions = rng.standard_normal((8, inputs)) * rng.lognormal(size=inputs)
    mixed = rng.standard_normal((rows, 8)) @ directions + 0.3 * rng.standard_normal((rows, inputs))
    return mixed.astype(np.float32)


def one_by_one(values: np.ndarray, step: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Levels of weights [n, N] by n inputs with these moments, as optimal brain surgery does it.

    Inputs are fixed in the order of their variance; after each, those left are moved to where the output's error is
    least: w_left -= H_left^-1 h e, with the inverse made anew every time.
    """
    h = moments.astype(np.float64) + 0.01 * np.diag(moments).mean() * np.eye(len(moments))
    left, levels = values.astype(np.float64), np.empty(values.shape)
    order = list(np.argsort(-np.diag(moments), kind="stable"))
    while order:
        first, *order = order
        levels[first] = np.clip(np.rint(left[first] / step[first]), -8, 7)
        error = left[first] - levels[first] * step[first]
        if order:
            left[order] += np.outer(np.linalg.solve(h[np.ix_(order, order)], h[order, first]), error)
    return levels


def test_levels_are_those_of_brain_surgery() -> None:
    rng = np.random.default_rng(2)
    moments = activations_of(correlated(rng, 400, 128)).moments
    values = rng.standard_normal((128, 6)).astype(np.float32)
    steps = np.full_like(values, 0.3)
    found = Rounding(moments).levels(values, steps, 0, -8, 7)
    expected = one_by_one(values, steps, moments[0])
    # A weight that comes to lie between two levels to the last bit may go either way, and those after it with it.
    same = (found == expected).all(axis=0)
    assert same.mean() >= 0.5
    assert np.mean(found == expected) > 0.9


def test_inputs_that_do_not_hang_together_are_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(3)
    moments = np.stack([np.diag(rng.uniform(0.1, 2, 128)) for _ in range(2)]).astype(np.float32)
    values = rng.standard_normal((200, 9)).astype(np.float32)
    steps = rng.uniform(0.2, 0.4, values.shape).astype(np.float32)
    found = Rounding(moments).levels(values, steps, 0, -8, 7)
    assert np.array_equal(found, np.clip(np.rint(values / steps), -8, 7))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(0, 44), st.integers(0, 2**32))
def test_outputs_change_less(blocks: int, odd: int, seed: int) -> None:
    """By more than half, over 32 outputs, with the same scales: by both ways of writing int4."""
    rng = np.random.default_rng(seed)
    for scheme, inputs in ((Int4Blocks(128), 64 * blocks - odd), (Int4PerBlock(), 64 * blocks)):
        rows, matrix = correlated(rng, 300, inputs), rng.standard_normal((inputs, 32)).astype(np.float32)
        rounding = Rounding(activations_of(rows).moments)
        nearest, by_rows = scheme.quantize(ArrayMatrix(matrix)), scheme.quantize(ArrayMatrix(matrix), rounding)
        assert np.array_equal(nearest["scale"], by_rows["scale"])
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        before, after = (
            np.square(units @ (scheme.dequantize(arrays, inputs) - matrix)).sum() for arrays in (nearest, by_rows)
        )
        assert after < 0.5 * before


@pytest.mark.parametrize("scheme", [Int4Blocks(128), Int4PerBlock()])
def test_a_matrix_in_parts_is_rounded_as_in_one(scheme: Int4Blocks | Int4PerBlock) -> None:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((1024, 4800)).astype(np.float32)
    rounding = Rounding(activations_of(correlated(rng, 300, 1024)).moments)
    assert len(list(ArrayMatrix(matrix).blocks())) > 1
    whole = scheme.quantize(ArrayMatrix(matrix), rounding)
    alone = scheme.quantize(ArrayMatrix(matrix[:, 64:128]), rounding)
    columns = (slice(64, 128), slice(None)) if isinstance(scheme, Int4Blocks) else (slice(None), slice(64, 128))
    # A product of other shapes is another in its last bits.
    assert np.mean(whole["codes"][columns] == alone["codes"]) > 0.999


def test_inputs_that_are_always_zero_are_no_trouble() -> None:
    matrix = np.random.default_rng(6).standard_normal((256, 3)).astype(np.float32)
    rounding = Rounding(np.zeros((2, 128, 128), np.float32))
    for scheme in (Int4Blocks(128), Int4PerBlock()):
        nearest, found = scheme.quantize(ArrayMatrix(matrix)), scheme.quantize(ArrayMatrix(matrix), rounding)
        restored = scheme.dequantize(found, 256)
        assert np.abs(restored - matrix).max() <= np.abs(nearest["scale"]).max() * 1.001
