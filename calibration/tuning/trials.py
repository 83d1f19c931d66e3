"""Trying pruning settings on questions: what several settings have in common is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunevid.bundle import Bundle
from prunevid.calibration.judge import divergence, normal
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.workspace import Workspace, save_array
from prunevid.config import SETTINGS, PruneConfig
from prunevid.cost import TokenCounts, prefill_cost
from prunevid.runtime.answer import Answer
from prunevid.runtime.backends.registry import ON_CPU
from prunevid.runtime.pipeline import Pipeline, load
from prunevid.runtime.session import Question, VideoSession
from prunevid.runtime.stream import AnswerStream
from prunevid.runtime.text.sampling import SamplingConfig


@dataclass(frozen=True)
class Candidate:
    """A pruning setting, and which of the bundles (by its place) has its prune_layer."""

    bundle: int
    prune: PruneConfig

    @property
    def name(self) -> str:
        """What tells it from all others."""
        searched = (name for name, setting in SETTINGS.items() if isinstance(setting.search, tuple))
        return ":".join((str(self.bundle), *(repr(getattr(self.prune, name)) for name in searched)))

    @property
    def merging(self) -> PruneConfig:
        """The settings on which merging depends; the same for all keep_ratios."""
        return self.prune.merging()


@dataclass(frozen=True)
class Outcome:
    """What a setting did on questions, one entry each.

    Attributes:
        texts: The greedy answer.
        same: Whether it is the unpruned one's.
        divergences: KL(unpruned || pruned) of the first token, in nats.
        merged: Share of the visual tokens left by merging.
        kept: Share of the visual tokens kept.
        flops: Of the language model, up to the first token.
    """

    texts: tuple[str, ...]
    same: np.ndarray
    divergences: np.ndarray
    merged: np.ndarray
    kept: np.ndarray
    flops: np.ndarray

    @property
    def questions(self) -> int:
        """How many were asked."""
        return len(self.texts)

    @property
    def agreement(self) -> float:
        """Share of the questions answered as without pruning."""
        return float(self.same.mean())

    @property
    def divergence(self) -> float:
        """Mean KL."""
        return float(self.divergences.mean())

    @property
    def quality(self) -> tuple[float, float]:
        """By which settings are compared: agreement, then the smaller divergence."""
        return self.agreement, -self.divergence

    @property
    def kept_share(self) -> float:
        """Mean share of the visual tokens that is kept."""
        return float(self.kept.mean())

    @property
    def mean_flops(self) -> float:
        """Mean FLOPs of the language model up to the first token."""
        return float(self.flops.mean())


class Trials:
    """Runs settings on videos and keeps every result in the workspace, so that none is run twice.

    One bundle is loaded at a time. `advance` is given the number of answers that have become known.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        workspace: Workspace,
        sampling: SamplingConfig,
        threads: int | None,
        advance: Callable[[int], None],
    ) -> None:
        self.bundles, self.loaded = bundles, 0
        self._workspace, self._sampling, self._threads, self._advance = workspace, sampling, threads, advance
        self._pipeline: Pipeline | None = None

    def pipeline(self, bundle: int) -> Pipeline:
        """A bundle, loaded; another one is dropped first."""
        if self._pipeline is None or self.loaded != bundle:
            self._pipeline = None
            self._pipeline = load(self.bundles[bundle], ON_CPU, threads=self._threads, verify=False)
            self.loaded = bundle
        return self._pipeline

    def run(self, candidates: Sequence[Candidate], videos: Mapping[str, AskedVideo]) -> None:
        """Ask the questions about `videos` (by name) under every setting, and without pruning."""
        for name, video in videos.items():
            if self._unpruned(name) not in self._workspace:
                self._ask_unpruned(name, video)
        # The bundle that is loaded comes first.
        for bundle in sorted({c.bundle for c in candidates}, key=lambda b: (b != self.loaded, b)):
            chosen = [c for c in candidates if c.bundle == bundle]
            for name, video in videos.items():
                self._ask(chosen, name, video)

    def outcome(self, candidate: Candidate, videos: Mapping[str, AskedVideo]) -> Outcome:
        """What a setting did on all questions about videos that it was run on."""
        results = [self._workspace[self._step(candidate, name)] for name in videos]
        texts = [text for result in results for text in result["texts"]]
        unpruned = [text for name in videos for text in self._workspace[self._unpruned(name)]["texts"]]

        def joined(what: str) -> np.ndarray:
            return np.concatenate([np.asarray(result[what], np.float64) for result in results])

        same = np.array([normal(a) == normal(b) for a, b in zip(texts, unpruned, strict=True)])
        return Outcome(tuple(texts), same, joined("kl"), joined("merged"), joined("kept"), joined("flops"))

    def features(self, name: str, video: AskedVideo) -> np.ndarray:
        """Features [T, N, C] of a video: encoded once, then read from the workspace."""
        file = self._workspace.folder / f"features-{name}.npy"
        if not file.exists():
            save_array(file, np.asarray(self.pipeline(self.loaded).features(video.path).features))
        found: np.ndarray = np.load(file)
        return found

    def _ask_unpruned(self, name: str, video: AskedVideo) -> None:
        """The reference, by the first bundle: without pruning, all of them are one model."""
        pipeline = self.pipeline(0)
        session = pipeline.session(pipeline.chain.unmerged(self.features(name, video)), prune=False)
        answers, logits = [], []
        for question in video.questions:
            stream = session.stream(question.text, self._sampling)
            "".join(stream)
            answers.append(stream.answer)
            logits.append(stream.first_logits)
        save_array(self._logits_file(name), np.array(logits, np.float32))
        prune = self.bundles[0].manifest.prune
        self._workspace.record(self._unpruned(name), self._result(answers, [0.0] * len(answers), prune.turned_off()))

    def _ask(self, candidates: Sequence[Candidate], name: str, video: AskedVideo) -> None:
        known = [c for c in candidates if self._step(c, name) in self._workspace]
        missing = [c for c in candidates if c not in known]
        self._advance(len(known) * len(video.questions))
        for candidate in [c for c in missing if c.prune.is_disabled]:
            self._record(candidate, name, self._workspace[self._unpruned(name)], video)
        pruning = [c for c in missing if not c.prune.is_disabled]
        done: dict[tuple[str, float], dict[str, object]] = {}
        for merging in dict.fromkeys(c.merging for c in pruning):
            group = [c for c in pruning if c.merging == merging]
            pipeline = self.pipeline(group[0].bundle)
            tokens = pipeline.chain.merge(self.features(name, video), merging)
            digest = hashlib.sha256(np.asarray(tokens.tokens).tobytes() + tokens.group.tobytes()).hexdigest()
            # Other settings may have merged this video in just the same way.
            new = [c for c in group if (digest, c.prune.keep_ratio) not in done]
            if new:
                session = pipeline.session(tokens, new[0].prune)
                for candidate, result in zip(new, self._results(session, new, name, video), strict=True):
                    done[digest, candidate.prune.keep_ratio] = result
            for candidate in group:
                self._record(candidate, name, done[digest, candidate.prune.keep_ratio], video)

    def _results(
        self, session: VideoSession, candidates: Sequence[Candidate], name: str, video: AskedVideo
    ) -> list[dict[str, object]]:
        """Results of settings that differ in keep_ratio only."""
        ratios = [candidate.prune.keep_ratio for candidate in candidates]
        answers: list[list[Answer]] = [[] for _ in candidates]
        logits: list[list[np.ndarray]] = [[] for _ in candidates]
        for question in video.questions:
            for place, stream in enumerate(stream_each(session, question.text, ratios, self._sampling)):
                "".join(stream)
                assert stream.first_logits is not None  # the answer is finished
                answers[place].append(stream.answer)
                logits[place].append(stream.first_logits)
        unpruned = np.load(self._logits_file(name))
        return [
            self._result(answers[place], divergence(unpruned, np.array(logits[place])).tolist(), candidate.prune)
            for place, candidate in enumerate(candidates)
        ]

    def _result(self, answers: Sequence[Answer], kl: list[float], prune: PruneConfig) -> dict[str, object]:
        decoder = self.bundles[0].manifest.model.decoder

        def flops(counts: TokenCounts) -> int:
            return prefill_cost(decoder, counts, prune).llm

        counts = [answer.token_counts for answer in answers]
        return {
            "texts": [answer.text for answer in answers],
            "kl": kl,
            "merged": [count.merged / count.visual for count in counts],
            "kept": [count.retained for count in counts],
            "flops": [flops(count) for count in counts],
        }

    def _record(self, candidate: Candidate, name: str, result: object, video: AskedVideo) -> None:
        self._workspace.record(self._step(candidate, name), result)
        self._advance(len(video.questions))

    def _step(self, candidate: Candidate, name: str) -> str:
        return f"answers {candidate.name} {name}"

    def _unpruned(self, name: str) -> str:
        return f"unpruned {name}"

    def _logits_file(self, name: str) -> Path:
        return self._workspace.folder / f"logits-{name}.npy"


def stream_each(
    session: VideoSession, question: Question, keep_ratios: Sequence[float], sampling: SamplingConfig
) -> Iterator[AnswerStream]:
    """The answers to one question at several keep_ratios, from one run of llm_pre over it.

    Each is what `VideoSession.stream` gives in a session of that keep_ratio; the session's own does not matter.

    Raises:
        PruneVidError: The question cannot be asked, or the session prunes nothing.
    """
    scored = session.score(question)
    for keep_ratio in keep_ratios:
        yield scored.stream(sampling, keep_ratio=keep_ratio)
