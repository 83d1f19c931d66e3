"""Validation: how often the model answers exactly right with all, merged, selected or randomly chosen tokens.

This is the trainer's own yardstick, teacher-forced (an answer counts if every word and the end token would be
chosen greedily). It works on the validation split; the test split is left to the benchmark.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

import prunevid
from demo import world
from demo.model import PREFIX_IDS, answer_ids, question_ids, video_features
from demo.tower import render_range

ROOT = Path(__file__).resolve().parent.parent
MODES = ("all", "merged", "selected", "merged, random kept", "random", "strided", "question only")


def _question_batch(questions: list[world.Question]) -> tuple[Tensor, Tensor, list[int]]:
    """Right-padded ids [Q, L], targets [Q, L] (-100: none) and prompt lengths."""
    pairs = [(question_ids(q.text), answer_ids(q.answer)) for q in questions]
    length = max(len(a) + len(b) for a, b in pairs)
    ids, targets = torch.zeros(len(pairs), length, dtype=torch.long), torch.full((len(pairs), length), -100)
    for i, (ask, answer) in enumerate(pairs):
        ids[i, : len(ask) + len(answer)] = torch.tensor(ask + answer)
        targets[i, len(ask) - 1 : len(ask) + len(answer) - 1] = torch.tensor(answer)
    return ids, targets, [len(ask) for ask, _ in pairs]


def _scores(
    layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], visual: int, asks: list[int]
) -> np.ndarray:
    """What each visual token gets of the question's attention at a layer: float [Q, visual]."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    split = (*normed.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(normed).view(split).transpose(1, 2)
    key = attention.k_proj(normed).view(split).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    first = len(PREFIX_IDS) + visual + 1
    logits = query[:, :, first:] @ key.transpose(2, 3) * attention.scaling
    mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril(first)
    shares = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    seen = slice(len(PREFIX_IDS), len(PREFIX_IDS) + visual)
    return np.stack([shares[i, :, :ask, seen].amax((0, 1)).numpy() for i, ask in enumerate(asks)])


@torch.no_grad()
def answers(
    model: LlavaOnevisionForConditionalGeneration,
    visual: Tensor,
    questions: list[world.Question],
    prune_layer: int = 0,
    keep: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[bool]:
    """Whether each question is answered exactly right from visual tokens [V, WIDTH].

    `keep(scores)` chooses the visual tokens that go on after `prune_layer`; None keeps all.
    """
    language = model.model.language_model
    ids, targets, asks = _question_batch(questions)
    batch, count = len(questions), len(visual)
    embed = language.embed_tokens
    prefix = embed(torch.tensor(PREFIX_IDS)).expand(batch, -1, -1)
    newline = model.model.image_newline.expand(batch, 1, -1)
    hidden = torch.cat((prefix, visual.expand(batch, -1, -1), newline, embed(ids)), 1)
    rotary = language.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    for index, layer in enumerate(language.layers):
        scores = _scores(layer, hidden, rotary, count, asks) if keep is not None and index == prune_layer else None
        mask = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if keep is not None and scores is not None:
            start = len(PREFIX_IDS)
            after = torch.arange(start + count, hidden.shape[1])
            rows = [torch.cat((torch.arange(start), torch.from_numpy(keep(s)) + start, after)) for s in scores]
            kept = torch.stack(rows)
            hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
            rotary = tuple(part.expand(batch, -1, -1)[torch.arange(batch)[:, None], kept] for part in rotary)
    guess = model.lm_head(language.norm(hidden[:, -ids.shape[1] :])).argmax(-1)
    return ((guess == targets) | (targets < 0)).all(1).tolist()


def _keep(group: np.ndarray, config: Any, rng: np.random.Generator | None, scores: np.ndarray) -> np.ndarray:
    """The kept tokens of every group: those of the highest scores, or random ones if there is an `rng`."""
    return np.asarray(prunevid.select_tokens(scores if rng is None else rng.random(len(scores)), group, config))


def compare(
    model: LlavaOnevisionForConditionalGeneration,
    samples: list[world.Sample],
    features: list[Tensor],
    modes: tuple[str, ...] = MODES,
    prune_layers: tuple[int, ...] = (2,),
    seed: int = 0,
) -> dict[str, dict[str, list[float]]]:
    """Accuracy by mode and kind of question, and under "share" the shares of tokens kept."""
    config = prunevid.PruneConfig()
    rng = np.random.default_rng(seed)
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample, feature in zip(samples, features, strict=True):
        flat = feature.reshape(-1, feature.shape[-1])
        merged = prunevid.merge_tokens(feature.double().numpy(), config)
        tokens = torch.from_numpy(np.asarray(merged.tokens)).float()
        quota = len(prunevid.select_tokens(np.zeros(len(tokens)), merged.group, config))
        results["share"]["merged"].append(len(tokens) / len(flat))
        results["share"]["kept"].append(quota / len(flat))
        picks = {
            "random": np.sort(rng.permutation(len(flat))[:quota]),
            "strided": (np.arange(quota) * len(flat) / quota).astype(int),
            "question only": np.zeros(0, int),
            "all": np.arange(len(flat)),
        }
        for mode in modes:
            runs: dict[str, list[bool]] = {}
            if mode in picks:
                runs[mode] = answers(model, flat[picks[mode]], sample.questions)
            elif mode == "merged":
                runs[mode] = answers(model, tokens, sample.questions)
            else:
                keep = partial(_keep, merged.group, config, rng if mode != "selected" else None)
                for layer in prune_layers:
                    runs[f"{mode} @{layer}"] = answers(model, tokens, sample.questions, layer, keep)
            for name, right in runs.items():
                for question, good in zip(sample.questions, right, strict=True):
                    results[name][question.kind].append(good)
    return results


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """The results as text, one mode a line."""
    lines = ["share: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in results["share"].items())]
    for mode, kinds in results.items():
        if mode != "share":
            whole = np.concatenate([np.asarray(v, float) for v in kinds.values()])
            parts = "  ".join(f"{kind} {np.mean(kinds[kind]):.2f}" for kind in world.KINDS if kind in kinds)
            lines.append(f"{mode:24s} {whole.mean():.4f} of {len(whole)}   {parts}")
    return "\n".join(lines)


def validation(model: LlavaOnevisionForConditionalGeneration, videos: int) -> tuple[list[world.Sample], list[Tensor]]:
    """The first validation videos and their visual tokens [FRAMES, TOKENS, WIDTH]."""
    samples = list(render_range("validation", range(videos)))
    with torch.no_grad():
        return samples, [video_features(model, torch.from_numpy(s.frames)) for s in samples]


def main() -> None:
    """Prints the table for a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export" / "models" / "demo")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    options = parser.parse_args()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    samples, features = validation(model, options.videos)
    print(table(compare(model, samples, features, prune_layers=tuple(options.layers))))


if __name__ == "__main__":
    main()
