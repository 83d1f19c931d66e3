"""The method in eager PyTorch on transformers' own layers: what somebody would write who stays with torch.

Attention is transformers' sdpa throughout; only the question's rows compute probabilities, at layer M. Distances go
through Gram matrices and every cluster step is a few tensor operations per group, so this is a fair peer for speed;
tests compare the chain with another implementation, which follows the reference to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from prunevid.config import PruneConfig
from prunevid.methods.segments import refine_segments
from prunevid.methods.selection import select_tokens


def merge(features: Tensor, config: PruneConfig) -> tuple[Tensor, Tensor]:
    """Merged tokens [V, C] of features [T, N, C], and the group of each, int64 [V], ascending."""
    frames, positions, _ = features.shape
    counts = config.cluster_counts(positions)
    clusters = int(config.segment_counts(frames)[-1])
    labels = _dpc_knn(features.mean(1), clusters, config.neighbours)
    segments = torch.from_numpy(refine_segments(labels.numpy()))
    groups: list[Tensor] = []
    for segment in range(int(segments[-1]) + 1):
        part = features[segments == segment]
        static = _static(part, config.static_threshold)
        groups += [part[:, static].mean(0), *(frame[~static] for frame in part)]
    groups = [_cluster(group, int(counts[len(group)]), config.neighbours) for group in groups if len(group)]
    sizes = torch.tensor([len(group) for group in groups])
    return torch.cat(groups), torch.arange(len(groups)).repeat_interleave(sizes)


def _static(part: Tensor, threshold: float) -> Tensor:
    """Which positions of a segment [W, N, C] stay the same: bool [N]."""
    frames = len(part)
    if frames == 1:
        return torch.zeros(part.shape[1], dtype=torch.bool)
    total = torch.nn.functional.normalize(part, dim=-1).sum(0).square().sum(-1)
    return (total - frames) / (frames * (frames - 1)) > threshold


def _dpc_knn(tokens: Tensor, clusters: int, neighbours: int) -> Tensor:
    """Cluster of each token [n, C], int64 [n]."""
    squared = torch.cdist(tokens, tokens).square() / tokens.shape[1]
    density = (-squared.topk(min(neighbours, len(tokens)), largest=False).values.mean(1)).exp()
    denser = density[None] > density[:, None]
    delta = torch.where(denser, squared, torch.inf).amin(1)
    delta = torch.where(denser.any(1), delta, squared.amax()).sqrt()
    centres = (density * delta).topk(clusters).indices
    cluster = squared[:, centres].argmin(1)
    cluster[centres] = torch.arange(clusters)
    return cluster


def _cluster(tokens: Tensor, clusters: int, neighbours: int) -> Tensor:
    """Means [clusters, C] of a group's tokens [n, C]."""
    if clusters >= len(tokens):
        return tokens
    cluster = _dpc_knn(tokens, clusters, neighbours)
    sizes = torch.bincount(cluster, minlength=clusters)[:, None]
    return torch.zeros(clusters, tokens.shape[1]).index_add_(0, cluster, tokens) / sizes


def run_layers(language: Any, cache: DynamicCache, hidden: Tensor, positions: Tensor, layers: range) -> Tensor:
    """Hidden states [1, S, C] after some layers of a transformers decoder; rows see the cache and those before them."""
    rotary = language.rotary_emb(hidden, positions[None])
    for number in layers:
        # Without a mask, transformers' sdpa is causal for several rows and sees all for one.
        hidden = language.layers[number](
            hidden,
            attention_mask=None,
            position_ids=positions[None],
            past_key_values=cache,
            position_embeddings=rotary,
        )
    return hidden


def question_scores(language: Any, hidden: Tensor, positions: Tensor, number: int, question: int) -> Tensor:
    """The largest attention probability, float32, that a layer's heads and the last `question` rows give each row."""
    layer = language.layers[number]
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query, key = (
        project(x).view(1, x.shape[1], -1, attention.head_dim).transpose(1, 2)
        for project, x in ((attention.q_proj, normed[:, -question:]), (attention.k_proj, normed))
    )
    cos, sin = language.rotary_emb(hidden, positions[None])
    query, _ = apply_rotary_pos_emb(query, query, cos[:, -question:], sin[:, -question:])
    key, _ = apply_rotary_pos_emb(key, key, cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = (query @ key.transpose(2, 3)).float() * attention.scaling
    seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=hidden.device).tril(logits.shape[-1] - question)
    probabilities: Tensor = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return probabilities.amax((0, 1, 2))


class PrunedDecoder:
    """A Qwen2 language model of transformers, run layer by layer with the cut behind layer M."""

    def __init__(self, language: Any, lm_head: Any, config: PruneConfig) -> None:
        self._language, self._lm_head, self._config = language, lm_head, config
        self._cache = DynamicCache()
        self._position = 0

    def prefill(self, before: Tensor, visual: Tensor, after: Tensor, group: Tensor) -> tuple[int, int]:
        """Run embeddings of prefix [P, C], merged tokens [V, C] and what follows [S, C] (image_newline first).

        Returns the first token's id and how many visual tokens were kept.
        """
        last_pre = self._config.prune_layer
        first, count = len(before), len(visual)
        rows = torch.arange(first + count + len(after))
        hidden = torch.cat((before, visual, after))[None]
        hidden = self._layers(hidden, rows, range(last_pre))
        scores = question_scores(self._language, hidden, rows, last_pre, len(after) - 1)[first : first + count]
        hidden = self._layers(hidden, rows, range(last_pre, last_pre + 1))
        kept = torch.from_numpy(select_tokens(scores.numpy(), group.numpy(), self._config))
        rest = torch.cat((rows[:first], first + kept, rows[first + count :]))
        for entry in self._cache.layers:
            entry.keys, entry.values = entry.keys[:, :, rest], entry.values[:, :, rest]
        hidden = self._layers(hidden[:, rest], rest, range(last_pre + 1, len(self._language.layers)))
        self._position = len(rows)
        return self._token(hidden), len(kept)

    def decode(self, token: int) -> int:
        """The token behind `token`."""
        hidden = self._language.embed_tokens(torch.tensor([[token]]))
        hidden = self._layers(hidden, torch.tensor([self._position]), range(len(self._language.layers)))
        self._position += 1
        return self._token(hidden)

    def _token(self, hidden: Tensor) -> int:
        return int(self._lm_head(self._language.norm(hidden[:, -1])).argmax())

    def _layers(self, hidden: Tensor, positions: Tensor, layers: range) -> Tensor:
        return run_layers(self._language, self._cache, hidden, positions, layers)
