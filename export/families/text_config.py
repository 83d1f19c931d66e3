"""The section `text_config` of a transformers config: what it may say, and the decoder that it makes.

The keys that change what the model computes are declared here with their bounds; anything else in the file (training
settings, the names of classes) does not reach transformers at all. What the exporter would get wrong is refused by
name. Field names and defaults: transformers 5, and its older spellings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunevid.cost import DecoderShape
from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.schema import (
    FLAG,
    NULL,
    Section,
    either,
    exactly,
    list_of,
    number,
    one_of,
    only,
    optional,
    positive,
    refuse,
    text,
    whole,
)
from prunevid.export.checkpoint.weights import SafetensorsWeights
from prunevid.export.families.family import TensorNames
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.validation import Rule

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
# Rotary embeddings whose frequencies do not depend on the length of the text.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
LAYERS = 512
"""Most layers of a model."""
TOKEN = whole(0, (1 << 22) - 1)
"""A token's number."""
TOKENS = either(TOKEN, list_of(TOKEN, 1, 64), NULL)
UNQUANTIZED = only(NULL, "give a checkpoint that is not quantized")
ALIKE = only(NULL, "all layers are alike")
"""Of the key per_layer_config."""

_POSITIONS = whole(1, 1 << 24)
_EVEN = range(2, 1025, 2)  # rotary embeddings turn pairs of channels

_WHOLE_HEADS = only(either(exactly(1), NULL), "heads are rotated whole")
_ROPE_TYPE = only(one_of(*ROPE_TYPES), "frequencies that do not depend on the length of the text")
_ROPE = Section(
    {
        "rope_type": _ROPE_TYPE,
        "type": _ROPE_TYPE,
        "rope_theta": positive(1e12),
        "factor": positive(1e6),
        "original_max_position_embeddings": _POSITIONS,
        "low_freq_factor": positive(1e6),
        "high_freq_factor": positive(1e6),
        "attention_factor": optional(positive(1e6)),
        "beta_fast": optional(positive(1e6)),
        "beta_slow": optional(positive(1e6)),
        "mscale": optional(number(0, 1e6)),
        "mscale_all_dim": optional(number(0, 1e6)),
        "truncate": optional(FLAG),
        "partial_rotary_factor": _WHOLE_HEADS,
    },
    closed=True,
    null=True,
)

TEXT: dict[str, Rule | Section] = {
    "model_type": one_of(*DECODERS),
    "vocab_size": whole(1, 1 << 22),
    "hidden_size": whole(1, 1 << 16),
    "intermediate_size": whole(1, 1 << 20),
    "num_hidden_layers": whole(1, LAYERS),
    "num_attention_heads": whole(1, 1 << 10),
    "num_key_value_heads": optional(whole(1, 1 << 10)),
    "head_dim": optional(Rule("an even number from 2 to 1024", lambda value: value in _EVEN and type(value) is int)),
    "hidden_act": text(40),
    "max_position_embeddings": _POSITIONS,
    "rms_norm_eps": number(0, 1),
    "rope_theta": positive(1e12),
    "rope_scaling": _ROPE,
    "rope_parameters": _ROPE,
    "partial_rotary_factor": _WHOLE_HEADS,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "use_sliding_window": FLAG,
    "sliding_window": optional(whole(1, 1 << 24)),
    "max_window_layers": whole(0, 1 << 16),
    "layer_types": optional(list_of(one_of("full_attention", "sliding_attention"), 1, LAYERS)),
    "tie_word_embeddings": FLAG,
    "eos_token_id": TOKENS,
    "quantization_config": UNQUANTIZED,
    "compression_config": UNQUANTIZED,
    "per_layer_config": ALIKE,
}
"""What the section may say, by key."""


def check_text(config: dict[str, Any], where: str) -> None:
    """What must fit together in the section. Raises PruneVidError that names the file, the key and what is allowed."""
    layers, types = config.get("num_hidden_layers"), config.get("layer_types")
    if types is not None and layers is not None and len(types) != layers:
        raise refuse(where, "text_config.layer_types", types, f"a list of num_hidden_layers {layers}")
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name) or {}
        kind, old = rope.get("rope_type"), rope.get("type")
        if kind is not None and old is not None and kind != old:
            raise refuse(where, f"text_config.{name}.type", old, f"{kind!r}, as rope_type is")
        needed = {
            "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
            "yarn": ("factor",),
        }.get(kind or old or "default", ())
        for key in needed:
            if key not in rope:
                raise PruneVidError(f"{where}: text_config.{name}.{key} is missing: {kind or old!r} needs it")
        if needed[1:] and rope["high_freq_factor"] <= rope["low_freq_factor"]:
            raise refuse(
                where,
                f"text_config.{name}.high_freq_factor",
                rope["high_freq_factor"],
                f"above low_freq_factor {rope['low_freq_factor']}",
            )


