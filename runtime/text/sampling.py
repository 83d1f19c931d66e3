"""Choosing the next token from logits: greedily, or by temperature, top-k and top-p as transformers does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunevid.errors import PruneVidError

__all__ = ["Sampler", "SamplingConfig"]

_FIRST_CANDIDATES = 1024


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer is decoded.

    Attributes:
        temperature: 0 takes the most probable token every time; otherwise logits are divided by it.
        top_p: Keep the most probable tokens that together reach this probability; 1 keeps all.
        top_k: Keep this many most probable tokens, and those equal to the last of them; 0 keeps all.
        seed: The same seed, logits and settings give the same tokens.
        max_new_tokens: Tokens to generate at most.
        stop: The answer ends before the first of these texts.
        ignore_eos: Go on past end tokens, to max_new_tokens: for measuring how fast tokens come.

    Raises:
        PruneVidError: A value is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int = 128
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or self.temperature < 0:
            raise PruneVidError(f"temperature must be a number of at least 0, not {self.temperature!r}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise PruneVidError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        for name, value, least in (
            ("top_k", self.top_k, 0),
            ("seed", self.seed, 0),
            ("max_new_tokens", self.max_new_tokens, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PruneVidError(f"{name} must be an integer of at least {least}, not {value!r}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise PruneVidError(f"stop must be a sequence of texts that are not empty, not {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Sampler:
    """Draws tokens one after another; its random state advances with every token that is not greedy."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(config.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token id.

        Args:
            logits: float32 [vocabulary]; -inf excludes a token.

        Raises:
            PruneVidError: The logits are empty, not a vector, contain NaN or +inf, or exclude every token.
        """
        if logits.ndim != 1 or not logits.size:
            raise PruneVidError(f"logits must be one row over the vocabulary, not {list(logits.shape)}")
        best = int(np.argmax(logits))  # the first of equals, and the first NaN if there is one
        if not np.isfinite(logits[best]):
            raise PruneVidError(
                f"the model gave logits that cannot be sampled (their maximum is {logits[best]}); "
                "the bundle's numbers overflow in this precision, export it with --precision fp32"
            )
        if self._config.temperature == 0:
            return best
        tokens, probabilities = self.distribution(logits)
        cumulative = np.cumsum(probabilities)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])

    def distribution(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens that may be drawn, and their probabilities, summing to 1; for a temperature above 0.

        Temperature first, then top-k, then top-p, as transformers orders them; int64 [K] and float64 [K].
        """
        config = self._config
        scaled = (logits.astype(np.float64) - float(logits.max())) / config.temperature
        tokens = np.arange(len(scaled))
        if 0 < config.top_k < len(scaled):
            threshold = np.partition(scaled, len(scaled) - config.top_k)[len(scaled) - config.top_k]
            tokens = np.flatnonzero(scaled >= threshold)
        weights = np.exp(scaled[tokens])
        weights /= weights.sum()
        if config.top_p < 1:
            kept = _nucleus(weights, config.top_p)
            tokens, weights = tokens[kept], weights[kept] / weights[kept].sum()
        return tokens.astype(np.int64), weights


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Positions, increasing, of the fewest largest weights that reach top_p together; of equals the first.

    A token is kept while those before it have not reached top_p. Few tokens are enough as a rule: sort the
    largest only, and more of them where they are not.
    """
    candidates = min(_FIRST_CANDIDATES, len(weights))
    while True:
        if candidates < len(weights):
            threshold = np.partition(weights, len(weights) - candidates)[len(weights) - candidates]
            largest = np.flatnonzero(weights >= threshold)
        else:
            largest = np.arange(len(weights))
        order = largest[np.argsort(-weights[largest], kind="stable")]
        reached = np.cumsum(weights[order])
        if reached[-1] >= top_p or len(order) == len(weights):
            count = min(int(np.searchsorted(reached, top_p, side="left")) + 1, len(order))
            return np.sort(order[:count]).astype(np.int64)
        candidates = min(8 * candidates, len(weights))
