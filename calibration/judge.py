"""Judging a bundle by another: the same questions through the whole chain, pruned as it will run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.workspace import Workspace, save_array
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.text.sampling import SamplingConfig


@dataclass(frozen=True)
class Replies:
    """A bundle's replies to the questions about one video: texts, and the first token's logits float32 [Q, vocab]."""

    texts: tuple[str, ...]
    logits: np.ndarray


@dataclass(frozen=True)
class Judgement:
    """How a quantized bundle answers, beside the original.

    questions: how many were asked; agreement: share of them with the same greedy answer; divergence and
    largest_divergence: KL(original || quantized) of the first token's distribution in nats, mean and largest;
    accuracy_before and accuracy_after: share of right answers among the `answered` questions whose answer is known,
    None without any.
    """

    questions: int
    agreement: float
    divergence: float
    largest_divergence: float
    answered: int
    accuracy_before: float | None
    accuracy_after: float | None


def ask_all(
    pipeline: Pipeline,
    videos: Sequence[AskedVideo],
    sampling: SamplingConfig,
    workspace: Workspace,
    step: str,
    advance: Callable[[], None],
) -> list[Replies]:
    """Replies about every video; those of a video are kept in the workspace under `step` and not asked for again."""
    found = []
    for index, video in enumerate(videos):
        name = f"{step}-{index}"
        if name not in workspace:
            replies = ask(pipeline, video, sampling)
            save_array(workspace.folder / f"{name}.npy", replies.logits)
            workspace.record(name, list(replies.texts))
        found.append(Replies(tuple(workspace[name]), np.load(workspace.folder / f"{name}.npy", mmap_mode="r")))
        advance()
    return found


def ask(pipeline: Pipeline, video: AskedVideo, sampling: SamplingConfig) -> Replies:
    """Greedy replies to the questions about one video. Raises PruneVidError as `Pipeline.open` does."""
    session = pipeline.open(video.path)
    texts, logits = [], []
    for question in video.questions:
        stream = session.stream(question.text, sampling)
        texts.append("".join(stream))
        logits.append(stream.first_logits)
    return Replies(tuple(texts), np.array(logits, np.float32))


def judge(videos: Sequence[AskedVideo], before: Sequence[Replies], after: Sequence[Replies]) -> Judgement:
    """Compare the replies of two bundles to the same questions."""
    same, right_before, right_after, divergences = [], [], [], []
    for video, old, new in zip(videos, before, after, strict=True):
        divergences += divergence(old.logits, new.logits).tolist()
        for question, old_text, new_text in zip(video.questions, old.texts, new.texts, strict=True):
            same.append(normal(old_text) == normal(new_text))
            if question.answer is not None:
                right_before.append(normal(old_text) == normal(question.answer))
                right_after.append(normal(new_text) == normal(question.answer))
    return Judgement(
        questions=len(same),
        agreement=float(np.mean(same)),
        divergence=float(np.mean(divergences)),
        largest_divergence=float(np.max(divergences)),
        answered=len(right_before),
        accuracy_before=float(np.mean(right_before)) if right_before else None,
        accuracy_after=float(np.mean(right_after)) if right_after else None,
    )


def divergence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """KL(before || after) in nats of the distributions of logits [Q, vocab], float64 [Q], never below zero."""
    old, new = _log_softmax(before), _log_softmax(after)
    sums: np.ndarray = (np.exp(old) * (old - new)).sum(axis=-1)
    return sums.clip(min=0.0)


def normal(text: str) -> str:
    """An answer without what makes no difference: case, space around it, a full stop at its end."""
    return " ".join(text.casefold().split()).rstrip(". ")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
