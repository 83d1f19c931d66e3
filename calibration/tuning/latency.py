"""Time to the first token of several settings, measured in turns on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.tuning.trials import Candidate, Trials
from prunevid.calibration.workspace import Workspace
from prunevid.runtime.text.sampling import SamplingConfig

ROUNDS = 6
"""Rounds of every setting, in two passes over the bundles."""
_FIRST_TOKEN = SamplingConfig(max_new_tokens=1)


def measure_ttft(
    trials: Trials, wanted: Sequence[Candidate], videos: Sequence[AskedVideo], workspace: Workspace
) -> dict[Candidate, float]:
    """Median milliseconds to the first token, from the video file on, of every setting; kept in the workspace.

    A round asks every setting of a bundle one question about one video, every other round backwards; the first round of
    a bundle in each pass does not count. What comes before merging is the same work for all: it is run once a round,
    and its median over all rounds is in every figure. Only one bundle is in memory; they come in turns, there and
    back, so that a machine that slows down does so for all of them.
    """
    step = f"ttft {' '.join(sorted(c.name for c in wanted))}"
    if step not in workspace:
        before: list[float] = []
        after: dict[str, list[float]] = {c.name: [] for c in wanted}
        bundles, half = sorted({c.bundle for c in wanted}), ROUNDS // 2
        for first, bundle in [(0, b) for b in bundles] + [(half, b) for b in reversed(bundles)]:
            chosen = [c for c in wanted if c.bundle == bundle]
            for number in range(-1, half):
                video = videos[(first + max(number, 0)) % len(videos)]
                seconds, by_name = _round(trials, chosen if number % 2 else chosen[::-1], video)
                if number >= 0:
                    before.append(seconds)
                    for name, taken in by_name.items():
                        after[name].append(taken)
        common = float(np.median(before))
        workspace.record(step, {name: 1000 * (common + float(np.median(taken))) for name, taken in after.items()})
    known: Mapping[str, float] = workspace[step]
    return {candidate: known[candidate.name] for candidate in wanted}


def _round(trials: Trials, chosen: Sequence[Candidate], video: AskedVideo) -> tuple[float, dict[str, float]]:
    """Seconds up to the features of a video, and from there to the first token of each setting."""
    pipeline = trials.pipeline(chosen[0].bundle)
    features = pipeline.features(video.path)
    before, found = features.timings.first_token, {}
    for candidate in chosen:
        answer = pipeline.session(features, candidate.prune).ask(video.questions[0].text, _FIRST_TOKEN)
        found[candidate.name] = answer.timings.first_token - before
    return before, found
