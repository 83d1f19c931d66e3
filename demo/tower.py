"""First stage of the training: the vision tower and the projector, with heads that are thrown away later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Set
from itertools import chain
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from demo import world
from demo.model import TOKENS, WIDTH, video_features

BINS = 16  # of an object's centre, along each axis


def render_range(split: str, indices: Iterable[int], per_kind: int = 1, workers: int = 2) -> Iterable[world.Sample]:
    """Renders videos in order, on a few processes; `per_kind` 0 renders crowds instead."""
    jobs = [(split, index, per_kind) for index in indices]
    with get_context("fork").Pool(workers) as pool:
        yield from pool.imap(_render, jobs, chunksize=4)


def _render(job: tuple[str, int, int]) -> world.Sample:
    return world.make_video(*job) if job[2] else world.make_crowd(job[0], job[1])


_worker_model: LlavaOnevisionForConditionalGeneration | None = None


def _start_worker(model: LlavaOnevisionForConditionalGeneration) -> None:
    global _worker_model
    _worker_model = model
    torch.set_num_threads(1)


def _encode(job: tuple[str, int, int]) -> tuple[world.Sample, np.ndarray]:
    sample = world.make_video(*job)
    assert _worker_model is not None
    with torch.inference_mode():
        features = video_features(_worker_model, torch.from_numpy(sample.frames)).half().numpy()
    sample.frames = sample.frames[:0]
    return sample, features


def encode_range(
    model: LlavaOnevisionForConditionalGeneration, split: str, indices: Iterable[int], per_kind: int, workers: int = 2
) -> Iterable[tuple[world.Sample, np.ndarray]]:
    """Renders videos and runs the tower on them, one thread a process.

    Yields samples without their frames, and their tokens, float16 [FRAMES, TOKENS, WIDTH].
    """
    jobs = [(split, index, per_kind) for index in indices]
    with get_context("fork").Pool(workers, _start_worker, (model,)) as pool:
        yield from pool.imap(_encode, jobs, chunksize=4)


def token_labels(sample: world.Sample) -> dict[str, np.ndarray]:
    """What each visual token shows, arrays [FRAMES, TOKENS].

    `owner` is the index of a thing, -1 for backdrop and -2 for "do not ask"; `shape` and `colour` are class
    numbers (0 is backdrop), `x` and `y` the centre of the thing in units of the frame (0..1).
    """
    owner = sample.owner.reshape(world.FRAMES, TOKENS)
    shape, colour = np.zeros(owner.shape, np.int64), np.zeros(owner.shape, np.int64)
    place = np.zeros((*owner.shape, 2), np.float32)
    for index, thing in enumerate(sample.scene.things):
        mine = owner == index
        shape[mine], colour[mine] = thing.shape + 1, thing.colour + 1
        centres = np.zeros((world.FRAMES, 2), np.float32)
        centres[thing.start : thing.stop] = thing.centres() / world.SIZE
        place[mine] = np.broadcast_to(centres[:, None], place.shape)[mine]
    return {"owner": owner.astype(np.int64), "shape": shape, "colour": colour, "place": place}


class Heads(nn.Module):
    """Linear read-outs of one visual token: a linear read-out also reads an average of tokens sensibly."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = nn.Linear(WIDTH, len(world.SHAPES) + 1)
        self.colour = nn.Linear(WIDTH, len(world.COLOURS) + 1)
        self.place = nn.Linear(WIDTH, 2)
        self.bins = nn.Linear(WIDTH, 2 * BINS)
        self.cell = nn.Linear(WIDTH, 2 * world.GRID)
        self.texture = nn.Linear(WIDTH, 48)


def _texture_target(frames: Tensor) -> Tensor:
    """Mean colours of 4 x 4 parts of every token's cell: float32 [F, TOKENS, 48], about -2..2."""
    part = world.CELL // 4
    small = nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).float() / 64 - 1.3, part)
    split = small.reshape(len(frames), 3, world.GRID, 4, world.GRID, 4)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(len(frames), TOKENS, 48)


