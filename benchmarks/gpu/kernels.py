"""The kernels on the device: equal to the reference on fresh random inputs, and how long they take."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import launch
from benchmarks.gpu.merging import Merger
from benchmarks.gpu.timing import milliseconds
from prunevid import PruneConfig
from prunevid.methods import clustering, segments, selection

# Share of a group's positions that change from frame to frame in the random videos.
_MOVING = 0.4
# Relative rounding of what the kernels compare: means of a few distances, and logarithms, in float32.
_NEAR = 2e-6


@dataclass(frozen=True)
class Shape:
    """A model's video: frames, tokens per frame, channels."""

    name: str
    frames: int
    tokens: int
    channels: int


def random_video(shape: Shape, generator: torch.Generator, device: torch.device) -> Tensor:
    """Features float32 [T, N, C] of two scenes: most positions keep still but for noise, the others change."""
    size = (shape.tokens, shape.channels)
    scenes = torch.randn((2, *size), generator=generator)
    features = scenes[torch.arange(shape.frames) * 2 // shape.frames]
    moving = torch.rand(shape.tokens, generator=generator) < _MOVING
    features[:, moving] += torch.randn((shape.frames, int(moving.sum()), shape.channels), generator=generator)
    return (features + 0.1 * torch.randn(features.shape, generator=generator)).to(device)


def check(shape: Shape, seed: int, device: torch.device) -> dict[str, int]:
    """Compare all three kernels with the reference; counts of what was compared, and `wrong`, which must be 0.

    A clustering that differs where the reference's own numbers are closer than float32 can tell is `near tie`.
    """
    generator = torch.Generator().manual_seed(seed)
    config = PruneConfig()
    merger = Merger(config, shape.frames, shape.tokens, device)
    features = random_video(shape, generator, device)
    groups = merger.groups(features)
    distances, clusters = merger.problem(features, groups)
    # The kernel reads a column where the reference reads a row.
    distances = torch.maximum(distances, distances.transpose(1, 2))
    seen = Counter[str]()
    found = launch.dpc_knn(distances, groups.valid, clusters, config.neighbours).cpu().numpy()
    tables, masks = distances.cpu().numpy().astype(np.float64), groups.valid.cpu().numpy()
    for table, mask, count, labels in zip(tables, masks, clusters.tolist(), found, strict=True):
        if count:
            inside = table[np.ix_(mask, mask)]
            same = np.array_equal(labels[mask], clustering.dpc_knn(inside, count, config.neighbours))
            near = not same and _has_near_tie(inside, count, config.neighbours)
            seen["groups" if same else "near tie" if near else "wrong"] += 1
    rng = np.random.default_rng(seed)
    for _ in range(5):
        labels = np.repeat(rng.integers(0, 12, shape.frames), rng.integers(1, 6, shape.frames))[: shape.frames]
        segment = launch.refine_segments(torch.from_numpy(labels).to(device)).tolist()
        seen["videos" if segment == segments.refine_segments(labels).tolist() else "wrong"] += 1
    scores = rng.random(shape.frames * shape.tokens, dtype=np.float32).round(4)
    group = np.sort(rng.integers(0, 2 * shape.frames, len(scores)))
    quota = config.keep_counts(len(scores))[np.bincount(group, minlength=2 * shape.frames)]
    kept = launch.group_topk(*(torch.from_numpy(array).to(device) for array in (scores, group, quota)))
    seen["selections" if kept.tolist() == selection.group_topk(scores, group, quota).tolist() else "wrong"] += 1
    return dict(seen)


def measure(shape: Shape, bandwidth: float, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Time of each kernel and of the whole merge, and the share of the copy's bandwidth that they reach.

    Bytes are those that must be read and written once: of the distances, the pairs of tokens that are there.
    """
    generator = torch.Generator().manual_seed(0)
    merger = Merger(PruneConfig(), shape.frames, shape.tokens, device)
    features = random_video(shape, generator, device)
    groups = merger.groups(features)
    distances, clusters = merger.problem(features, groups)
    merged = merger.merge(features)
    count, config = groups.valid.sum(1), merger.config
    clustered = count[clusters < count]
    labels = merger.segments(features)
    scores = torch.rand(len(merged.group), generator=generator).to(device)
    keep = torch.from_numpy(config.keep_counts(shape.tokens)).to(device)
    quota = keep[torch.bincount(merged.group, minlength=2 * shape.frames)]
    cases = {
        "DpcKnn": (
            lambda: launch.dpc_knn(distances, groups.valid, clusters, config.neighbours),
            4 * int(clustered.square().sum()) + 9 * groups.valid.numel(),
        ),
        "RefineSegments": (lambda: launch.refine_segments(labels), 16 * shape.frames),
        "GroupTopK": (lambda: launch.mark_topk(scores, merged.group, quota), 13 * len(scores)),
        "whole merge": (lambda: merger.merge(features), 4 * (features.numel() + merged.tokens.numel())),
    }
    found = []
    for name, (call, moved) in cases.items():
        time = milliseconds(call, device, repeats)
        reached = moved / (time / 1000) / bandwidth
        found.append({**asdict(shape), "what": name, "ms": time, "bytes": moved, "of copy bandwidth": reached})
    return found


def _has_near_tie(squared: np.ndarray[Any, Any], clusters: int, neighbours: int) -> bool:
    """Whether float32 rounding may change a decision of the clustering of these distances."""
    mean = np.sort(squared, axis=1)[:, :neighbours].mean(axis=1)
    ordered = np.sort(mean)
    if (np.diff(ordered) <= _NEAR * ordered[1:]).any():
        return True
    nearest = np.where(mean[None] < mean[:, None], squared, np.inf).min(1)
    delta = np.sqrt(np.where(np.isfinite(nearest), nearest, squared.max()))
    score = np.sort(np.exp(-mean) * delta)[::-1][: clusters + 1]
    return bool((-np.diff(score) <= _NEAR * score[:-1]).any())


def with_threshold_for(share: float, features: Tensor, merger: Merger, device: torch.device) -> Merger:
    """A merger whose static threshold lets `share` of this video's visual tokens be kept in the end."""
    frames, tokens, _ = features.shape
    low, high = -1.0, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        merger = Merger(replace(merger.config, static_threshold=middle), frames, tokens, device)
        sizes = torch.bincount(merger.merge(features).group).cpu().numpy()
        kept = merger.config.keep_counts(tokens)[sizes].sum()
        low, high = (middle, high) if kept / (frames * tokens) < share else (low, middle)
    return merger
