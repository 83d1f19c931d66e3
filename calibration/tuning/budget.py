"""Which of the settings that were found is taken: the best one within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunevid.calibration.tuning.search import Found
from prunevid.calibration.tuning.trials import Candidate, Outcome
from prunevid.config import SETTINGS
from prunevid.errors import PruneVidError


@dataclass(frozen=True)
class Budget:
    """Limits that settings must keep, all of them; at least one is given.

    Attributes:
        max_tokens: Share of the visual tokens kept.
        max_ttft_ms: Milliseconds to the first token (median, vision included).
        min_agreement: Share of the questions answered as without pruning.

    Raises:
        PruneVidError: when none is given, or one is out of range.
    """

    max_tokens: float | None = None
    max_ttft_ms: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is None and self.max_ttft_ms is None and self.min_agreement is None:
            raise PruneVidError("--tune-pruning needs a budget: --max-tokens, --max-ttft-ms or --min-agreement")
        if self.max_tokens is not None and not 0 < self.max_tokens <= 1:
            raise PruneVidError(f"--max-tokens must be a share above 0 and at most 1, not {self.max_tokens}")
        if self.max_ttft_ms is not None and not 0 < self.max_ttft_ms < float("inf"):
            raise PruneVidError(f"--max-ttft-ms must be a number of milliseconds above 0, not {self.max_ttft_ms}")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise PruneVidError(f"--min-agreement must be between 0 and 1, not {self.min_agreement}")

    def __str__(self) -> str:
        limits = {
            "--max-tokens": self.max_tokens,
            "--max-ttft-ms": self.max_ttft_ms,
            "--min-agreement": self.min_agreement,
        }
        return " ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)

    def excess(self, outcome: Outcome, ttft_ms: float | None) -> float:
        """By how much a setting breaks the limits, each as a share of itself; 0 where it keeps all of them."""
        over = 0.0
        if self.max_tokens is not None:
            over += max(0.0, outcome.kept_share / self.max_tokens - 1)
        if self.max_ttft_ms is not None:
            over += float("inf") if ttft_ms is None else max(0.0, ttft_ms / self.max_ttft_ms - 1)
        if self.min_agreement:
            over += max(0.0, 1 - outcome.agreement / self.min_agreement)
        return over


def choose(found: Found, ttft_ms: Mapping[Candidate, float], budget: Budget) -> Candidate:
    """The best setting that keeps the budget.

    With a limit on tokens or time that is the one that agrees most (then: diverges least, takes fewest FLOPs); with
    one on agreement alone, the one of fewest FLOPs. Raises PruneVidError where there is none, naming the nearest.
    """
    excess = {c: budget.excess(found.tried[c], ttft_ms.get(c)) for c in found.finished}
    within = [c for c in found.finished if excess[c] == 0]
    if not within:
        nearest = min(found.finished, key=lambda c: excess[c])
        raise PruneVidError(
            f"no setting that was tried keeps {budget}: the nearest is "
            f"{describe(nearest)}: {figures(found.tried[nearest], ttft_ms.get(nearest))}; loosen the budget, or try "
            "other values with --search"
        )

    def rank(candidate: Candidate) -> tuple[float, ...]:
        outcome = found.tried[candidate]
        agreement, certainty = outcome.quality
        if budget.max_tokens is None and budget.max_ttft_ms is None:
            return outcome.mean_flops, -agreement, -certainty
        return -agreement, -certainty, outcome.mean_flops

    return min(within, key=rank)


def describe(candidate: Candidate) -> str:
    """The settings in a few words."""
    prune = candidate.prune
    if prune.is_disabled:
        return "no pruning"
    searched = (name for name in prune.own_settings if SETTINGS[name].search)
    return ", ".join(f"{name} {getattr(prune, name):g}" for name in searched)


def figures(outcome: Outcome, ttft_ms: float | None) -> str:
    """What a setting costs and how well it does, in a few words."""
    time = "" if ttft_ms is None else f", first token after {ttft_ms:,.0f} ms"
    return (
        f"{outcome.agreement:.1%} of {outcome.questions} questions answered as without pruning, KL "
        f"{outcome.divergence:.4f} nats, {outcome.kept_share:.1%} of the visual tokens kept, "
        f"{outcome.mean_flops / 1e9:,.3g} GFLOP in the language model{time}"
    )
