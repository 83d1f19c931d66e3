"""What the manifest says about how a bundle's pruning settings were found."""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.validation import LARGEST, require_integer, require_number


@dataclass(frozen=True)
class Tuning:
    """The budget that the settings were searched for, and how they did on held-out questions beside no pruning.

    max_tokens: largest share of the visual tokens to keep; max_ttft_ms: longest time to the first token;
    min_agreement: least share of questions answered as without pruning; None where there was no such limit.
    questions: held-out questions; agreement: share of the same greedy answers; divergence: mean KL(unpruned || pruned)
    of the first token in nats; kept: mean share of the visual tokens that is kept.

    Raises:
        InvalidValueError: when a figure is out of range.
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
            if value is not None:
                require_number(name, value, 0, 1)
        if self.max_ttft_ms is not None:
            require_number("max_ttft_ms", self.max_ttft_ms, 0, LARGEST)
        require_integer("questions", self.questions, 0)
        require_number("divergence", self.divergence, 0, LARGEST)