def head_losses(heads: Heads, features: Tensor, frames: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses and accuracies of all heads on features [F, TOKENS, WIDTH]."""
    owner = labels["owner"]
    things, empty = features[owner >= 0], features[owner == -1]
    losses = {}
    for name in ("shape", "colour"):
        head, target = getattr(heads, name), labels[name][owner >= 0]
        scores, blank = head(things), head(empty)
        losses[name] = nn.functional.cross_entropy(scores, target)
        nothing = torch.zeros(len(blank), dtype=torch.long)
        losses[name + " none"] = nn.functional.cross_entropy(blank, nothing)
        losses["accuracy " + name] = (scores.argmax(-1) == target).float().mean()
    target = labels["place"][owner >= 0]
    losses["place"] = nn.functional.smooth_l1_loss(heads.place(things), target, beta=0.02) * 10
    losses["error place"] = (heads.place(things) - target).abs().mean() * world.SIZE
    bins = (target * BINS).long().clamp(0, BINS - 1)
    losses["bins"] = nn.functional.cross_entropy(heads.bins(things).reshape(-1, BINS), bins.reshape(-1)) * 0.5
    cells = torch.arange(TOKENS)
    where = torch.stack((cells // world.GRID, cells % world.GRID), -1).expand(len(features), -1, -1)
    scores = heads.cell(features).reshape(-1, world.GRID)
    losses["cell"] = nn.functional.cross_entropy(scores, where.reshape(-1)) * 0.5
    losses["texture"] = nn.functional.mse_loss(heads.texture(features), _texture_target(frames)) * 2
    return losses


def optimizers(modules: list[nn.Module], rate: float, plain: Set[int] = frozenset()) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of hidden layers, AdamW for all else and for the parameters in `plain` (by id)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                hidden = parameter.ndim == 2 and id(parameter) not in plain
                (matrices if hidden else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, decay: float, warm: int = 50) -> float:
    """Learning-rate factor: linear warm-up, flat, then linearly to nothing over the last share `decay`."""
    return min((step + 1) / warm, 1.0, max(steps - step, 0) / (decay * steps))


def train_tower(
    model: LlavaOnevisionForConditionalGeneration,
    videos: int,
    steps: int,
    log: Callable[[str], None],
    batch: int = 48,
    rate: float = 3e-3,
) -> Heads:
    """Trains tower and projector on single frames; returns the heads (useful for looking at features)."""
    started = time.monotonic()
    frames, labels = [], []
    # Three quarters are crowds: most tokens of a video show backdrop and teach little.
    for sample in chain(render_range("train", range(videos), 0), render_range("train", range(videos // 3))):
        frames.append(sample.frames)
        labels.append(token_labels(sample))
    images = torch.from_numpy(np.concatenate(frames))
    targets = {k: torch.from_numpy(np.concatenate([item[k] for item in labels])) for k in labels[0]}
    log(f"tower: {len(images)} frames rendered, {time.monotonic() - started:.0f} s")
    heads = Heads()
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    plain = {id(p) for p in heads.parameters()}
    plain |= {id(m.weight) for m in tower.modules() if isinstance(m, nn.Embedding)}
    groups = optimizers([tower, projector, heads], rate, plain)
    generator = torch.Generator().manual_seed(11)
    totals: dict[str, float] = {}
    for step in range(steps):
        pick = torch.randint(len(images), (batch,), generator=generator)
        chosen = {k: v[pick] for k, v in targets.items()}
        losses = head_losses(heads, video_features(model, images[pick]), images[pick], chosen)
        loss = sum(v for k, v in losses.items() if not k.startswith(("accuracy", "error")))
        for group in groups:
            group.zero_grad(set_to_none=True)
            for options in group.param_groups:
                options["lr"] = rate * schedule(step, steps, 0.11)
        loss.backward()
        for group in groups:
            group.step()
        for key, value in losses.items():
            totals[key] = totals.get(key, 0.0) + value.item() / 50
        if step % 50 == 49:
            text = ", ".join(f"{k} {v:.3f}" for k, v in totals.items())
            log(f"tower step {step + 1}: {text}; {time.monotonic() - started:.0f} s")
            totals = {}
    return heads


@torch.no_grad()
def condition_projector(
    model: LlavaOnevisionForConditionalGeneration, images: Tensor, size: float, first: float = 0.5
) -> None:
    """Folds a linear map into the projector that centres its output and evens out its directions.

    `images` uint8 [F, H, W, 3] are frames to measure on. Principal directions get the same variance, but the
    four largest, which hold a token's own row and column, `first` of that in amplitude; everything is scaled so
    that tokens have a root mean square of `size`. This matters to whoever compares tokens by cosine or distance:
    without it the mean of all tokens and their own place outweigh what they show.
    """
    tokens = torch.cat([video_features(model, part) for part in images.split(64)]).reshape(-1, WIDTH).double()
    mean = tokens.mean(0)
    values, vectors = torch.linalg.eigh((tokens - mean).T @ (tokens - mean) / len(tokens))
    values = values.clamp_min(values.max() * 1e-4)
    gains = values.rsqrt()
    gains[-4:] *= first
    gains *= size * WIDTH**0.5 / (values * gains**2).sum().sqrt()
    matrix = (vectors * gains) @ vectors.T
    last = model.model.multi_modal_projector.linear_2
    last.weight.copy_(matrix @ last.weight.double())
    last.bias.copy_(matrix @ (last.bias.double() - mean))
