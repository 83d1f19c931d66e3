"""Measuring a pipeline: the same question over and over, pruned and unpruned taking turns.

In every round each variant answers the question once, from the video file to the last token; odd rounds go through the
variants backwards. A machine that slows down or speeds up thus does so for all of them alike. Every answer has as
many tokens as asked for, past end tokens, so that decoding is compared over as many steps. Merging has a run of its
own, so that its time is known: where the last batch of frames merges on its way, it is within vision's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from time import perf_counter

import numpy as np

from prunevid import __version__
from prunevid.bundle import Manifest
from prunevid.config import PruneConfig
from prunevid.console.progress import Progress, Silent
from prunevid.cost import prefill_cost
from prunevid.errors import PruneVidError
from prunevid.runtime.answer import Answer
from prunevid.runtime.machine import describe, peak_rss, reset_peak_rss
from prunevid.runtime.pipeline import Pipeline, resolve_prune
from prunevid.runtime.profile.defaults import MAX_NEW_TOKENS, QUESTION, RUNS, WARMUP
from prunevid.runtime.profile.records import (
    SCHEMA_VERSION,
    STAGES,
    Load,
    MemoryUse,
    Model,
    ProfileResult,
    Run,
    Timeline,
    Tokens,
    Variant,
)
from prunevid.runtime.profile.sensors.telemetry import Telemetry, find_sensors
from prunevid.runtime.profile.summary import Measured, compare, summarise_variant
from prunevid.runtime.sequence import VideoTokens
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.text.chat import PromptIds

__all__ = ["ProfileSettings", "profile"]


# The runtime's stages that are one here.
_PARTS_OF_LLM_PRE = ("prefix", "question")


@dataclass(frozen=True)
class ProfileSettings:
    """What to measure.

    frames: numbers of frames to sample, by default the bundle's. prune: settings to compare with no pruning, by
    default the bundle's. runs: measured rounds, after `warmup` others. max_new_tokens: tokens of every answer, the
    first one included. Raises PruneVidError where a value is out of range.
    """

    frames: tuple[int, ...] = ()
    prune: tuple[PruneConfig, ...] = ()
    runs: int = RUNS
    warmup: int = WARMUP
    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        for name, value, least in (
            ("runs", self.runs, 1),
            ("warmup", self.warmup, 0),
            ("max_new_tokens", self.max_new_tokens, 1),
            *(("frames", frames, 1) for frames in self.frames),
        ):
            if value < least:
                raise PruneVidError(f"{name} must be {least} or more, not {value}")

    def check(self, exported: PruneConfig) -> None:
        """See that a bundle exported with these settings can do it; raises PruneVidError where it cannot."""
        for prune in self.prune or (exported,):
            if resolve_prune(exported, prune) is None:
                raise PruneVidError("these settings prune nothing, and a profile compares with that: prune something")


@dataclass(frozen=True)
class _Plan:
    """One variant to run; prune is None for unpruned."""

    frames: int
    prune: PruneConfig | None

    @property
    def label(self) -> str:
        return f"{self.frames} frames, " + ("unpruned" if self.prune is None else "pruned")


def profile(
    pipeline: Pipeline,
    video: str | os.PathLike[str],
    question: str = QUESTION,
    settings: ProfileSettings | None = None,
    *,
    load: Load | None = None,
    progress: Progress | None = None,
) -> ProfileResult:
    """Measure one question about one video, pruned and unpruned.

    load: how the pipeline was loaded, to go into the result. Operators are measured on their own, by
    `prunevid.runtime.profile.operator_times.measure_operators`. Raises PruneVidError as `Pipeline.open` and
    `VideoSession.stream` do.
    """
    settings = settings or ProfileSettings()
    settings.check(pipeline.bundle.manifest.prune)
    ids = pipeline.prompt.encode(question)
    loaded_bytes = peak_rss()
    device = find_sensors(pipeline.chain.backend)
    measuring = _Measuring(pipeline, video, ids, settings)
    try:
        with Telemetry(device) as telemetry:
            measuring.run_all(telemetry, progress or Silent())
    finally:
        if device:
            device.close()
    timeline = telemetry.timeline()
    variants = measuring.variants(timeline)
    notes = [*measuring.notes, *(device.notes if device else ())]
    device_memory = [sample.memory_bytes for sample in timeline.device if sample.memory_bytes is not None]
    return ProfileResult(
        schema_version=SCHEMA_VERSION,
        created_by=f"prunevid {__version__}",
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=str(pipeline.bundle.path),
        model=_model(pipeline),
        backend=pipeline.chain.backend,
        video=os.fspath(video),
        question=question,
        rounds=settings.runs,
        warmup_rounds=settings.warmup,
        max_new_tokens=settings.max_new_tokens,
        machine=describe(),
        load=load,
        memory=MemoryUse(
            loaded_bytes=loaded_bytes,
            peak_bytes=max(loaded_bytes, peak_rss(), *(variant.peak_rss_bytes for variant in variants)),
            device_peak_bytes=max(device_memory, default=None),
            device_total_bytes=device.memory_total_bytes if device else None,
        ),
        variants=variants,
        comparisons=compare(variants),
        operators=(),
        runs=tuple(measuring.runs),
        timeline=timeline,
        notes=tuple(dict.fromkeys(notes)),
    )


class _Measuring:
    """The runs of a profile as they come, and what is the same in all runs of a variant."""

    def __init__(
        self, pipeline: Pipeline, video: str | os.PathLike[str], question: PromptIds, settings: ProfileSettings
    ) -> None:
        self._pipeline, self._video, self._question, self._settings = pipeline, video, question, settings
        self._manifest = pipeline.bundle.manifest
        self._plans = _plans(settings, self._manifest)
        self._sampling = SamplingConfig(max_new_tokens=settings.max_new_tokens, ignore_eos=True)
        self._facts: dict[int, Measured] = {}
        self.runs: list[Run] = []
        self.notes: list[str] = []
        if self._manifest.model.random_weights:
            self.notes.append("This bundle has random weights: its speed and memory are real, its tokens mean nothing.")

    def run_all(self, telemetry: Telemetry, progress: Progress) -> None:
        """All rounds, warm-up first."""
        rounds = self._settings.warmup + self._settings.runs
        total = rounds * len(self._plans)
        for number in range(rounds):
            indices = range(len(self._plans))
            for index in indices if number % 2 == 0 else reversed(indices):
                done = len(self.runs)
                progress.step(f"run {done + 1} of {total}: {self._plans[index].label}", total, done)
                self._run(index, number, telemetry)

    def variants(self, timeline: Timeline) -> tuple[Variant, ...]:
        """The figures of every variant."""
        return tuple(
            summarise_variant(
                facts,
                [run for run in self.runs if run.variant == index and not run.is_warmup],
                self._manifest.model.decoder,
                timeline.device,
            )
            for index, facts in sorted(self._facts.items())
        )

    def _run(self, index: int, number: int, telemetry: Telemetry) -> None:
        plan = self._plans[index]
        is_first = index not in self._facts
        if is_first:
            reset_peak_rss()
        begin = perf_counter()
        session = self._pipeline.session(self._pipeline.features(self._video, plan.frames), plan.prune or False)
        stream = session.stream(self._question, self._sampling)
        for _ in stream:
            pass
        end_to_end = perf_counter() - begin
        answer = stream.answer
        stages, decode = _stages(answer), answer.timings.decode
        assert stream.first_token_at is not None  # the answer is finished
        run = Run(
            variant=index,
            round=number,
            is_warmup=number < self._settings.warmup,
            begin_s=telemetry.seconds(begin),
            end_to_end_s=end_to_end,
            first_token_s=stream.first_token_at - begin,
            stages_s=stages,
            decode_s=decode,
            unattributed_s=end_to_end - sum(stages.values()) - sum(decode),
        )
        self.runs.append(run)
        if is_first:
            self._facts[index] = _facts(plan, answer, session.video, self._manifest)
            self._note(plan, self._facts[index].frames, answer.skipped_frames)

    def _note(self, plan: _Plan, frames: int, skipped: int) -> None:
        if frames < plan.frames:
            self.notes.append(f"The video has no more than {frames} frames where {plan.frames} were asked for.")
        if skipped:
            self.notes.append(f"{skipped} unreadable frames of the video were skipped.")


def _plans(settings: ProfileSettings, manifest: Manifest) -> list[_Plan]:
    """Pruned before unpruned: ONNX Runtime keeps what unpruned takes, which would hide how little pruned needs."""
    prunes = settings.prune or (manifest.prune,)
    plans = []
    for frames in settings.frames or (manifest.frames,):
        plans += [_Plan(frames, prune) for prune in prunes]
        plans.append(_Plan(frames, None))
    return plans


def _stages(answer: Answer) -> dict[str, float]:
    """Seconds by stage; llm_pre over what precedes the question and llm_pre over the question are one."""
    taken = answer.timings.stages
    taken["llm_pre"] = sum(taken.pop(part) for part in _PARTS_OF_LLM_PRE)
    return {name: taken[name] for name in STAGES if name in taken}


def _facts(plan: _Plan, answer: Answer, video: VideoTokens, manifest: Manifest) -> Measured:
    model, counts = manifest.model, answer.token_counts
    frames = counts.visual // manifest.token_layout.tokens_per_frame
    prune = plan.prune or manifest.prune.turned_off()
    return Measured(
        prune=plan.prune,
        frames=frames,
        tokens=Tokens(
            patches=frames * model.vision.patches,
            visual=counts.visual,
            merged=counts.merged,
            kept=counts.kept,
            retained=counts.retained,
            text_before=counts.text_before,
            text_after=counts.text_after,
        ),
        cost=prefill_cost(
            model.decoder, counts, prune, vision=model.vision, frames=frames, group_sizes=_group_sizes(video)
        ),
        kv_bytes=answer.kv_bytes,
        peak_rss_bytes=peak_rss(),
    )


def _group_sizes(video: VideoTokens) -> list[int]:
    """Tokens of every group before clustering: a static group's tokens are in all of its segment's frames at once."""
    group_of_patch = video.group[video.patch_to_token]
    patches = np.bincount(group_of_patch.ravel())
    frames = np.zeros_like(patches)
    for groups_of_frame in group_of_patch:
        frames[np.unique(groups_of_frame)] += 1
    return [int(size) for size in patches[frames > 0] // frames[frames > 0]]


def _model(pipeline: Pipeline) -> Model:
    manifest = pipeline.bundle.manifest
    return Model(
        name=manifest.model.name,
        family=manifest.model.family,
        dialect=manifest.dialect,
        precision=manifest.precision,
        random_weights=manifest.model.random_weights,
        bundle_bytes=pipeline.bundle.size,
    )
