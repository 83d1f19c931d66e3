"""What quantization costs in answers and saves on disk: the demo checkpoint in fp32 and by every recipe.

    python -m benchmarks.calibration --output benchmarks/results/calibration-demo.json

Recipes are calibrated on videos of the validation split; accuracy is exact match on other videos of it, pruned and
unpruned. Intervals are 95 % bootstrap intervals over videos, paired with fp32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.accuracy import bootstrap
from benchmarks.machine import describe
from benchmarks.report import points, save
from demo import world
from prunevid.calibration.judge import divergence
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.qdq import BlockInt4Qdq
from prunevid.calibration.quantize.recipes import RECIPES, Recipe
from prunevid.calibration.quantize.rewrite import TREATMENTS, BlockInt4, Treatment
from prunevid.calibration.quantize.rounding.schemes import Int4Blocks
from prunevid.calibration.questions import AskedVideo, Question
from prunevid.console.progress import Silent
from prunevid.export import export
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.pipeline import Pipeline

_SAMPLING = SamplingConfig(max_new_tokens=6)
_CALIBRATION_VIDEOS = 64
_FIRST_CALIBRATION, _FIRST_HELD_OUT = 0, 20_000

# What int4-awq is held against: the same blocks, to the nearest. No recipe of the product: known here only.
_ROUNDED = Recipe(
    "int4, rounded",
    "int4",
    {
        "ort": {"vision_merge": "dynamic-int8", "llm_pre": "int4-block128", "llm_post": "int4-block128"},
        "portable": {"vision_merge": "int8-qdq", "llm_pre": "int4-block128-qdq", "llm_post": "int4-block128-qdq"},
    },
    "as int4-awq, weights neither scaled nor compensated",
)
_PLAIN_TREATMENTS: dict[str, Treatment] = {
    "int4-block128": BlockInt4(Int4Blocks(128)),
    "int4-block128-qdq": BlockInt4Qdq(activation_aware=False),
}


def calibration_videos(folder: Path) -> list[AskedVideo]:
    """Videos of the validation split as folders of images, with their questions and answers."""
    videos = []
    for index in range(_FIRST_CALIBRATION, _FIRST_CALIBRATION + _CALIBRATION_VIDEOS):
        sample = world.make_video("validation", index)
        (folder / str(index)).mkdir()
        for number, frame in enumerate(sample.frames):
            Image.fromarray(frame).save(folder / str(index) / f"{number}.png")
        questions = tuple(Question(question.text, question.answer) for question in sample.questions)
        videos.append(AskedVideo(folder / str(index), questions))
    return videos


def held_out_samples(questions: int) -> list[world.Sample]:
    """Videos of the validation split that are nowhere else in use, with so many questions in all, or a few more."""
    samples: list[world.Sample] = []
    while sum(len(sample.questions) for sample in samples) < questions:
        samples.append(world.make_video("validation", _FIRST_HELD_OUT + len(samples)))
    return samples


def answer(
    pipeline: Pipeline, samples: list[world.Sample], prune: bool
) -> tuple[list[np.ndarray], list[list[str]], np.ndarray]:
    """By video: which questions are answered right, and the answers; the first tokens' logits of all questions."""
    right, texts, logits = [], [], []
    for sample in samples:
        session = pipeline.open(sample.frames, prune=prune)
        given = []
        for question in sample.questions:
            stream = session.stream(question.text, _SAMPLING)
            given.append("".join(stream))
            logits.append(stream.first_logits)
        right.append(np.array([text == q.answer for text, q in zip(given, sample.questions, strict=True)]))
        texts.append(given)
    return right, texts, np.array(logits)


def measure(questions: int) -> dict[str, Any]:
    """Size and accuracy of fp32 and of every recipe."""
    samples = held_out_samples(questions)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos_folder = folder / "videos"
        videos_folder.mkdir()
        videos = calibration_videos(videos_folder)
        bundles = {"fp32": export("demo", folder / "demo-ort")}
        RECIPES[_ROUNDED.name] = _ROUNDED
        TREATMENTS.update(_PLAIN_TREATMENTS)
        for recipe in RECIPES.values():
            for dialect in recipe.dialects:
                called = recipe.name if len(recipe.dialects) == 1 else f"{recipe.name} ({dialect})"
                source = export("demo", folder / f"demo-{dialect}", dialect=dialect, overwrite=True).path
                made = calibrate(source, videos, folder / called, Settings(recipe.name, force=True), Silent())
                bundles[called] = made.bundle
                print(f"{called}: {asdict(made.judgement)}", file=sys.stderr, flush=True)
        for prune in (True, False):
            original, how = None, "pruned" if prune else "unpruned"
            known: dict[str, list[np.ndarray]] = {}
            for which, bundle in bundles.items():
                right, texts, logits = answer(load(bundle, "ort-cpu", verify=False), samples, prune)
                original = original or (right, texts, logits)
                known[which] = right
                accuracy, interval = bootstrap(right, None)
                difference, paired = bootstrap(right, original[0])
                rows.setdefault(which, {"bytes": bundle.size})[how] = {
                    "accuracy": accuracy,
                    "interval": interval,
                    "difference to fp32": difference,
                    "paired interval": paired,
                    "same answer": float(np.mean(np.concatenate(texts) == np.concatenate(original[1]))),
                    "divergence": float(divergence(original[2], logits).mean()),
                }
            for which, rounded in beside_rounded(known):
                difference, paired = bootstrap(known[which], known[rounded])
                rows[which][how] |= {"difference to rounded": difference, "paired interval to rounded": paired}
    return {"questions": sum(len(s.questions) for s in samples), "videos": len(samples), "bundles": rows}


def beside_rounded(names: Iterable[str]) -> list[tuple[str, str]]:
    """Which of the bundles called so is to be held against which that was rounded to the nearest."""
    return [(name, name.replace("int4-awq", _ROUNDED.name)) for name in names if name.startswith("int4-awq")]


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| recipe | on disk | exact match, pruned | minus fp32 (paired) | same answer | KL "
        "| unpruned | minus fp32 | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["bundles"].items():
        cells = [name, f"{row['bytes'] / 1e6:.2f} MB"]
        for how in ("pruned", "unpruned"):
            found = row[how]
            cells.append(f"{100 * found['accuracy']:.1f} %")
            cells.append(points(found["difference to fp32"], found["paired interval"]))
            if how == "pruned":
                cells.append(f"{found['same answer']:.1%}")
            cells.append(f"{found['divergence']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, rounded in beside_rounded(result["bundles"]):
        for how in ("pruned", "unpruned"):
            found = result["bundles"][name][how]
            difference = points(found["difference to rounded"], found["paired interval to rounded"])
            lines.append(f"{name} minus {rounded}, {how}, paired: {difference}")
    return "\n".join([*lines, "", f"{result['questions']} questions about {result['videos']} videos."])


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=2000, help="held-out questions, at least")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result = measure(args.questions)
    save({"machine": describe(), **result}, args.output)
    print(table(result))


if __name__ == "__main__":
    main()
