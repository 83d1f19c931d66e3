"""Which of many settings are worth having: fronts of quality against cost, and what chance may have done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# One-sided 95 % of the normal distribution, and two-sided.
_ONE_SIDED, _TWO_SIDED = 1.6449, 1.9600

Quality = tuple[float, float]
"""Agreement, and minus the divergence, which decides between equal agreements."""


def front(quality: Sequence[Quality], cost: Sequence[float]) -> list[int]:
    """The points that none beats: no other has at least the quality for at most the cost, and more of one of them.

    Returns indices by increasing cost; of equal points the first.
    """
    order = sorted(range(len(cost)), key=lambda i: (cost[i], *(-part for part in quality[i])))
    found: list[int] = []
    for index in order:
        if not found or quality[index] > quality[found[-1]]:
            found.append(index)
    return found


def layers(quality: Sequence[Quality], cost: Sequence[float]) -> np.ndarray:
    """How many fronts must be taken away before a point is on the front, int64 [n]."""
    depth = np.zeros(len(cost), np.int64)
    left = list(range(len(cost)))
    while left:
        on_front = {left[i] for i in front([quality[i] for i in left], [cost[i] for i in left])}
        left = [index for index in left if index not in on_front]
        depth[left] += 1
    return depth


def clearly_worse(same: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Which settings another one beats that costs no more, by more than chance explains, bool [n].

    same: bool [n, Q], whether a question is answered as without pruning; costs: float64 [n, k]. Of the questions that
    the two settings answer differently well, the share that goes to the better one is held against a coin's
    (McNemar's test without correction, Psychometrika 12, 1947), one-sided at 95 %.
    """
    wins = same.astype(np.float64)
    better = wins @ (1 - wins).T  # [a, b]: questions that a gets right and b does not
    cheaper = (costs[:, None] <= costs[None]).all(axis=2)
    significant = better - better.T > _ONE_SIDED * np.sqrt(better + better.T)
    return np.asarray((cheaper & significant).any(axis=0))


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` questions (JASA 22, 1927): no point even at 0 or 1."""
    z2 = _TWO_SIDED**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _TWO_SIDED * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # Rounding must not put the share itself outside.
    return min(share, max(0.0, float(middle - half))), max(share, min(1.0, float(middle + half)))
