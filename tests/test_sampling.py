"""Sampling against transformers' logits warpers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid.errors import PruneVidError
from prunevid.runtime.text.sampling import Sampler, SamplingConfig


def _logits(size: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def _warped(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities as transformers' generate would draw from, in float64; zero where a token is removed."""
    warpers = pytest.importorskip("transformers").generation.logits_process
    scores = pytest.importorskip("torch").from_numpy(logits.astype(np.float64))[None]
    scores = warpers.TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = warpers.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = warpers.TopPLogitsWarper(top_p)(None, scores)
    return np.asarray(scores.softmax(-1)[0])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    size=st.integers(1, 300),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 1000]),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99, 1.0]),
)
def test_distribution_equals_transformers(size: int, seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = _logits(size, seed)
    expected = _warped(logits, temperature, top_k, top_p)
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, probabilities = Sampler(config).distribution(logits)
    assert tokens.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(probabilities, expected[tokens], rtol=1e-9)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_distribution_equals_transformers_at_a_real_vocabulary(scale: float, top_p: float) -> None:
    logits = _logits(151_936, 1, scale)
    expected = _warped(logits, 0.8, 0, top_p)
    tokens, probabilities = Sampler(SamplingConfig(temperature=0.8, top_p=top_p)).distribution(logits)
    # Summing 150 thousand probabilities in another order may move the last token over the edge.
    assert len(np.setxor1d(tokens, np.flatnonzero(expected))) <= 1
    np.testing.assert_allclose(probabilities, expected[tokens], rtol=1e-3)


def test_equal_logits() -> None:
    logits = np.array([1, 3, 3, 3, 2], np.float32)
    assert Sampler(SamplingConfig())(logits) == 1
    # As transformers does, top-k keeps everything equal to the last kept.
    assert Sampler(SamplingConfig(temperature=1, top_k=2)).distribution(logits)[0].tolist() == [1, 2, 3]
    # Top-p has to choose, and takes the first.
    assert Sampler(SamplingConfig(temperature=1, top_p=0.4)).distribution(logits)[0].tolist() == [1, 2]
    flat = np.zeros(5000, np.float32)
    tokens = Sampler(SamplingConfig(temperature=1, top_p=0.5)).distribution(flat)[0]
    assert len(tokens) in (2500, 2501)
    assert tokens.tolist() == list(range(len(tokens)))


def test_excluded_tokens_are_never_drawn() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[7, 30]] = [1.0, 1.0]
    for config in (SamplingConfig(temperature=1), SamplingConfig(temperature=5, top_p=0.99, top_k=20)):
        sampler = Sampler(config)
        assert {sampler(logits) for _ in range(50)} == {7, 30}


@pytest.mark.parametrize("temperature", [1e-300, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = _logits(1000, 3)
    assert Sampler(SamplingConfig(temperature=temperature))(logits) == int(logits.argmax())


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingConfig(temperature=1.0, seed=1))
    counts = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_the_seed_decides() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, top_p=0.95, seed=seed))
        return [sampler(_logits(500, step)) for step in range(30)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits",
    [
        np.array([0, np.nan, 1], np.float32),
        np.array([0, np.inf, 1], np.float32),
        np.full(3, -np.inf, np.float32),
        np.zeros(0, np.float32),
        np.zeros((1, 3), np.float32),
    ],
)
def test_unusable_logits_are_refused(logits: np.ndarray, temperature: float) -> None:
    with pytest.raises(PruneVidError, match="logits"):
        Sampler(SamplingConfig(temperature=temperature))(logits)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"seed": -1},
        {"seed": True},
        {"max_new_tokens": 0},
        {"stop": "a text instead of a list"},
        {"stop": ("",)},
        {"stop": (1,)},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(PruneVidError, match=next(iter(values))):
        SamplingConfig(**values)


def test_stop_may_be_a_list() -> None:
    assert SamplingConfig(stop=["a", "b"]).stop == ("a", "b")


def test_a_token_of_a_real_vocabulary_takes_milliseconds() -> None:
    logits = _logits(151_936, 2)
    sampler = Sampler(SamplingConfig(temperature=0.7, top_p=0.9, top_k=50))
    sampler(logits)
    start = time.perf_counter()
    for _ in range(5):
        sampler(logits)
    assert (time.perf_counter() - start) / 5 < 0.1
