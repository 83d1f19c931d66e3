"""Searching pruning settings: all of a grid on a few videos, the better half of them on twice as many, and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

import numpy as np

from prunevid.bundle import Bundle
from prunevid.calibration.progress import Progress
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.tuning.pareto import clearly_worse, front, layers
from prunevid.calibration.tuning.trials import Candidate, Outcome, Trials, disabled
from prunevid.errors import PruneVidError

_ROUNDS = 4
_FEWEST_VIDEOS = 2
# So many settings are worth their answers to the end: halving is for larger grids.
_FEWEST_SETTINGS = 16


@dataclass(frozen=True)
class Grid:
    """The values that are tried of each setting, in all combinations."""

    segment_ratio: tuple[float, ...] = (0.125, 0.25, 0.5)
    static_threshold: tuple[float, ...] = (0.7, 0.8, 0.9)
    cluster_ratio: tuple[float, ...] = (0.25, 0.5, 1.0)
    keep_ratio: tuple[float, ...] = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name):
                raise PruneVidError(f"there must be a value to try of {field.name}")


@dataclass(frozen=True)
class Found:
    """What a search found out.

    tried: every setting with what it did on the questions that it was asked; finished: those that were asked all
    questions; on_tokens, on_flops: the fronts among these over kept tokens and over FLOPs, by increasing cost.
    """

    tried: Mapping[Candidate, Outcome]
    finished: tuple[Candidate, ...]
    on_tokens: tuple[Candidate, ...]
    on_flops: tuple[Candidate, ...]


def candidates(bundles: Sequence[Bundle], grid: Grid) -> list[Candidate]:
    """Each bundle's present settings, no pruning, and the grid over every bundle.

    Raises:
        PruneVidError: A value is out of range.
    """
    found = [Candidate(index, bundle.manifest.prune) for index, bundle in enumerate(bundles)]
    found.append(Candidate(0, disabled(bundles[0].manifest.prune)))
    names = [field.name for field in fields(grid)]
    for index, bundle in enumerate(bundles):
        for values in product(*(getattr(grid, name) for name in names)):
            prune = replace(bundle.manifest.prune, **dict(zip(names, values, strict=True)))
            if not prune.is_disabled:
                found.append(Candidate(index, prune))
    return list(dict.fromkeys(found))


def rounds(videos: int) -> list[int]:
    """Videos that settings have been tried on after each round: doubling, up to all of them."""
    counts = [max(_FEWEST_VIDEOS, videos >> halvings) for halvings in reversed(range(_ROUNDS))]
    return sorted({min(videos, count) for count in counts})


def largest_effort(count: int, fixed: int, videos: Sequence[AskedVideo]) -> int:
    """Answers that a search over ``count`` settings takes at most; ``fixed`` of them are never dropped."""
    total, before = 0, 0
    for upto in rounds(len(videos)):
        total += count * sum(len(video.questions) for video in videos[before:upto])
        before, count = upto, _room(count, fixed)
    return total


def search(trials: Trials, wanted: Sequence[Candidate], videos: Mapping[str, AskedVideo], progress: Progress) -> Found:
    """Try `wanted` on the videos, dropping about half of them after every round.

    Every bundle's present settings and no pruning stay. After a round, a setting is dropped that another one clearly
    beats (`clearly_worse`) at no more tokens and FLOPs; then the half stays that is nearest to a front over tokens or
    FLOPs.
    """
    names = list(videos)
    stay = [c for c in wanted if c.prune == trials.bundles[c.bundle].manifest.prune or c.prune.is_disabled]
    left, tried = list(wanted), dict[Candidate, Outcome]()
    counts = rounds(len(names))
    before = 0
    for number, upto in enumerate(counts):
        trials.run(left, {name: videos[name] for name in names[before:upto]})
        so_far = {name: videos[name] for name in names[:upto]}
        tried |= {candidate: trials.outcome(candidate, so_far) for candidate in left}
        before = upto
        if number + 1 < len(counts):
            asked = len(left)
            left = _survivors(left, tried, stay)
            progress.tell(f"after {upto} videos, {len(left)} of {asked} settings go on")
    outcomes = [tried[candidate] for candidate in left]
    quality = [outcome.quality for outcome in outcomes]
    by_tokens, by_flops = (
        tuple(left[i] for i in front(quality, cost))
        for cost in ([o.kept_share for o in outcomes], [o.mean_flops for o in outcomes])
    )
    return Found(tried, tuple(left), by_tokens, by_flops)


def _room(count: int, fixed: int) -> int:
    """How many of ``count`` settings go on at most."""
    return max(fixed, min(count, _FEWEST_SETTINGS), (count + 1) // 2)


def _survivors(
    left: Sequence[Candidate], tried: Mapping[Candidate, Outcome], stay: Sequence[Candidate]
) -> list[Candidate]:
    outcomes = [tried[candidate] for candidate in left]
    quality = [outcome.quality for outcome in outcomes]
    costs = np.array([(outcome.kept_share, outcome.mean_flops) for outcome in outcomes])
    worse = clearly_worse(np.array([outcome.same for outcome in outcomes]), costs)
    depth = np.minimum(layers(quality, costs[:, 0].tolist()), layers(quality, costs[:, 1].tolist()))
    order = sorted(range(len(left)), key=lambda i: (left[i] not in stay, worse[i], depth[i], -quality[i][0], i))
    room = _room(len(left), len(stay))
    chosen = {i for i in order[:room] if left[i] in stay or not worse[i]}
    return [candidate for i, candidate in enumerate(left) if i in chosen]
