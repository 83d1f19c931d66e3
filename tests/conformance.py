"""What every backend is asked to do, and what came of it: the same questions about the same video."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prunevid.bundle import Bundle
from prunevid.runtime import SamplingConfig
from prunevid.runtime.backends.backend import Backend
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.video.pixel_values import preprocess

Array = npt.NDArray[Any]

# A short and a longer question; the demo's model knows few words.
QUESTIONS = ("Why?", "Which of the two shapes moves to the left, and what colour does it have?")
DEMO_QUESTIONS = ("what moves ?", "which way does the red circle move ? " * 4)
SAMPLING = SamplingConfig(max_new_tokens=12, ignore_eos=True)
FRAMES = np.random.default_rng(0).integers(0, 256, (6, 72, 72, 3), dtype=np.uint8)


@dataclass
class Record:
    """What a backend made of a video and some questions about it."""

    ids: list[tuple[int, ...]] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    kept: list[Array] = field(default_factory=list)
    tokens: list[Array] = field(default_factory=list)
    groups: list[Array] = field(default_factory=list)


def record(bundle: Bundle, backend: Backend) -> Record:
    """Ask several questions about one video, with and without pruning; look at what they attend to in between."""
    chain, found = Chain(bundle, backend), Record()
    run_post = chain.run_post

    def spy(*arguments: Any, **options: Any) -> Array:
        found.logits.append(run_post(*arguments, **options).copy())
        return found.logits[-1]

    chain.run_post = spy  # type: ignore[method-assign]
    pipeline = Pipeline(bundle, chain)
    short, long = DEMO_QUESTIONS if bundle.manifest.model.name == "demo" else QUESTIONS
    for prune in (True, False):
        session = pipeline.open(FRAMES, prune=prune)
        found.tokens.append(chain.memory.download(session.video.tokens).copy())
        found.groups.append(session.video.group)
        for question in (short, long, short):
            answer = session.ask(question, SAMPLING)
            found.ids.append(answer.token_ids)
            found.counts.append(answer.token_counts)
            assert all(seconds > 0 for seconds in answer.timings.stages.values())
        scores, kept = session.attend(long)
        found.scores.append(scores.copy())
        found.kept.append(kept.copy())
    # By the graph that merges features alone, too.
    merged = chain.merge(chain.encode(pixels_of(pipeline)), bundle.manifest.prune)
    found.tokens.append(chain.memory.download(merged.tokens).copy())
    found.groups.append(merged.group)
    return found


def pixels_of(pipeline: Pipeline) -> Array:
    """Pixel values of the video."""
    return preprocess(FRAMES, pipeline.preprocessing)


def assert_same(found: Record, expected: Record, apart: float = 0.0) -> None:
    """The same decisions and answers, and numbers no further apart than that."""
    assert found.ids == expected.ids
    assert found.counts == expected.counts
    for name in ("groups", "kept", "tokens", "scores", "logits"):
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=apart, rtol=0, err_msg=name)
