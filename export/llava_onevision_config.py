"""What a ``config.json`` of LLaVA-OneVision may say, before any of it is believed.

The keys that change what the model computes are declared here with their bounds; anything else in the file (training
settings, image grids, the names of classes) does not reach transformers at all. What the exporter would get wrong is
refused by name. Field names and defaults: transformers 5, and its older spellings.
"""

from __future__ import annotations

from typing import Any

from prunevid.errors import PruneVidError
from prunevid.export.schema import (
    FLAG,
    NULL,
    Rule,
    Section,
    conform,
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

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
TOWER = "siglip_vision_model"
# Rotary embeddings whose frequencies do not depend on the length of the text.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_ACTIVATIONS = one_of("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu")
_LAYERS = 512
_TOKEN = whole(0, (1 << 22) - 1)
_POSITIONS = whole(1, 1 << 24)
_UNQUANTIZED = only(NULL, "give a checkpoint that is not quantized")
_TOKENS = either(_TOKEN, list_of(_TOKEN, 1, 64), NULL)
_MOST_PATCHES = 1 << 14
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

_TEXT: dict[str, Rule | Section] = {
    "model_type": one_of(*DECODERS),
    "vocab_size": whole(1, 1 << 22),
    "hidden_size": whole(1, 1 << 16),
    "intermediate_size": whole(1, 1 << 20),
    "num_hidden_layers": whole(1, _LAYERS),
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
    "layer_types": optional(list_of(one_of("full_attention", "sliding_attention"), 1, _LAYERS)),
    "tie_word_embeddings": FLAG,
    "eos_token_id": _TOKENS,
    "quantization_config": _UNQUANTIZED,
    "compression_config": _UNQUANTIZED,
    "per_layer_config": only(NULL, "all layers are alike"),
}

_VISION: dict[str, Rule | Section] = {
    "model_type": one_of(TOWER),
    "hidden_size": whole(1, 1 << 14),
    "intermediate_size": whole(1, 1 << 18),
    "num_hidden_layers": whole(1, _LAYERS),
    "num_attention_heads": whole(1, 1 << 10),
    "num_channels": only(exactly(3), "frames are RGB"),
    "image_size": whole(1, 4096),
    "patch_size": whole(1, 4096),
    "hidden_act": _ACTIVATIONS,
    "layer_norm_eps": number(0, 1),
    "vision_use_head": FLAG,
    "quantization_config": _UNQUANTIZED,
    "per_layer_config": only(NULL, "all layers are alike"),
}

_LAYER = whole(-_LAYERS - 1, _LAYERS)
_CONFIG = Section(
    {
        "text_config": Section(_TEXT),
        "vision_config": Section(_VISION),
        "image_token_index": _TOKEN,
        "image_token_id": _TOKEN,
        "video_token_index": _TOKEN,
        "video_token_id": _TOKEN,
        "projector_hidden_act": _ACTIVATIONS,
        "multimodal_projector_bias": FLAG,
        "vision_feature_layer": either(_LAYER, list_of(_LAYER, 1, 32)),
        "vision_feature_select_strategy": only(one_of("full"), "SigLIP has no class token to leave out"),
        "tie_word_embeddings": FLAG,
        "eos_token_id": _TOKENS,
        "quantization_config": _UNQUANTIZED,
        "compression_config": _UNQUANTIZED,
        "per_layer_config": only(NULL, "all layers are alike"),
    },
    required=("text_config", "vision_config"),
)


def check_config(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The part of a ``config.json`` that the model depends on, each value within its bounds.

    Raises PruneVidError that names the file, the key, the value and what is allowed.
    """
    config = conform(data, _CONFIG, where)
    for section, key in (("text_config", "rms_norm_eps"), ("vision_config", "layer_norm_eps")):
        if key in config[section]:  # JSON does not tell 1 from 1.0, and transformers does
            config[section][key] = float(config[section][key])
    _check_text(config["text_config"], where)
    _check_vision(config, where)
    for key in ("image", "video"):
        index, identity = config.get(f"{key}_token_index"), config.get(f"{key}_token_id")
        if index is not None and identity is not None and index != identity:
            raise refuse(where, f"{key}_token_id", identity, f"{index}, as {key}_token_index is")
    return config


def check_built(config: Any, where: str) -> None:
    """What must fit together once transformers has filled in what the file left out.

    Raises PruneVidError that names the file, the key, the value and what is allowed.
    """
    text_config, vision = config.text_config, config.vision_config
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
    if vision.hidden_size % vision.num_attention_heads:
        raise refuse(
            where,
            "vision_config.num_attention_heads",
            vision.num_attention_heads,
            f"a divisor of hidden_size {vision.hidden_size}",
        )
    side = vision.image_size // vision.patch_size
    if not 1 <= side**2 <= _MOST_PATCHES:
        raise refuse(
            where,
            "vision_config.patch_size",
            vision.patch_size,
            f"such that image_size {vision.image_size} has 1 to {_MOST_PATCHES} patches",
        )
    layers = vision.num_hidden_layers
    chosen = config.vision_feature_layer
    for layer in chosen if isinstance(chosen, list) else [chosen]:
        if not 1 <= abs(layer) <= layers:
            allowed = f"1 to {layers}, the tower's layers, or from behind -1 to -{layers}"
            raise refuse(where, "vision_feature_layer", layer, allowed)
    if config.video_token_id >= text_config.vocab_size:
        raise refuse(
            where, "video_token_index", config.video_token_id, f"below text_config.vocab_size {text_config.vocab_size}"
        )


def _check_text(config: dict[str, Any], where: str) -> None:
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


def _check_vision(config: dict[str, Any], where: str) -> None:
    vision = config["vision_config"]
    if "image_size" in vision and "patch_size" in vision and vision["patch_size"] > vision["image_size"]:
        raise refuse(
            where, "vision_config.patch_size", vision["patch_size"], f"no larger than image_size {vision['image_size']}"
        )
