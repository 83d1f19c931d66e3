"""The demo's rendered world: deterministic, split cleanly, and its answers are true. And its checkpoint loads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from demo import world
from prunevid.runtime import load

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "export" / "models" / "demo"


@pytest.fixture(scope="module")
def samples() -> list[world.Sample]:
    return [world.make_video("train", index, per_kind=50) for index in range(40)]


def test_same_seed_same_video() -> None:
    first, second = world.make_video("validation", 3), world.make_video("validation", 3)
    assert np.array_equal(first.frames, second.frames)
    assert first.questions == second.questions
    assert first.frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    assert first.frames.dtype == np.uint8


def test_splits_and_indices_differ() -> None:
    firsts = {tuple(world.generator(split, i).integers(2**62, size=2)) for split in world.SPLITS for i in range(500)}
    assert len(firsts) == 500 * len(world.SPLITS)
    assert len(set(world.SPLITS.values())) == len(world.SPLITS)


def _seen(things: list[world.Thing], place: int) -> set[int]:
    """Which things have their centre in a ninth of the frame at any time."""
    row, column = divmod(place, 3)
    third = world.SIZE / 3
    return {
        index
        for index, thing in enumerate(things)
        for x, y in thing.centres()
        if int(x // third) == column and int(y // third) == row
    }


def test_answers_follow_from_the_objects(samples: list[world.Sample]) -> None:
    checked: Counter[str] = Counter()
    for sample in samples:
        things = sample.scene.things
        pairs = [(thing.shape, thing.colour) for thing in things]
        assert len(set(pairs)) == len(pairs)
        for question in sample.questions:
            asked = question.text.rstrip("?").split()
            shapes = [world.SHAPES.index(w) for w in asked if w in world.SHAPES]
            colours = [world.COLOURS.index(w) for w in asked if w in world.COLOURS]
            chosen = [t for t in things if all(t.shape == s for s in shapes) and all(t.colour == c for c in colours)]
            if question.kind in ("colour at", "shape at"):
                place = world.PLACES.index(question.text.rstrip("?").split(" at the ")[1])
                chosen = [things[i] for i in _seen(things, place)]
            elif question.kind in ("mover", "count moving"):
                way = world.DIRECTIONS.index(asked[-1])
                chosen = [t for t in things if t.direction == way]
            elif question.kind == "count":
                plural = [world.PLURALS.index(w) for w in asked if w in world.PLURALS]
                chosen = [t for t in chosen if all(t.shape == s for s in plural)]
            if question.kind.startswith("count"):
                truth = world.NUMBERS[len(chosen)]
            else:
                assert len(chosen) == 1, question
                thing = chosen[0]
                if question.kind == "direction":
                    moved = thing.centres()[-1] - thing.centres()[0]
                    assert np.abs(moved).max() > 20
                    truth = world.DIRECTIONS[int(np.argmax(world.STEPS @ moved))]
                elif question.kind == "place":
                    assert thing.direction < 0
                    truth = next(p for i, p in enumerate(world.PLACES) if _seen([thing], i))
                else:
                    about_colour = question.kind.startswith("colour") or "colour" in asked
                    truth = world.COLOURS[thing.colour] if about_colour else world.SHAPES[thing.shape]
            assert question.answer == truth, question
            checked[question.kind] += 1
    assert set(checked) == set(world.KINDS)


def test_what_is_rendered_is_where_the_objects_are(samples: list[world.Sample]) -> None:
    for sample in samples[:10]:
        for index, thing in enumerate(sample.scene.things):
            shown = np.flatnonzero((sample.owner == index).any((1, 2)))
            assert shown.min() >= thing.start
            assert shown.max() < thing.stop
            if world.SHAPES[thing.shape] == "ring":
                continue  # its centre shows the backdrop
            for t, (x, y) in zip(range(thing.start, thing.stop), thing.centres(), strict=True):
                pixel = sample.frames[t, int(y), int(x)].astype(float)
                assert np.abs(pixel - world.RGB[thing.colour]).max() < 60


def test_a_larger_rendering_shows_the_same(samples: list[world.Sample]) -> None:
    scene = samples[0].scene
    large, _ = world.render(scene, 2)
    assert large.shape == (world.FRAMES, 2 * world.SIZE, 2 * world.SIZE, 3)
    small = large.reshape(world.FRAMES, world.SIZE, 2, world.SIZE, 2, 3).mean((2, 4))
    assert np.abs(small - samples[0].frames).mean() < 4


def test_the_vocabulary_covers_every_question(samples: list[world.Sample]) -> None:
    known = set(world.words())
    for sample in samples:
        for question in sample.questions:
            assert set(f"{question.text} {question.answer}".replace("?", " ?").split()) <= known


def test_no_answer_is_much_more_likely_than_the_others() -> None:
    counts: dict[str, Counter[str]] = {}
    for index in range(60):
        scene = world.make_scene(world.generator("train", 1000 + index))
        rng = np.random.default_rng(index)
        for kind, pool in world.all_questions(scene.things).items():
            for question in world._draw(rng, kind, pool, 3):
                counts.setdefault(kind, Counter())[question.answer] += 1
    for kind, answers in counts.items():
        assert max(answers.values()) / sum(answers.values()) < 0.5, (kind, answers)


def test_checkpoint_loads_and_answers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    prompt = "<|im_start|>user {video}\n{question}<|im_end|><|im_start|>assistant\n"
    answers = []
    for index in range(2):
        sample = world.make_video("validation", 5000 + index)
        pixels = torch.from_numpy(sample.frames).permute(0, 3, 1, 2).float()[None] / 127.5 - 1
        for question in sample.questions[:3]:
            video = "<video>" * (world.FRAMES * world.GRID**2 + 1)
            inputs = tokenizer(prompt.format(video=video, question=question.text), return_tensors="pt")
            assert tokenizer.unk_token_id not in inputs.input_ids
            output = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                pixel_values_videos=pixels,
                max_new_tokens=6,
            )
            answer = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            answers.append(answer == question.answer)
    assert sum(answers) >= 5, answers


def test_the_chain_answers_with_and_without_pruning(demo_bundle: Path) -> None:
    """The full measurement is benchmarks/accuracy.py, on other videos; this is what may not break unnoticed."""
    pipeline = load(demo_bundle)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(10):
        sample = world.make_video("validation", 6000 + index)
        for prune, answers in right.items():
            session = pipeline.open(sample.frames, prune=prune)
            answers += [session.ask(q.text).text == q.answer for q in sample.questions]
    assert len(right[True]) > 60
    assert np.mean(right[False]) > 0.93
    assert np.mean(right[True]) > 0.90


def test_clip_is_small_and_its_answers_are_true() -> None:
    record = json.loads((ROOT / "demo" / "clip.json").read_text(encoding="utf-8"))
    assert (ROOT / "demo" / "clip.mp4").stat().st_size < 300_000
    sample = world.make_video(record["split"], record["index"])
    truths = {(q.text, q.answer) for pool in world.all_questions(sample.scene.things).values() for q in pool}
    for item in record["questions"]:
        assert (item["question"], item["answer"]) in truths
    assert len({item["kind"] for item in record["questions"]}) >= 3
