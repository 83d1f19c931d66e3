"""What pruning costs in answers: exact match on held-out videos of the demo world.

    python -m benchmarks.accuracy --output benchmarks/results/accuracy-demo.json

Every variant answers the same questions about the same videos of the test split, which serves no other purpose.
Intervals are 95 % bootstrap intervals over videos, since the questions about one video hang together; differences to
the unpruned chain are paired.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.report import save
from demo import world
from prunevid.export import export
from prunevid.export.catalog import checkpoint_of_demo
from prunevid.runtime import Answer, SamplingConfig, VideoSession, load
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.sequence import VideoTokens
from prunevid.runtime.video.pixel_values import preprocess

_SAMPLING = SamplingConfig(max_new_tokens=6)
_BOOTSTRAP = 10_000

# One question's answers: from a video's features and its questions to a text each, and the tokens kept for each.
Variant = Callable[["Video"], tuple[list[str], list[int]]]


class Video:
    """A test video: its questions, pixels, features and merged tokens, and how many tokens the method keeps of it."""

    def __init__(self, pipeline: Pipeline, index: int) -> None:
        sample = world.make_video("test", index)
        self.index = index
        self.questions = sample.questions
        self.pixels = preprocess(sample.frames, pipeline.preprocessing)
        self.features = pipeline.features(sample.frames, len(sample.frames))
        self.merged = pipeline.chain.merge(self.features.features, pipeline.bundle.manifest.prune)
        self.visual = self.merged.patch_to_token.size
        self.kept = 0


def variants(pipeline: Pipeline) -> dict[str, Variant]:
    """All ways of choosing tokens, by the name they have in the table; each needs the method's own run first."""
    prune = pipeline.bundle.manifest.prune

    def ask(session: VideoSession, video: Video) -> tuple[list[str], list[int]]:
        return _texts_and_kept([session.ask(question.text, _SAMPLING) for question in video.questions])

    def chain_unpruned(video: Video) -> tuple[list[str], list[int]]:
        return ask(pipeline.session(video.features, prune=False), video)

    def pruned(video: Video) -> tuple[list[str], list[int]]:
        texts, kept = ask(pipeline.session(video.merged, prune), video)
        video.kept = kept[0]
        return texts, kept

    def merged_only(video: Video) -> tuple[list[str], list[int]]:
        return ask(pipeline.session(video.merged, replace(prune, keep_ratio=1.0)), video)

    def random_merged(video: Video) -> tuple[list[str], list[int]]:
        """As many tokens of every group as the method keeps, but at random instead of by the question's attention."""
        session, rng, answers = pipeline.session(video.merged, prune), np.random.default_rng([11, video.index]), []
        for question in video.questions:
            scored = session.score(question.text)
            stream = scored.stream(_SAMPLING, scores=rng.random(len(scored.scores), dtype=np.float32))
            "".join(stream)
            answers.append(stream.answer)
        return _texts_and_kept(answers)

    def subset(video: Video, index: np.ndarray) -> tuple[list[str], list[int]]:
        whole = pipeline.chain.unmerged(video.features.features)
        # On the CPU, and so an array of NumPy.
        chosen = np.asarray(whole.tokens)[index]
        tokens = VideoTokens(chosen, whole.group[index], whole.patch_to_token, whole.frame_segment)
        return ask(pipeline.session(tokens, prune=False), video)

    def random_input(video: Video) -> tuple[list[str], list[int]]:
        rng = np.random.default_rng([12, video.index])
        return subset(video, np.sort(rng.permutation(video.visual)[: video.kept]))

    def strided_input(video: Video) -> tuple[list[str], list[int]]:
        return subset(video, np.linspace(0, video.visual - 1, video.kept).round().astype(np.int64))

    def question_only(video: Video) -> tuple[list[str], list[int]]:
        return subset(video, np.empty(0, np.int64))

    return {
        "a": _transformers(pipeline),
        "b": chain_unpruned,
        "c": pruned,
        "d": merged_only,
        "e": random_merged,
        "f": random_input,
        "g": strided_input,
        "h": question_only,
    }


def _texts_and_kept(answers: list[Answer]) -> tuple[list[str], list[int]]:
    return [answer.text for answer in answers], [answer.token_counts.kept for answer in answers]


NAMES = {
    "a": "transformers, unpruned",
    "b": "exported chain, unpruned",
    "c": "exported chain, pruned (default settings)",
    "d": "merged, nothing selected",
    "e": "merged, random tokens kept (same layer, same count)",
    "f": "random input tokens, same count",
    "g": "evenly strided input tokens, same count",
    "h": "the question alone",
}


