"""A known model with random weights on a device, answering with and without pruning, driven without generate()."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, DynamicCache

from benchmarks.gpu import launch
from benchmarks.gpu.merging import Merged, Merger
from benchmarks.gpu.timing import Watch
from benchmarks.torch_pruning import question_scores, run_layers

MODELS = Path(__file__).resolve().parents[2] / "export" / "models"


@dataclass(frozen=True)
class Question:
    """Ids of the text before and behind the video; the text behind it scores the video."""

    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """stages: milliseconds by name, decode per token. ids: of the text. visual: tokens seen, merged and kept."""

    stages: dict[str, float]
    ids: list[int]
    visual: tuple[int, int, int]
    cache_bytes: int


def random_model(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The model of a shipped config (`export/models`) with random weights, sdpa attention."""
    data = json.loads((MODELS / f"{name}.json").read_text())
    config = CONFIG_MAPPING[data["model_type"]].from_dict(data)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    standard = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return AutoModelForImageTextToText.from_config(config).eval()
    finally:
        torch.set_default_dtype(standard)


def encode(model: Any, pixels: Tensor) -> Tensor:
    """Features [T, N, C] of pixel values [T, 3, H, W]: tower, projector and pooling, without newline."""
    config = model.config
    found = model.model.get_video_features(
        pixels[None],
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    ).pooler_output[0, :-1]
    return found.reshape(len(pixels), -1, found.shape[-1])


@torch.inference_mode()
def answer(model: Any, pixels: Tensor, question: Question, merger: Merger | None, steps: int) -> Outcome:
    """Answer greedily with `steps` tokens; pruned where there is a merger, which has the settings."""
    watch = Watch(pixels.device)
    features = encode(model, pixels)
    watch.lap("vision")
    count = features.shape[0] * features.shape[1]
    decoder = Decoder(model)
    if merger is None:
        visual = kept = features.flatten(0, 1)
        token = decoder.prefill(decoder.sequence(question, visual))
    else:
        merged = merger.merge(features)
        watch.lap("merge")
        visual = merged.tokens.to(features.dtype)
        token, kept = decoder.prefill_pruned(question, merged, visual, merger)
    watch.lap("prefill")
    ids = [token]
    while len(ids) < steps:
        ids.append(decoder.decode(ids[-1]))
    watch.lap("decode")
    stages = watch.milliseconds()
    stages["first token"] = sum(stages.values()) - stages["decode"]
    stages["decode"] /= max(1, steps - 1)
    return Outcome(stages, ids, (count, len(visual), len(kept)), decoder.cache_bytes())


class Decoder:
    """The language model for one question: its layers, run in ranges over one cache."""

    def __init__(self, model: Any) -> None:
        self._model, self._language = model, model.model.language_model
        self._cache = DynamicCache()
        self._position = 0

    def sequence(self, question: Question, visual: Tensor) -> Tensor:
        """Embeddings [1, S, C] of text, video, newline, text."""
        embed, newline = self._language.embed_tokens, self._model.model.image_newline
        return torch.cat((embed(question.before), visual, newline[None].to(visual), embed(question.after)))[None]

    def prefill(self, hidden: Tensor) -> int:
        """Run all rows through all layers; the first token's id."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        self._position = len(positions)
        return self._token(self._layers(hidden, positions, range(len(self._language.layers))))

    def prefill_pruned(self, question: Question, merged: Merged, visual: Tensor, merger: Merger) -> tuple[int, Tensor]:
        """Run merged tokens, cut what the question does not attend to behind layer M, and go on; id and kept [R]."""
        last = merger.config.prune_layer
        hidden = self.sequence(question, visual)
        rows = torch.arange(hidden.shape[1], device=hidden.device)
        first, count, asked = len(question.before), len(visual), len(question.after)
        self._position = len(rows)
        hidden = self._layers(hidden, rows, range(last))
        scores = question_scores(self._language, hidden, rows, last, asked)[first : first + count]
        hidden = self._layers(hidden, rows, range(last, last + 1))
        sizes = torch.bincount(merged.group)
        keep = torch.from_numpy(merger.config.keep_counts(count)).to(sizes.device)
        kept = launch.group_topk(scores, merged.group, keep[sizes])
        rest = torch.cat((rows[:first], first + kept, rows[first + count :]))
        for entry in self._cache.layers:
            entry.keys, entry.values = entry.keys[:, :, rest], entry.values[:, :, rest]
        return self._token(self._layers(hidden[:, rest], rest, range(last + 1, len(self._language.layers)))), kept

    def decode(self, token: int) -> int:
        """The id behind `token`."""
        position = torch.tensor([self._position], device=self._language.embed_tokens.weight.device)
        hidden = self._language.embed_tokens(torch.full_like(position, token))[None]
        self._position += 1
        return self._token(self._layers(hidden, position, range(len(self._language.layers))))

    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(entry.keys.nbytes + entry.values.nbytes for entry in self._cache.layers)

    def _token(self, hidden: Tensor) -> int:
        return int(self._model.lm_head(self._language.norm(hidden[:, -1])).argmax())

    def _layers(self, hidden: Tensor, positions: Tensor, layers: range) -> Tensor:
        return run_layers(self._language, self._cache, hidden, positions, layers)
