"""What the manifest says about how a bundle's pruning settings were found."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The budget that the settings were searched for, and how they did on held-out questions beside no pruning.

    max_tokens: largest share of the visual tokens to keep; max_ttft_ms: longest time to the first token;
    min_agreement: least share of questions answered as without pruning; None where there was no such limit.
    questions: held-out questions; agreement: share of the same greedy answers; divergence: mean KL(unpruned || pruned)
    of the first token in nats; kept: mean share of the visual tokens that is kept.

    Raises:
        ValueError: when a figure is out of range.
    """

    max_tokens: float | None
    max_ttft_ms: float | None
    min_agreement: float | None
    questions: int
    agreement: float
    divergence: float
    kept: float

    def __post_init__(self) -> None:
        for name in ("max_tokens", "min_agreement", "agreement", "kept"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"tuning.{name} is {value}, no share")
        for name in ("max_ttft_ms", "questions", "divergence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"tuning.{name} is {value}")
