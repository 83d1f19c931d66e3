"""The merge of `export/graphs/merge.py` in torch on any device, with Triton kernels where it depends on the data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu import launch
from prunevid import PruneConfig
from prunevid.methods.prunevid import NORM_EPSILON


class Merged(NamedTuple):
    """tokens float32 [V, C], group int64 [V]."""

    tokens: Tensor
    group: Tensor


class Groups(NamedTuple):
    """The groups of tokens that are clustered together, padded: tokens float32 [2T, N, C], valid bool [2T, N]."""

    tokens: Tensor
    valid: Tensor


class Merger:
    """Merges videos of up to `frames` frames of `tokens` tokens on one device."""

    def __init__(self, config: PruneConfig, frames: int, tokens: int, device: torch.device) -> None:
        self.config = config
        self._segment_counts = torch.from_numpy(config.segment_counts(frames)).to(device)
        self._cluster_counts = torch.from_numpy(config.cluster_counts(tokens)).to(device)

    def merge(self, features: Tensor) -> Merged:
        """Merge features [T, N, C] of any floating type; computes in float32. Listing the tokens waits for the GPU."""
        features = features.float()
        groups = self.groups(features)
        distances, clusters = self.problem(features, groups)
        cluster = launch.dpc_knn(distances, groups.valid, clusters, self.config.neighbours)
        slots = torch.arange(cluster.shape[1], device=cluster.device)
        member = (cluster[:, None] == slots[None, :, None]).float()
        size = member.sum(2)
        means = (member @ groups.tokens) / size.clamp(min=1)[..., None]
        group, slot = (size > 0).nonzero(as_tuple=True)
        return Merged(means[group, slot], group)

    def groups(self, features: Tensor) -> Groups:
        """Find segments and what is static in them; rows are numbered as in the merged sequence."""
        frames = len(features)
        index = torch.arange(frames, device=features.device)
        segment = self.segments(features)
        weight = (segment[None] == index[:, None]).float()
        static = self._static(features, weight)
        size = weight.sum(1)
        mean = (weight @ features.flatten(1)).view_as(features) / size.clamp(min=1)[:, None, None]
        width = size.long()
        rows = torch.cat((width.cumsum(0) - width + index, index + segment + 1))
        source = torch.empty_like(rows).scatter_(0, rows, torch.arange(2 * frames, device=rows.device))
        tokens = torch.cat((mean, features))[source]
        return Groups(tokens, torch.cat((static, ~static[segment]))[source])

    def segments(self, features: Tensor) -> Tensor:
        """Contiguous segment of every frame, int64 [T]."""
        frame = features.mean(1)
        distances = squared_distances((frame - frame.mean(0))[None])
        every = torch.ones((1, len(frame)), dtype=torch.bool, device=frame.device)
        count = self._segment_counts[len(frame)][None]
        return launch.refine_segments(launch.dpc_knn(distances, every, count, self.config.neighbours)[0])

    def problem(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """What DpcKnn is asked: distances [2T, N, N] and clusters [2T]."""
        distances = squared_distances(groups.tokens - features.mean((0, 1)))
        return distances, self._cluster_counts[groups.valid.sum(1)]

    def _static(self, features: Tensor, weight: Tensor) -> Tensor:
        """Static positions by segment number, bool [T, N]."""
        unit = torch.nn.functional.normalize(features, dim=-1, eps=NORM_EPSILON)
        own = weight @ unit.square().sum(-1)
        together = (weight @ unit.flatten(1)).view_as(unit).square().sum(-1)
        size = weight.sum(1, keepdim=True)
        pairs = size * (size - 1)
        similarity = (together - own) / pairs.clamp(min=1)
        return (similarity > self.config.static_threshold) & (pairs > 0)


def squared_distances(tokens: Tensor) -> Tensor:
    """Squared distances divided by C, [G, N, N], of float32 tokens [G, N, C] that are centred near zero."""
    norm = tokens.square().sum(-1)
    squared = norm[:, :, None] + norm[:, None, :] - 2 * (tokens @ tokens.transpose(1, 2))
    squared = squared.clamp(min=0) / tokens.shape[2]
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared
