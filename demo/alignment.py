"""A start for the language model: words lie where the tower puts what they name.

A model from random weights spends most of its training finding out that "red" has to do with red tokens. Here a
word of the world begins as the mean direction of the visual tokens it describes, both on the way in and on the
way out, and the first layers begin with attention to what is alike (keys equal to queries) that copies what it
finds (the output projection is the transpose of the values'). All of it is free to change in training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from demo import world
from demo.model import IDS
from demo.tower import encode_range, token_labels

ALIKE_LAYERS = 3  # layers that begin with attention to what is alike
_ALIKE_STD, _COPY_STD = 0.3, 0.04
_TEXT_STD, _WORD_NORM, _OUTPUT_NORM = 0.2, 0.8, 0.3


def word_directions(model: LlavaOnevisionForConditionalGeneration, videos: int) -> dict[str, Tensor]:
    """Mean difference from the average thing, float32 [WIDTH], of the visual tokens that a word describes."""
    tokens, labels = [], []
    for sample, features in encode_range(model, "train", range(videos), 1):
        found = token_labels(sample)
        mine = found["owner"] >= 0
        tokens.append(torch.from_numpy(features[mine]).float())
        labels.append({name: torch.from_numpy(found[name][mine]) for name in ("shape", "colour", "place")})
    things = torch.cat(tokens)
    shape, colour, place = (torch.cat([item[name] for item in labels]) for name in ("shape", "colour", "place"))
    sides = (place * 3).long().clamp(0, 2)
    chosen = {name: colour == index + 1 for index, name in enumerate(world.COLOURS)}
    for index, (name, plural) in enumerate(zip(world.SHAPES, world.PLURALS, strict=True)):
        chosen[name] = chosen[plural] = shape == index + 1
    chosen |= {"left": sides[:, 0] == 0, "right": sides[:, 0] == 2, "top": sides[:, 1] == 0}
    chosen |= {"bottom": sides[:, 1] == 2, "middle": (sides == 1).all(1)}
    return {word: things[which].mean(0) - things.mean(0) for word, which in chosen.items()}


@torch.no_grad()
def align(model: LlavaOnevisionForConditionalGeneration, videos: int = 80) -> None:
    """Sets the language model's weights as the module says."""
    language = model.model.language_model
    directions = word_directions(model, videos)
    units = {word: direction / direction.norm() for word, direction in directions.items()}
    _, strength, basis = torch.linalg.svd(torch.stack(list(units.values())), full_matrices=False)
    basis = basis[strength > 0.15 * strength.max()]
    within = basis.T @ basis
    embedding = language.embed_tokens.weight
    embedding -= embedding @ within
    embedding *= _TEXT_STD / embedding.std()
    for word, unit in units.items():
        embedding[IDS[word]] += unit * _WORD_NORM
        model.lm_head.weight[IDS[word]] += unit * _OUTPUT_NORM
    for layer in language.layers[:ALIKE_LAYERS]:
        attention = layer.self_attn
        query, key, value = (getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj"))
        group = len(query) // len(key)
        # Only what words name is compared. A word holds less of it than a token that it names, so it does not
        # find itself first.
        key.copy_(key * (_ALIKE_STD / key.std()) @ within)
        heads = key.view(-1, attention.head_dim, key.shape[1])
        query.copy_(heads.repeat_interleave(group, 0).reshape(query.shape))
        value *= _COPY_STD / value.std()
        back = value.view(-1, attention.head_dim, value.shape[1]).repeat_interleave(group, 0)
        attention.o_proj.weight.copy_(back.reshape(-1, value.shape[1]).T)