def check_built_text(text_config: Any, where: str) -> None:
    """What must fit together once transformers has filled in what the file left out, and what this exporter can write.

    Raises PruneVidError that names the file, the key, the value and what is allowed.
    """
    heads, kv_heads = text_config.num_attention_heads, text_config.num_key_value_heads
    head_dim = getattr(text_config, "head_dim", None)
    if head_dim is None:
        if text_config.hidden_size % heads:
            raise refuse(
                where, "text_config.num_attention_heads", heads, f"a divisor of hidden_size {text_config.hidden_size}"
            )
        head_dim = text_config.hidden_size // heads
    if head_dim % 2:
        raise refuse(where, "text_config.head_dim", head_dim, "even: rotary embeddings turn pairs of channels")
    if heads % kv_heads:
        raise refuse(where, "text_config.num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    # Configs that have a window but do not use it lose it when they are read; Mistral uses it whenever it has one.
    if getattr(text_config, "sliding_window", None) is not None:
        raise PruneVidError(f"{where} uses sliding-window attention, which a pruned KV cache cannot follow")
    for biased in ("attention_bias", "mlp_bias"):
        if getattr(text_config, biased, False):
            raise PruneVidError(f"{where} has {biased} in its language model, which this exporter does not write")
    if text_config.hidden_act != "silu":
        raise PruneVidError(
            f"{where} has the activation {text_config.hidden_act!r} in its language model: known is 'silu'"
        )


def decoder_of(config: Any, names: TensorNames, tied: bool) -> DecoderSpec:
    """The language model as the decoder writer needs it. tied: whether the output matrix is the embedding table.

    Raises PruneVidError for rotary embeddings that cannot be exported.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = config.text_config
    rope_type = (text.rope_parameters or {}).get("rope_type", "default")
    if rope_type == "default":
        head_dim = _head_dim(text)
        exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        frequencies, scale = (1.0 / text.rope_parameters["rope_theta"] ** exponents).astype(np.float32), 1.0
    elif rope_type in ("linear", "llama3", "yarn"):
        tensor, scale = ROPE_INIT_FUNCTIONS[rope_type](text, "cpu")
        frequencies = tensor.numpy().astype(np.float32)
    else:
        raise PruneVidError(f"the rotary embedding {rope_type!r} depends on the length of the text: not exportable")
    if not (np.isfinite(frequencies).all() and (frequencies > 0).all() and np.isfinite(scale)):
        raise PruneVidError(f"the parameters of the rotary embedding {rope_type!r} give no frequencies above 0")
    return DecoderSpec(
        shape=decoder_shape(config),
        norm_epsilon=float(text.rms_norm_eps),
        inv_freq=frequencies,
        rope_scale=float(scale),
        projection_bias=text.model_type == "qwen2",
        query_key_norm=text.model_type == "qwen3",
        prefix=names.decoder,
        head=names.embeddings if tied else names.head,
    )


def is_tied(config: Any) -> bool:
    """Whether the config says that the output matrix is the embedding table; `head_is_stored` looks at the file."""
    return bool(config.tie_word_embeddings or config.text_config.tie_word_embeddings)


def head_is_stored(config: Any, weights: SafetensorsWeights, names: TensorNames) -> bool:
    """Whether a checkpoint has an output matrix of its own, whatever its config says.

    As transformers 5 does it: a matrix that is there and differs from the embedding table is not tied to it.
    """
    return not is_tied(config) or (weights.has(names.head) and not weights.are_equal(names.head, names.embeddings))


def _head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def decoder_shape(config: Any) -> DecoderShape:
    """Shape of the language model."""
    text = config.text_config
    return DecoderShape(
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=_head_dim(text),
        vocab_size=text.vocab_size,
    )
