"""Second stage of the training: the language model, on the frozen tower's tokens.

Several questions about a video are packed into one sequence; a block mask lets each see the video and itself.
Batches differ in which visual tokens they hold, in what order within a frame, and in how these are numbered:
see `choose_tokens`. Nothing here merges tokens, and nothing chooses them by their content.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import world
from model import IDS, PREFIX_IDS, TOKENS, WIDTH, answer_ids, question_ids, video_features
from torch import Tensor, nn
from tower import optimizers, render_range, schedule, token_labels
from transformers import LlavaOnevisionForConditionalGeneration

LENGTH = 20  # longest question with its answer, in tokens
MOTION = len(world.DIRECTIONS) + 1  # classes of the auxiliary head: a direction, or standing
AUXILIARY_LAYER = 1  # the head reads the output of this layer (0-based)
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


class Stage(TypedDict):
    """A stretch of training: so many steps on `tokens` visual tokens of every `stride`-th frame.

    Each step draws one of the counts in `tokens`; `batch` is the number of videos at the smallest of them.
    """

    steps: int
    batch: int
    tokens: tuple[int, ...]
    stride: int


@dataclass
class Data:
    """Videos as visual tokens, with everything that training asks about them.

    features: float16 [V, FRAMES, TOKENS, WIDTH]; motion: int8 [V, 2, FRAMES, TOKENS], the auxiliary classes
    played forwards and backwards (-1: do not ask); questions: int16 [V, 2, Q, LENGTH] (0: padding) of both
    playing directions; answer_at: int8 [V, Q], where the answer starts; counts: number of questions [V].
    """

    features: Tensor
    motion: np.ndarray
    questions: np.ndarray
    answer_at: np.ndarray
    counts: np.ndarray


def save_data(data: Data, folder: Path) -> None:
    """Writes the arrays of `data`, each to a file of its own."""
    np.save(folder / "features.npy", data.features.numpy())
    for name in ("motion", "questions", "answer_at", "counts"):
        np.save(folder / f"{name}.npy", getattr(data, name))


def read_data(folder: Path) -> Data:
    """Reads what `save_data` wrote."""
    names = ("features", "motion", "questions", "answer_at", "counts")
    features, *rest = (np.load(folder / f"{name}.npy") for name in names)
    return Data(torch.from_numpy(features), *rest)


def _backwards(question: world.Question) -> world.Question:
    """The same question about the video played backwards."""
    if question.kind == "direction":
        return world.Question(question.kind, question.text, _OPPOSITE[question.answer])
    if question.kind in ("mover", "count moving"):
        text = " ".join(_OPPOSITE.get(word, word) for word in question.text.replace("?", " ?").split())
        return world.Question(question.kind, text, question.answer)
    return question


def _motion(sample: world.Sample, owner: np.ndarray) -> np.ndarray:
    """Auxiliary classes int8 [2, FRAMES, TOKENS]: only where a thing has already been seen for two frames."""
    result = np.full((2, world.FRAMES, TOKENS), -1, np.int8)
    for index, thing in enumerate(sample.scene.things):
        way = thing.direction if thing.direction >= 0 else len(world.DIRECTIONS)
        back = way ^ 1 if thing.direction >= 0 else way
        for t in range(thing.start, thing.stop):
            mine = owner[t] == index
            if t >= thing.start + 2:
                result[0, t, mine] = way
            if t < thing.stop - 2:
                result[1, world.FRAMES - 1 - t, mine] = back
    return result


def load_data(
    model: LlavaOnevisionForConditionalGeneration, split: str, videos: int, per_kind: int, log: Callable[[str], None]
) -> Data:
    """Renders videos and runs the tower on them."""
    started = time.monotonic()
    features = torch.empty(videos, world.FRAMES, TOKENS, WIDTH, dtype=torch.float16)
    most = per_kind * len(world.KINDS)
    motion = np.empty((videos, 2, world.FRAMES, TOKENS), np.int8)
    questions = np.zeros((videos, 2, most, LENGTH), np.int16)
    answer_at = np.zeros((videos, most), np.int8)
    counts = np.zeros(videos, np.int64)
    with torch.no_grad():
        for v, sample in enumerate(render_range(split, range(videos), per_kind)):
            features[v] = video_features(model, torch.from_numpy(sample.frames)).half()
            motion[v] = _motion(sample, token_labels(sample)["owner"])
            counts[v] = len(sample.questions)
            for q, forwards in enumerate(sample.questions):
                for side, question in enumerate((forwards, _backwards(forwards))):
                    ask, answer = question_ids(question.text), answer_ids(question.answer)
                    questions[v, side, q, : len(ask) + len(answer)] = ask + answer
                    answer_at[v, q] = len(ask)
            if v % 1000 == 999:
                log(f"features of {split}: {v + 1} videos, {time.monotonic() - started:.0f} s")
    return Data(features, motion, questions, answer_at, counts)


def choose_tokens(rng: np.random.Generator, count: int, stride: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which visual tokens a training example holds, and their positions; both int64 [count].

    `count` tokens are drawn evenly from every `stride`-th frame (all of them if `whole`). Half the time the
    order within a frame is shuffled; half the time positions are renumbered without gaps.
    """
    first = int(rng.integers(stride))
    pool = np.arange(world.FRAMES * TOKENS).reshape(world.FRAMES, TOKENS)[first::stride].reshape(-1)
    kept = pool if whole else np.sort(rng.permutation(pool)[:count])
    positions = kept.copy() if rng.random() < 0.5 else np.arange(len(kept))
    if rng.random() < 0.5:
        kept = kept[np.lexsort((rng.random(len(kept)), kept // TOKENS))]
    return kept, positions


@dataclass
class Batch:
    """One training step's input: see `make_batch`."""

    visual: Tensor
    text: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    motion: Tensor


def make_batch(
    data: Data, rng: np.random.Generator, size: int, count: int, text_length: int, stride: int = 1, whole: bool = False
) -> Batch:
    """Draws videos and packs questions.

    The sequence is: prefix, `count` visual tokens, the newline token, questions. `visual` is float32
    [size, count, WIDTH]; `text` ids [size, text_length]; `targets` the same shape (-100: no loss);
    `positions` [size, S]; `mask` bool [size, 1, S, S]; `motion` [size, count].
    """
    before = len(PREFIX_IDS) + count + 1
    total = before + text_length
    videos = rng.integers(len(data.features), size=size)
    visual = torch.empty(size, count, WIDTH)
    text = np.zeros((size, text_length), np.int64)
    targets = np.full((size, text_length), -100, np.int64)
    positions = np.zeros((size, total), np.int64)
    block = np.zeros((size, total), np.int64)
    motion = np.empty((size, count), np.int64)
    for i, v in enumerate(videos):
        side = int(rng.integers(2))
        kept, where = choose_tokens(rng, count, stride, whole)
        frame, cell = kept // TOKENS, kept % TOKENS
        source = world.FRAMES - 1 - frame if side else frame
        visual[i] = data.features[v][torch.from_numpy(source), torch.from_numpy(cell)].float()
        motion[i] = data.motion[v, side, frame, cell]
        positions[i, : len(PREFIX_IDS)] = np.arange(len(PREFIX_IDS))
        positions[i, len(PREFIX_IDS) : before - 1] = where + len(PREFIX_IDS)
        # Like a merged or a whole video, a thinned one with its old numbers ends where the video did.
        end = len(PREFIX_IDS) + (count if where[-1] == count - 1 else world.FRAMES * TOKENS)
        positions[i, before - 1] = end
        at = 0
        for q in rng.permutation(data.counts[v]):
            line = data.questions[v, side, q]
            length = int(np.count_nonzero(line))
            if at + length > text_length:
                break
            text[i, at : at + length] = line[:length]
            start = int(data.answer_at[v, q])
            targets[i, at + start - 1 : at + length - 1] = line[start:length]
            positions[i, before + at : before + at + length] = end + 1 + np.arange(length)
            block[i, before + at : before + at + length] = q + 1
            at += length
        block[i, before + at :] = -1
    blocks = torch.from_numpy(block)
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    same = (blocks[:, None, :] == 0) | (blocks[:, None, :] == blocks[:, :, None])
    return Batch(
        visual,
        torch.from_numpy(text),
        torch.from_numpy(positions),
        (same & causal)[:, None],
        torch.from_numpy(targets),
        torch.from_numpy(motion),
    )


def train_language(
    model: LlavaOnevisionForConditionalGeneration,
    data: Data,
    stages: list[Stage],
    log: Callable[[str], None],
    rate: float = 3e-3,
    text_length: int = 160,
    check: Callable[[int], None] | None = None,
) -> None:
    """Trains the language model in stages; `check(step)` is called every 500 steps."""
    started = time.monotonic()
    language, head = model.model.language_model, model.lm_head
    newline = model.model.image_newline
    auxiliary = nn.Linear(WIDTH, MOTION)
    layers = [torch.compile(layer, dynamic=False) for layer in language.layers]
    rest: list[nn.Module] = [language, head, auxiliary]
    plain = {id(p) for m in (language.embed_tokens, head, auxiliary) for p in m.parameters()}
    groups = optimizers(rest, rate, plain)
    groups[1].add_param_group({"params": [newline]})
    rng = np.random.default_rng(12)
    prefix = torch.tensor(PREFIX_IDS)
    steps = sum(stage["steps"] for stage in stages)
    step = 0
    for number, stage in enumerate(stages):
        totals = np.zeros(4)
        for _ in range(stage["steps"]):
            counts, stride = stage["tokens"], stage["stride"]
            count = counts[int(rng.integers(len(counts)))]
            whole = count == world.FRAMES * TOKENS // stride
            # The batch shrinks as sequences grow, so that a step costs about the same.
            size = max(2, round(stage["batch"] * (min(counts) + text_length) / (count + text_length)))
            batch = make_batch(data, rng, size, count, text_length, stride, whole)
            embed = language.embed_tokens
            parts = (
                embed(prefix).expand(size, -1, -1),
                batch.visual,
                newline.expand(size, 1, -1),
                embed(batch.text),
            )
            hidden = torch.cat(parts, 1)
            rotary = language.rotary_emb(hidden, batch.positions)
            motion_loss = hidden.new_zeros(())
            for index, layer in enumerate(layers):
                hidden = layer(hidden, attention_mask=batch.mask, position_embeddings=rotary)
                if index == AUXILIARY_LAYER:
                    visual = hidden[:, len(PREFIX_IDS) : len(PREFIX_IDS) + count]
                    known = batch.motion >= 0
                    if known.any():
                        motion_loss = nn.functional.cross_entropy(auxiliary(visual[known]), batch.motion[known])
            asked = batch.targets >= 0
            scores = head(language.norm(hidden[:, -text_length:][asked]))
            target = batch.targets[asked]
            loss = nn.functional.cross_entropy(scores, target)
            for group in groups:
                group.zero_grad(set_to_none=True)
                for options in group.param_groups:
                    options["lr"] = rate * schedule(step, steps, 0.4)
            (loss + 0.3 * motion_loss).backward()
            for group in groups:
                nn.utils.clip_grad_norm_([p for o in group.param_groups for p in o["params"]], 1.0)
                group.step()
            words = target != IDS["<|im_end|>"]
            right = (scores.argmax(-1) == target)[words].float().mean()
            totals += [loss.item(), float(motion_loss.detach()), right.item(), 1]
            step += 1
            if step % 50 == 0:
                mean = totals / totals[3]
                log(
                    f"language step {step} (stage {number + 1}): loss {mean[0]:.3f}, motion {mean[1]:.3f}, "
                    f"words right {mean[2]:.3f}; {time.monotonic() - started:.0f} s"
                )
                totals[:] = 0
            if check is not None and step % 500 == 0:
                check(step)
