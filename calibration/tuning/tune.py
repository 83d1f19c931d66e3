"""Tuning a bundle's pruning from beginning to end: search settings, choose one, judge it, write it down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunevid import __version__
from prunevid.bundle import Bundle, Manifest, new_bundle, open_bundle, write_manifest
from prunevid.bundle.sections.tuning import Tuning
from prunevid.calibration.judge import normal
from prunevid.calibration.quantize.calibrate import check_output_is_new
from prunevid.calibration.questions import AskedVideo, Split, check_questions, readable, split
from prunevid.calibration.tuning.budget import Budget, choose, describe, figures
from prunevid.calibration.tuning.latency import measure_ttft
from prunevid.calibration.tuning.pareto import front, interval
from prunevid.calibration.tuning.search import Found, Grid, candidates, largest_effort, search
from prunevid.calibration.tuning.trials import Candidate, Outcome, Trials
from prunevid.calibration.workspace import Workspace, only_here
from prunevid.config import SETTINGS
from prunevid.console.progress import Progress, Silent
from prunevid.errors import PruneVidError
from prunevid.files import copy_file
from prunevid.runtime.machine import describe as describe_machine
from prunevid.runtime.text.sampling import SamplingConfig

# What may differ between bundles of one model that were exported with different prune layers.
_MAY_DIFFER = frozenset({"created_by", "prune", "graphs", "files", "engine_sets", "quantization", "tuning", "cache"})


@dataclass(frozen=True)
class TuneSettings:
    """How to tune.

    Attributes:
        budget: What the chosen settings must keep.
        grid: The values to try.
        least_held_out: The least share of held-out questions answered as without pruning, unless `force`.
        force: Write the settings even if they do less.
        max_new_tokens: The length of an answer.
        threads: Of the CPU, None for all cores.
    """

    budget: Budget
    grid: Grid = field(default_factory=Grid)
    least_held_out: float = 0.9
    force: bool = False
    max_new_tokens: int = 16
    threads: int | None = None


@dataclass(frozen=True)
class Judged:
    """A setting on the held-out questions; accuracy is the share of right answers among those known, None without."""

    candidate: Candidate
    outcome: Outcome
    accuracy: float | None
    ttft_ms: float


@dataclass(frozen=True)
class Tuned:
    """What was found, and what was written. unpruned, present and chosen: on the held-out questions."""

    bundle: Bundle
    found: Found
    ttft_ms: dict[Candidate, float]
    unpruned: Judged
    present: Judged
    chosen: Judged


def tune(
    sources: Sequence[Path],
    videos: Sequence[AskedVideo],
    output: Path,
    settings: TuneSettings,
    progress: Progress | None = None,
    on_front: Callable[[dict[str, Any]], None] | None = None,
) -> Tuned:
    """Search pruning settings, and write the bundle with the best prune_layer, with them in its manifest.

    A run that is killed goes on where it was when it is started again, as does one with another budget.

    Args:
        sources: Bundles that differ in prune_layer only.
        videos: With the questions to ask.
        output: Where the bundle is written.
        settings: How to tune.
        progress: Told of what is done.
        on_front: Is given all that was found (`to_json`), even where nothing keeps the budget.

    Raises:
        PruneVidError: The bundles are not of one model, too few videos can be read, no setting keeps the budget, the
            chosen one does too little on held-out questions, or `output` exists or cannot be written; then there is
            nothing at `output`.
    """
    progress = progress or Silent()
    SamplingConfig(max_new_tokens=settings.max_new_tokens)  # refuses what is no number of tokens
    check_output_is_new(output)
    bundles = []
    for source in sources:
        progress.step(f"verifying {source}", 0)
        bundles.append(open_bundle(source))
    _check_same_model(bundles)
    check_questions(bundles[0], videos)
    wanted = candidates(bundles, settings.grid)
    parts = split(readable(bundles[0], videos, progress))
    if len(bundles) == 1:
        progress.tell("prune_layer is not searched: that takes bundles exported with other --prune-layer")
    with only_here(output):
        return _tune(bundles, wanted, parts, output, settings, progress, on_front)


def _tune(
    bundles: Sequence[Bundle],
    wanted: Sequence[Candidate],
    parts: Split,
    output: Path,
    settings: TuneSettings,
    progress: Progress,
    on_front: Callable[[dict[str, Any]], None] | None,
) -> Tuned:
    """The long part, of which one process at a time does one."""
    check_output_is_new(output)
    sampling = SamplingConfig(max_new_tokens=settings.max_new_tokens)
    workspace = Workspace(output, _digest(bundles, parts, settings))
    if workspace.resumed:
        progress.tell(f"going on with the work in {workspace.folder}")
    trials = Trials(bundles, workspace, sampling, settings.threads, progress.advance)
    try:
        found = _search(trials, wanted, parts.calibration, progress)
        off = Candidate(0, bundles[0].manifest.prune.turned_off())
        present = Candidate(0, bundles[0].manifest.prune)
        timed = list(dict.fromkeys((*found.on_tokens, *found.on_flops, present, off)))
        progress.step(f"measuring the time to the first token of {len(timed)} settings", 0)
        ttft_ms = measure_ttft(trials, timed, parts.calibration, workspace)
        chosen: Candidate | None = None
        try:
            chosen = choose(found, ttft_ms, settings.budget)
            if chosen not in ttft_ms:
                ttft_ms = measure_ttft(trials, [chosen, present, off], parts.calibration, workspace) | ttft_ms
        finally:
            if on_front:
                on_front(to_json(found, ttft_ms, settings.budget, present, chosen))
        progress.tell(f"chosen: {describe(chosen)}: {figures(found.tried[chosen], ttft_ms[chosen])}")
        judged = [_judge(trials, c, parts.held_out, ttft_ms[c], progress) for c in (off, present, chosen)]
        _check_agreement(judged[-1], settings, workspace)
        written = _write(bundles[chosen.bundle], output, judged[-1], settings.budget, progress)
    except OSError as error:
        raise PruneVidError(
            f"writing {error.filename or workspace.folder} failed: {error.strerror or error}; start again to go on"
        ) from error
    workspace.remove()
    return Tuned(written, found, ttft_ms, *judged)


def to_json(
    found: Found, ttft_ms: dict[Candidate, float], budget: Budget, present: Candidate, chosen: Candidate | None
) -> dict[str, Any]:
    """All settings that were tried, on calibration questions; shares from 0 to 1, 95 % intervals, nats, FLOPs, ms."""
    timed = [c for c in found.tried if c in ttft_ms]
    fastest = front([found.tried[c].quality for c in timed], [ttft_ms[c] for c in timed])
    on_ttft = {timed[index] for index in fastest}
    points = []
    for candidate, outcome in found.tried.items():
        points.append(
            {
                "prune": asdict(candidate.prune),
                "unpruned": candidate.prune.is_disabled,
                "present": candidate == present,
                "chosen": candidate == chosen,
                "questions": outcome.questions,
                "finished": candidate in found.finished,
                "on_front_of_tokens": candidate in found.on_tokens,
                "on_front_of_flops": candidate in found.on_flops,
                "on_front_of_ttft": candidate in on_ttft,
                "agreement": outcome.agreement,
                "interval": list(interval(outcome.agreement, outcome.questions)),
                "divergence": outcome.divergence,
                "merged": float(outcome.merged.mean()),
                "kept": outcome.kept_share,
                "llm_flops": outcome.mean_flops,
                "ttft_ms": ttft_ms.get(candidate),
            }
        )
    return {"machine": describe_machine(), "budget": asdict(budget), "settings": points}


def _check_same_model(bundles: Sequence[Bundle]) -> None:
    """Raise PruneVidError unless the bundles are one model, exported with different prune layers."""
    first = bundles[0]
    for other in bundles[1:]:
        if what := _difference(first, other):
            raise PruneVidError(
                f"{other.path} is not {first.path} exported with another --prune-layer: they differ in {what}; "
                "export and quantize them alike"
            )
    chosen = [bundle.manifest.prune.prune_layer for bundle in bundles]
    for place, layer in enumerate(chosen):
        if layer in chosen[:place]:
            raise PruneVidError(f"two bundles have the prune_layer {layer}: give each prune_layer once")


def _difference(first: Bundle, other: Bundle) -> str | None:
    """What two bundles differ in that has nothing to do with the prune layer."""
    a, b = first.manifest, other.manifest
    for entry in fields(Manifest):
        if entry.name not in _MAY_DIFFER and getattr(a, entry.name) != getattr(b, entry.name):
            return f"their {entry.name}"
    for name, setting in SETTINGS.items():
        if setting.search is None and getattr(a.prune, name) != getattr(b.prune, name):
            return f"their {name}"
    recipes = [(m.quantization and m.quantization.recipe, m.cache) for m in (a, b)]
    if recipes[0] != recipes[1]:
        return "how they are quantized"
    vision = a.graphs["vision_merge"]
    for file in (a.prompt.tokenizer, a.prompt.chat_template, a.embeddings.file, vision.file, *vision.files):
        if a.files.get(file) != b.files.get(file):
            return f"the content of {file}"
    return None


def _digest(bundles: Sequence[Bundle], parts: Split, settings: TuneSettings) -> str:
    """A digest of all that results depend on: not of the budget, nor of the values to try."""
    questions = [
        [
            [str(video.path.resolve()), [[question.text, question.answer] for question in video.questions]]
            for video in part
        ]
        for part in (parts.calibration, parts.held_out)
    ]
    depends_on = [
        "tuning",
        __version__,
        [{name: record.sha256 for name, record in bundle.manifest.files.items()} for bundle in bundles],
        [asdict(bundle.manifest.prune) for bundle in bundles],
        questions,
        settings.max_new_tokens,
    ]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def _named(part: str, videos: Sequence[AskedVideo]) -> dict[str, AskedVideo]:
    return {f"{part}-{number}": video for number, video in enumerate(videos)}


def _search(trials: Trials, wanted: Sequence[Candidate], videos: Sequence[AskedVideo], progress: Progress) -> Found:
    fixed = len(trials.bundles) + 1
    effort = largest_effort(len(wanted), fixed, videos)
    progress.step(f"trying {len(wanted)} settings, {effort} answers at most", effort)
    return search(trials, wanted, _named("calibration", videos), progress)


def _judge(
    trials: Trials, candidate: Candidate, videos: Sequence[AskedVideo], ttft_ms: float, progress: Progress
) -> Judged:
    progress.step(f"judging on held-out questions: {describe(candidate)}", sum(len(v.questions) for v in videos))
    held_out = _named("held-out", videos)
    trials.run([candidate], held_out)
    outcome = trials.outcome(candidate, held_out)
    answers = [question.answer for video in videos for question in video.questions]
    right = [
        normal(text) == normal(answer)
        for text, answer in zip(outcome.texts, answers, strict=True)
        if answer is not None
    ]
    return Judged(candidate, outcome, float(np.mean(right)) if right else None, ttft_ms)


def _check_agreement(chosen: Judged, settings: TuneSettings, workspace: Workspace) -> None:
    if chosen.outcome.agreement < settings.least_held_out and not settings.force:
        raise PruneVidError(
            f"on held-out questions the chosen setting ({describe(chosen.candidate)}) does too little: "
            f"{figures(chosen.outcome, chosen.ttft_ms)}, where {settings.least_held_out:.1%} are to be answered as "
            "without pruning: nothing was written; give --max-tokens as well, so that the best setting within it is "
            f"taken and not the cheapest, or write it with --force (the work is kept in {workspace.folder})"
        )


def _write(source: Bundle, output: Path, chosen: Judged, budget: Budget, progress: Progress) -> Bundle:
    """Copy a bundle with other settings in its manifest.

    Its engines stay: settings are inputs of graphs, and what engines take at most does not depend on them.
    """
    outcome = chosen.outcome
    tuning = Tuning(
        max_tokens=budget.max_tokens,
        max_ttft_ms=budget.max_ttft_ms,
        min_agreement=budget.min_agreement,
        questions=outcome.questions,
        agreement=outcome.agreement,
        divergence=outcome.divergence,
        kept=outcome.kept_share,
    )
    progress.step(f"writing {output}", len(source.manifest.files))
    with new_bundle(output) as folder:
        for name in source.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source.file(name), folder / name)
            progress.advance()
        write_manifest(folder, replace(source.manifest, prune=chosen.candidate.prune, tuning=tuning))
    return open_bundle(output, verify=False)