def _transformers(pipeline: Pipeline) -> Variant:
    import torch
    from transformers import AutoModelForImageTextToText

    # The checkpoint is stored in fp16; both sides compute in fp32.
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_of_demo(), dtype=torch.float32).eval()
    video_id = model.config.video_token_id

    def answer(video: Video) -> tuple[list[str], list[int]]:
        texts, visual = [], video.visual
        for question in video.questions:
            ids = pipeline.prompt.encode(question.text)
            tokens = np.concatenate([ids.prefix, np.full(visual + 1, video_id), ids.suffix])[None]
            with torch.inference_mode():
                output = model.generate(
                    input_ids=torch.from_numpy(tokens),
                    attention_mask=torch.ones(tokens.shape, dtype=torch.long),
                    pixel_values_videos=torch.from_numpy(video.pixels)[None],
                    do_sample=False,
                    max_new_tokens=_SAMPLING.max_new_tokens,
                )
            new = output[0, tokens.shape[1] :].tolist()
            texts.append(pipeline.prompt.tokenizer.decode(new, skip_special_tokens=True).strip())
        return texts, [visual] * len(texts)

    return answer


def measure(videos: int, bundle: str) -> dict[str, Any]:
    """Answers of every variant on `videos` test videos, and what they come to."""
    pipeline = load(bundle, verify=False)
    answering = variants(pipeline)
    right: dict[str, list[np.ndarray]] = {name: [] for name in answering}
    texts: dict[str, list[str]] = {name: [] for name in answering}
    shares: dict[str, list[float]] = {name: [] for name in answering}
    merged: list[float] = []
    kinds: list[str] = []
    for index in range(videos):
        video = Video(pipeline, index)
        for name, variant in answering.items():
            answers, kept = variant(video)
            right[name].append(np.array([a == q.answer for a, q in zip(answers, video.questions, strict=True)]))
            texts[name] += answers
            shares[name] += [k / video.visual for k in kept]
        merged.append(len(video.merged.tokens) / video.visual)
        kinds += [q.kind for q in video.questions]
        if (index + 1) % 20 == 0:
            print(f"{index + 1} videos", file=sys.stderr, flush=True)
    return {
        "videos": videos,
        "questions": len(kinds),
        "merged share": float(np.mean(merged)),
        "transformers and chain agree": float(np.mean([a == b for a, b in zip(texts["a"], texts["b"], strict=True)])),
        "variants": {name: _result(name, right, shares) for name in answering},
        "by kind": _by_kind(kinds, {name: np.concatenate(right[name]) for name in answering}),
    }


def _result(name: str, right: dict[str, list[np.ndarray]], shares: dict[str, list[float]]) -> dict[str, Any]:
    accuracy, interval = bootstrap(right[name], None)
    difference, paired = bootstrap(right[name], right["b"])
    return {
        "name": NAMES[name],
        "accuracy": accuracy,
        "interval": interval,
        "difference to b": difference,
        "paired interval": paired,
        "tokens kept": float(np.mean(shares[name])),
    }


def bootstrap(right: list[np.ndarray], other: list[np.ndarray] | None) -> tuple[float, list[float]]:
    """Mean over questions (minus the other's), and its 95 % interval by resampling videos."""
    hits = np.array([r.sum() for r in right], float) - (0 if other is None else np.array([r.sum() for r in other]))
    sizes = np.array([len(r) for r in right], float)
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(right), (_BOOTSTRAP, len(right)))
    means = hits[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(hits.sum() / sizes.sum()), [float(low), float(high)]


def _by_kind(kinds: list[str], right: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    labels = np.array(kinds)
    return {
        kind: {name: float(hits[labels == kind].mean()) for name, hits in right.items()} for kind in sorted(set(kinds))
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| | exact match (95 % interval) | minus unpruned chain (paired) | visual tokens kept |",
        "|---|---|---|---|",
    ]
    for name, row in result["variants"].items():
        low, high = (100 * x for x in row["interval"])
        least, most = (100 * x for x in row["paired interval"])
        lines.append(
            f"| ({name}) {row['name']} | {100 * row['accuracy']:.1f} % ({low:.1f} to {high:.1f}) "
            f"| {100 * row['difference to b']:+.1f} ({least:+.1f} to {most:+.1f}) | {row['tokens kept']:.1%} |"
        )
    lines += [
        "",
        f"{result['questions']} questions about {result['videos']} videos; merging alone leaves "
        f"{result['merged share']:.1%} of the tokens; transformers and the unpruned chain give the same answer to "
        f"{result['transformers and chain agree']:.2%} of the questions.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.videos, str(export("demo", Path(folder) / "demo").path))
    save({"machine": describe(), **result}, args.output)
    print(table(result))


if __name__ == "__main__":
    main()
