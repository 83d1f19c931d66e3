"""The whole method on the transformers model itself, in torch: what the exported chain is compared with.

The vision tower and the decoder layers are transformers' own; merging and choosing are the NumPy reference's.
Only the middle is written here: where the question scores the tokens, and how hidden states and KV are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from interleaving import VISUAL, Gaps, stated_rows
from models import behind_video, video_features
from transformers import DynamicCache

from prunevid import PruneConfig, merge_tokens, select_tokens

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened on the way to an answer.

    tokens [V, C] and group [V]: the merged tokens; scores [V]: what the question gave each; kept [R]: those
    that went on; ids: the tokens generated; logits [len(ids), vocabulary]: what each was chosen from.
    """

    tokens: Array
    group: Array
    scores: Array
    kept: Array
    ids: list[int]
    logits: Array


@torch.no_grad()
def generate_pruned(
    model: Any,
    pixels: Array,
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
    config: PruneConfig,
    max_new_tokens: int,
    gaps: Gaps | None = None,
) -> Trace:
    """Answer greedily. The sequence: prefix, merged video, what stands behind it, suffix, which scores the video.

    gaps: ids of what stands before each frame and behind the last; image_newline is the one behind the vocabulary.
    """
    merged = merge_tokens(video_features(model, pixels), config)
    inner = model.model
    embed = inner.language_model.embed_tokens
    newline = embed.num_embeddings
    learned = behind_video(model)
    gaps = gaps or [*[[]] * len(pixels), [newline] * len(learned)]
    ids = torch.tensor([*prefix_ids, *stated_rows(merged.group, merged.segments, gaps), *suffix_ids])
    sequence = embed(torch.where((ids >= 0) & (ids < newline), ids, 0))
    sequence[ids == newline] = learned[:1]
    sequence[ids == VISUAL] = torch.from_numpy(merged.tokens)
    at = np.flatnonzero(ids.numpy() == VISUAL)
    length, layers, cut_after = len(sequence), len(inner.language_model.layers), config.prune_layer
    steps = _Steps(model)

    hidden = steps.run(sequence[None], torch.arange(length), range(cut_after + 1))
    probabilities = steps.probabilities[cut_after][0]
    scores = probabilities[:, -len(suffix_ids) :, at].amax((0, 1)).numpy()
    kept = select_tokens(scores, merged.group, config)

    rows = torch.from_numpy(np.delete(np.arange(length), np.delete(at, kept)))
    steps.cut_cache(rows, range(cut_after + 1))
    hidden = steps.run(hidden[:, rows], rows, range(cut_after + 1, layers))

    answer: list[int] = []
    logits: list[Array] = []
    for position in range(length, length + max_new_tokens):
        last = inner.language_model.norm(hidden[0, -1])
        logits.append(model.lm_head(last).numpy())
        answer.append(int(logits[-1].argmax()))
        if answer[-1] in _end_ids(model):
            break
        hidden = steps.run(embed(torch.tensor([answer[-1:]])), torch.tensor([position]), range(layers))
    return Trace(merged.tokens, merged.group, scores, kept, answer, np.stack(logits))


class _Steps:
    """Runs ranges of the model's layers over rows at given positions; keeps KV cache and probabilities."""

    def __init__(self, model: Any) -> None:
        self._model = model.model.language_model
        if self._model.config._attn_implementation != "eager":
            raise ValueError("only eager attention tells its probabilities")
        self.cache = DynamicCache()
        self.probabilities: dict[int, torch.Tensor] = {}

    def run(self, hidden: torch.Tensor, positions: torch.Tensor, layers: range) -> torch.Tensor:
        """Hidden states [1, S, C] after the layers; a row sees the cache, the rows before it and itself."""
        rotary = self._model.rotary_emb(hidden, positions[None])
        for number in layers:
            layer = self._model.layers[number]
            past = self.cache.get_seq_length(number)
            hook = layer.self_attn.register_forward_hook(self._keep_probabilities(number))
            hidden = layer(
                hidden,
                attention_mask=_causal_mask(past, hidden.shape[1]),
                position_ids=positions[None],
                past_key_values=self.cache,
                position_embeddings=rotary,
            )
            hook.remove()
        return hidden

    def cut_cache(self, rows: torch.Tensor, layers: range) -> None:
        """Leave only these rows in the cache of the layers."""
        for number in layers:
            entry = self.cache.layers[number]
            entry.keys, entry.values = entry.keys[:, :, rows], entry.values[:, :, rows]

    def _keep_probabilities(self, number: int) -> Any:
        def keep(module: Any, arguments: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            self.probabilities[number] = output[1]

        return keep


def _causal_mask(past: int, rows: int) -> torch.Tensor:
    """Additive mask [1, 1, rows, past + rows]."""
    allowed = torch.ones(rows, past + rows, dtype=torch.bool).tril(past)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]


def _end_ids(model: Any) -> tuple[int, ...]:
    found = model.generation_config.eos_token_id
    return tuple(found) if isinstance(found, list) else (found,)
