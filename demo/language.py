"""Second stage of the training: the language model, on the frozen tower's tokens.

Several questions about a video are packed into one sequence; a block mask lets each see the video and itself.
Batches differ in which visual tokens they hold, in what order within a frame, and in how these are numbered:
see `choose_tokens`. Nothing here merges tokens or goes by attention; only the first stage looks at what tokens
show, when it leaves out backdrop to keep sequences short.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, distributed, nn
from transformers import LlavaOnevisionForConditionalGeneration

from demo import world
from demo.model import IDS, PREFIX_IDS, TOKENS, WIDTH, answer_ids, question_ids
from demo.tower import encode_range, optimizers, schedule, token_labels

LENGTH = 20  # longest question with its answer, in tokens
MOTION = len(world.DIRECTIONS) + 1  # classes of the auxiliary head: a direction, or standing
AUXILIARY_LAYER = 1  # the head reads the output of this layer (0-based)
LOOKING_LAYER = 2  # the layer (0-based) at which training tells a question where to look
ASKED = 16  # questions per video that are told
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


class Stage(TypedDict):
    """A stretch of training: so many steps on `tokens` visual tokens of every `stride`-th frame.

    Each step draws one of the counts in `tokens`; `batch` is the number of videos at the smallest of them.
    `crowded` stages leave backdrop out first.
    """

    steps: int
    batch: int
    tokens: tuple[int, ...]
    stride: int
    crowded: bool


@dataclass
class Data:
    """Videos as visual tokens, with everything that training asks about them.

    features: float16 [V, FRAMES, TOKENS, WIDTH]; motion: int8 [V, 2, FRAMES, TOKENS], the auxiliary classes
    played forwards and backwards (-1: do not ask); owner: int8 [V, FRAMES, TOKENS], the thing that a token shows most
    of (-1: backdrop alone, -2: little of any thing); about: int64 [V, Q], bit i set where a question is about thing i;
    questions: int16 [V, 2, Q, LENGTH] (0: padding) of both playing directions; answer_at: int8 [V, Q], where the
    answer starts; counts: number of questions [V].
    """

    features: Tensor
    motion: np.ndarray
    owner: np.ndarray
    about: np.ndarray
    questions: np.ndarray
    answer_at: np.ndarray
    counts: np.ndarray


def save_data(data: Data, folder: Path) -> None:
    """Writes the arrays of `data`, each to a file of its own."""
    np.save(folder / "features.npy", data.features.numpy())
    for name in ("motion", "owner", "about", "questions", "answer_at", "counts"):
        np.save(folder / f"{name}.npy", getattr(data, name))


def read_data(folder: Path) -> Data:
    """Reads what `save_data` wrote."""
    names = ("features", "motion", "owner", "about", "questions", "answer_at", "counts")
    features, *rest = (np.load(folder / f"{name}.npy") for name in names)
    return Data(torch.from_numpy(features), *rest)


def _backwards(question: world.Question) -> world.Question:
    """The same question about the video played backwards."""
    if question.kind == "direction":
        return world.Question(question.kind, question.text, _OPPOSITE[question.answer], question.things)
    if question.kind in ("mover", "count moving"):
        text = " ".join(_OPPOSITE.get(word, word) for word in question.text.replace("?", " ?").split())
        return world.Question(question.kind, text, question.answer, question.things)
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
    owner = np.zeros((videos, world.FRAMES, TOKENS), np.int8)
    about = np.zeros((videos, most), np.int64)
    questions = np.zeros((videos, 2, most, LENGTH), np.int16)
    answer_at = np.zeros((videos, most), np.int8)
    counts = np.zeros(videos, np.int64)
    for v, (sample, tokens) in enumerate(encode_range(model, split, range(videos), per_kind)):
        features[v] = torch.from_numpy(tokens)
        motion[v] = _motion(sample, token_labels(sample)["owner"])
        owner[v] = sample.owner.reshape(world.FRAMES, TOKENS)
        counts[v] = len(sample.questions)
        for q, forwards in enumerate(sample.questions):
            about[v, q] = sum(1 << thing for thing in forwards.things)
            for side, question in enumerate((forwards, _backwards(forwards))):
                ask, answer = question_ids(question.text), answer_ids(question.answer)
                questions[v, side, q, : len(ask) + len(answer)] = ask + answer
                answer_at[v, q] = len(ask)
        if v % 200 == 199:
            log(f"features of {split}: {v + 1} videos, {time.monotonic() - started:.0f} s")
    return Data(features, motion, owner, about, questions, answer_at, counts)


def choose_tokens(
    rng: np.random.Generator, count: int, stride: int, shown: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which visual tokens a training example holds, and their positions; both int64 [count].

    `count` tokens are drawn evenly from every `stride`-th frame. With `shown`, bool [FRAMES, TOKENS], backdrop
    is drawn only after all else: sequences in which there is much to see, to learn the questions on. Half the
    time the order within a frame is shuffled; half the time positions are renumbered without gaps, with `shown` always.
    """
    first = int(rng.integers(stride))
    pool = np.arange(world.FRAMES * TOKENS).reshape(world.FRAMES, TOKENS)[first::stride].reshape(-1)
    draw = rng.random(len(pool))
    if shown is not None:
        draw -= shown.reshape(-1)[pool]
    kept = np.sort(pool[np.argsort(draw)[:count]])
    positions = kept.copy() if shown is None and rng.random() < 0.5 else np.arange(count)
    if rng.random() < 0.5:
        kept = kept[np.lexsort((rng.random(count), kept // TOKENS))]
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
    rows: Tensor
    look: Tensor


def make_batch(
    data: Data, rng: np.random.Generator, size: int, count: int, text_length: int, stride: int, crowded: bool
) -> Batch:
    """Draws videos and packs questions.

    The sequence is: prefix, `count` visual tokens, the newline token, questions. `visual` is float32
    [size, count, WIDTH]; `text` ids [size, text_length]; `targets` the same shape (-100: no loss);
    `positions` [size, S]; `mask` bool [size, 1, S, S]; `motion` [size, count]. `rows` [size, ASKED]: the row of each
    question that predicts its answer's first word; `look` bool [size, ASKED, count]: the visual tokens that show what
    it is about.
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
    rows = np.zeros((size, ASKED), np.int64)
    look = np.zeros((size, ASKED, count), bool)
    for i, v in enumerate(videos):
        side = int(rng.integers(2))
        owner = data.owner[v, ::-1] if side else data.owner[v]
        shown = owner != -1
        kept, where = choose_tokens(rng, count, stride, shown if crowded else None)
        frame, cell = kept // TOKENS, kept % TOKENS
        source = world.FRAMES - 1 - frame if side else frame
        visual[i] = data.features[v][torch.from_numpy(source), torch.from_numpy(cell)].float()
        motion[i] = data.motion[v, side, frame, cell]
        positions[i, : len(PREFIX_IDS)] = np.arange(len(PREFIX_IDS))
        positions[i, len(PREFIX_IDS) : before - 1] = where + len(PREFIX_IDS)
        # Like a merged or a whole video, a thinned one with its old numbers ends where the video did.
        end = len(PREFIX_IDS) + (count if where[-1] == count - 1 else world.FRAMES * TOKENS)
        positions[i, before - 1] = end
        at, asked = 0, 0
        mine = owner[frame, cell]
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
            if asked < ASKED:
                rows[i, asked] = before + at + start - 1
                look[i, asked] = (mine >= 0) & ((data.about[v, q] >> np.maximum(mine, 0)) & 1).astype(bool)
                asked += 1
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
        torch.from_numpy(rows),
        torch.from_numpy(look),
    )


def _half_turned(x: Tensor) -> Tensor:
    """Rotary embedding's other half: (a, b) becomes (-b, a)."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def looking_loss(
    attention: nn.Module, normed: Tensor, rotary: tuple[Tensor, Tensor], batch: Batch, count: int
) -> Tensor:
    """How little of a question's attention at one layer goes to the tokens that show what it is about.

    The mean of -log(share), where the share is of the attention to visual tokens, averaged over heads. `normed`
    [size, S, WIDTH] is the layer's input after its norm. Finding the right token is what a model of this size does not
    learn from answers alone in a few thousand steps.
    """
    cos, sin = rotary
    size, asked = batch.rows.shape
    first = len(PREFIX_IDS)
    pick = batch.rows[..., None].expand(-1, -1, normed.shape[-1])
    query = attention.q_proj(normed.gather(1, pick)).view(size, asked, -1, attention.head_dim)
    key = attention.k_proj(normed[:, first : first + count]).view(size, count, -1, attention.head_dim)
    place = batch.rows[..., None].expand(-1, -1, cos.shape[-1])
    cos_q, sin_q = cos.gather(1, place)[:, :, None], sin.gather(1, place)[:, :, None]
    cos_k, sin_k = cos[:, first : first + count, None], sin[:, first : first + count, None]
    query = query * cos_q + _half_turned(query) * sin_q
    key = key * cos_k + _half_turned(key) * sin_k
    key = key.repeat_interleave(query.shape[2] // key.shape[2], 2)
    shares = (torch.einsum("brhd,bkhd->brhk", query, key) * attention.scaling).softmax(-1)
    mass = (shares * batch.look[:, :, None]).sum(-1).mean(-1)
    seen = batch.look.any(-1)
    return -(mass[seen] + 1e-6).log().mean()


def train_language(
    model: LlavaOnevisionForConditionalGeneration,
    data: Data,
    stages: list[Stage],
    log: Callable[[str], None],
    rate: float = 3e-3,
    text_length: int = 160,
    check: Callable[[int], None] | None = None,
    processes: int = 2,
) -> None:
    """Trains the language model in stages; `check(step)` is called every 250 steps.

    Works on `processes` processes of one thread each, which average their gradients: on a busy machine that is
    much faster than one process of several threads, which wait for each other in every operation.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        common = (processes, meeting, model, data, stages, rate, text_length)
        quiet: tuple[None, None] = (None, None)
        others = [get_context("fork").Process(target=_train, args=(r, *common, *quiet)) for r in range(1, processes)]
        for other in others:
            other.start()
        try:
            _train(0, *common, log, check)
            for other in others:
                other.join()
        finally:
            for other in others:
                other.terminate()


def _average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """Replaces every gradient by its mean over the processes."""
    flat = torch.cat([p.grad.reshape(-1) for p in parameters]) / processes
    distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def _train(
    rank: int,
    processes: int,
    meeting: str,
    model: LlavaOnevisionForConditionalGeneration,
    data: Data,
    stages: list[Stage],
    rate: float,
    text_length: int,
    log: Callable[[str], None] | None,
    check: Callable[[int], None] | None,
) -> None:
    """One of the processes of `train_language`."""
    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    torch.manual_seed(13)  # the same auxiliary head everywhere
    language, head = model.model.language_model, model.lm_head
    newline = model.model.image_newline
    auxiliary = nn.Linear(WIDTH, MOTION)
    layers = [torch.compile(layer, dynamic=False) for layer in language.layers]
    plain = {id(p) for m in (language.embed_tokens, head, auxiliary) for p in m.parameters()}
    groups = optimizers([language, head, auxiliary], rate, plain)
    groups[1].add_param_group({"params": [newline]})
    parameters = [p for group in groups for options in group.param_groups for p in options["params"]]
    common, own = np.random.default_rng(12), np.random.default_rng((12, rank))
    prefix = torch.tensor(PREFIX_IDS)
    steps = sum(stage["steps"] for stage in stages)
    step = 0
    for number, stage in enumerate(stages):
        totals = np.zeros(5)
        for _ in range(stage["steps"]):
            counts, stride = stage["tokens"], stage["stride"]
            count = counts[int(common.integers(len(counts)))]
            # The batch shrinks as sequences grow, so that a step costs about the same.
            share = (min(counts) + text_length) / (count + text_length)
            size = max(1, round(stage["batch"] * share / processes))
            batch = make_batch(data, own, size, count, text_length, stride, stage["crowded"])
            embed = language.embed_tokens
            start = embed(prefix).expand(size, -1, -1)
            hidden = torch.cat((start, batch.visual, newline.expand(size, 1, -1), embed(batch.text)), 1)
            rotary = language.rotary_emb(hidden, batch.positions)
            motion_loss = hidden.new_zeros(())
            look_loss = hidden.new_zeros(())
            for index, layer in enumerate(layers):
                if index == LOOKING_LAYER:
                    plain_layer = language.layers[index]
                    normed = plain_layer.input_layernorm(hidden)
                    look_loss = looking_loss(plain_layer.self_attn, normed, rotary, batch, count)
                hidden = layer(hidden, attention_mask=batch.mask, position_embeddings=rotary)
                if index == AUXILIARY_LAYER:
                    guess = auxiliary(hidden[:, len(PREFIX_IDS) : len(PREFIX_IDS) + count])
                    motion_loss = nn.functional.cross_entropy(
                        guess.reshape(-1, MOTION), batch.motion.reshape(-1), ignore_index=-1
                    )
            asked = batch.targets >= 0
            scores = head(language.norm(hidden[:, -text_length:][asked]))
            target = batch.targets[asked]
            loss = nn.functional.cross_entropy(scores, target)
            factor = schedule(step, steps, 0.4)
            for group in groups:
                group.zero_grad(set_to_none=True)
                for options in group.param_groups:
                    options["lr"] = rate * factor
            (loss + 0.3 * motion_loss.nan_to_num() + 0.5 * look_loss.nan_to_num()).backward()
            _average_gradients(parameters, processes)
            for group in groups:
                nn.utils.clip_grad_norm_([p for o in group.param_groups for p in o["params"]], 1.0)
                group.step()
            words = target != IDS["<|im_end|>"]
            right = (scores.argmax(-1) == target)[words].float().mean()
            totals += [loss.item(), float(motion_loss.detach()), right.item(), float(look_loss.detach()), 1]
            step += 1
            if step % 50 == 0 and log is not None:
                mean = totals / totals[4]
                log(
                    f"language step {step} (stage {number + 1}): loss {mean[0]:.3f}, motion {mean[1]:.3f}, "
                    f"words right {mean[2]:.3f}, look {mean[3]:.3f}; {time.monotonic() - started:.0f} s"
                )
                totals[:] = 0
            if check is not None and step % 250 == 0:
                check(step)
    distributed.destroy_process_group()
    torch.set_num_threads(threads)
