"""Searching pruning settings: all of a grid on a few videos, the better half of them on twice as many, and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from prunevid.bundle import Bundle
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.tuning.pareto import clearly_worse, front, layers
from prunevid.calibration.tuning.trials import Candidate, Outcome, Trials
from prunevid.config import SETTINGS, PruneConfig
from prunevid.console.progress import Progress
from prunevid.errors import PruneVidError

_ROUNDS = 4
_FEWEST_VIDEOS = 2
# So many settings are worth their answers to the end: halving is for larger grids.
_FEWEST_SETTINGS = 16


@dataclass(frozen=True)
class Grid:
    """The values that are tried of each setting, in all combinations.

    Attributes:
        instead: by the setting's name, the values to try instead of those that are declared with it.

    Raises:
        PruneVidError: when there is no value to try of a setting.
    """

    instead: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.instead.items():
            if not values:
                raise PruneVidError(f"there must be a value to try of {name}")

    def of(self, prune: PruneConfig) -> dict[str, tuple[float, ...]]:
        """The values to try in a bundle of such settings, by the settings that its merge method has."""
        searched = {name: SETTINGS[name].search for name in prune.own_settings}
        declared = {name: values for name, values in searched.items() if isinstance(values, tuple)}
        return {**declared, **self.instead}


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
    found.append(Candidate(0, bundles[0].manifest.prune.turned_off()))
    for index, bundle in enumerate(bundles):
        tried = grid.of(bundle.manifest.prune)
        for values in product(*tried.values()):
            chosen: dict[str, Any] = dict(zip(tried, values, strict=True))
            prune = replace(bundle.manifest.prune, **chosen)
            if not prune.is_disabled:
                found.append(Candidate(index, prune))
    return list(dict.fromkeys(found))


def rounds(videos: int) -> list[int]:
    """Videos that settings have been tried on after each round: doubling, up to all of them."""
    counts = [max(_FEWEST_VIDEOS, videos >> halvings) for halvings in reversed(range(_ROUNDS))]
    return sorted({min(videos, count) for count in counts})


def largest_effort(count: int, fixed: int, videos: Sequence[AskedVideo]) -> int:
    """Answers that a search over `count` settings takes at most; `fixed` of them are never dropped."""
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
    """How many of `count` settings go on at most."""
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
