"""LLaVA-OneVision. Tested with transformers 5.

Tower: SigLIP, all patches of the chosen hidden state; projector: two linear layers; pooling: bilinear, half the side,
rounded up. The video's tokens are followed by one learnt image_newline vector, which belongs to no frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from prunevid.cost import VisionShape
from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.schema import FLAG, Section, conform, either, list_of, one_of, only, refuse, whole
from prunevid.export.families.family import ChatFormat, TensorNames
from prunevid.export.families.siglip_config import (
    ACTIVATIONS,
    VISION,
    as_layers,
    check_built_vision,
    check_vision,
    tower_shape,
)
from prunevid.export.families.text_config import (
    ALIKE,
    LAYERS,
    TEXT,
    TOKEN,
    TOKENS,
    UNQUANTIZED,
    check_built_text,
    check_text,
    decoder_of,
    is_tied,
)
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.export.graphs.vision import VisionSpec, hollow
from prunevid.export.graphs.vision_attention import use_attention

FAMILY = "llava_onevision"

NAMES = TensorNames(
    embeddings="model.language_model.embed_tokens.weight",
    head="lm_head.weight",
    behind_video="model.image_newline",
    decoder="model.language_model.",
    # In checkpoints written before transformers 5, and by it, which writes the older names.
    renames=(
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.(model\.)?", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1"),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    ),
    # The norm and the pooling head behind the tower's last layer, and what older releases of transformers stored
    # instead of computing it.
    unused=(
        r"model\.vision_tower\.(post_layernorm|head)\..+",
        r"model\.vision_tower\.embeddings\.position_ids",
        r"model\.language_model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    ),
)

# Qwen2's, with the video on the first line.
CHAT = ChatFormat(
    template="""\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }} {% for content in message['content'] if content['type'] == 'video' %}<video>
{% endfor %}{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
""",
    special_tokens={
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<image>": 151646,
        "<video>": 151647,
    },
    video_token="<video>",
    end="<|im_end|>",
)

_LAYER = whole(-LAYERS - 1, LAYERS)
_CONFIG = Section(
    {
        "text_config": Section(TEXT),
        "vision_config": Section(VISION),
        "image_token_index": TOKEN,
        "image_token_id": TOKEN,
        "video_token_index": TOKEN,
        "video_token_id": TOKEN,
        "projector_hidden_act": ACTIVATIONS,
        "multimodal_projector_bias": FLAG,
        "vision_feature_layer": either(_LAYER, list_of(_LAYER, 1, 32)),
        "vision_feature_select_strategy": only(one_of("full"), "SigLIP has no class token to leave out"),
        "tie_word_embeddings": FLAG,
        "eos_token_id": TOKENS,
        "quantization_config": UNQUANTIZED,
        "compression_config": UNQUANTIZED,
        "per_layer_config": ALIKE,
    },
    required=("text_config", "vision_config"),
)


def recognizes(data: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of this family."""
    return data.get("model_type") == FAMILY


def parse_config(data: dict[str, Any], where: str) -> Any:
    """The transformers config object of a ``config.json``'s content.

    Raises PruneVidError for values out of bounds, and for variants that this exporter would get wrong.
    """
    known = _checked(data, where)
    from transformers import LlavaOnevisionConfig

    try:
        config = LlavaOnevisionConfig.from_dict(known)
    except Exception as error:  # its checks raise several classes of their own, which change from release to release
        said = " ".join(str(error).split())
        raise PruneVidError(f"{where} is no valid {FAMILY} config: {said[:200]}") from error
    text, chosen = config.text_config, config.vision_feature_layer
    check_built_text(text, where)
    check_built_vision(config.vision_config, chosen, where)
    if config.video_token_id >= text.vocab_size:
        raise refuse(
            where, "video_token_index", config.video_token_id, f"below text_config.vocab_size {text.vocab_size}"
        )
    return config


def _checked(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The part of a ``config.json`` that the model depends on, each value within its bounds.

    Raises PruneVidError that names the file, the key, the value and what is allowed.
    """
    config = conform(data, _CONFIG, where)
    for section, key in (("text_config", "rms_norm_eps"), ("vision_config", "layer_norm_eps")):
        if key in config[section]:  # JSON does not tell 1 from 1.0, and transformers does
            config[section][key] = float(config[section][key])
    check_text(config["text_config"], where)
    check_vision(config["vision_config"], where)
    for key in ("image", "video"):
        index, identity = config.get(f"{key}_token_index"), config.get(f"{key}_token_id")
        if index is not None and identity is not None and index != identity:
            raise refuse(where, f"{key}_token_id", identity, f"{index}, as {key}_token_index is")
    return config


def empty_model(config: Any) -> Any:
    """The transformers model on the meta device: all names and shapes, no memory."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(config)


def vision_spec(config: Any, model: Any, dtype: ir.DataType, attention: str) -> VisionSpec:
    """The encoder to trace: tower, projector and pooling of the transformers model itself.

    attention: transformers' name for how the tower attends.
    """
    use_attention(model.model.vision_tower, attention)
    side = config.vision_config.image_size // config.vision_config.patch_size
    return VisionSpec(
        encoder=_encoder(config, model, dtype),
        prefix="model.",
        image_size=config.vision_config.image_size,
        tokens_per_frame=math.ceil(side / 2) ** 2,
        channels=config.text_config.hidden_size,
    )


def _encoder(config: Any, model: Any, dtype: ir.DataType) -> Any:
    import torch

    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    pool = type(model.model).apply_pooling
    torch_dtype = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}[dtype]

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.vision_tower = tower
            self.multi_modal_projector = projector

        def forward(self, pixel_values: Any) -> Any:
            states = self.vision_tower(pixel_values.to(torch_dtype), output_hidden_states=True).hidden_states
            chosen = [states[layer] for layer in as_layers(config.vision_feature_layer)]
            patches = torch.cat(chosen, dim=-1)
            if config.vision_feature_select_strategy == "default":
                patches = patches[:, 1:]
            return pool(self, self.multi_modal_projector(patches))

    encoder = hollow(Encoder(), torch_dtype)
    for module in encoder.modules():
        # The only buffer without a value in a checkpoint: patch numbers, which the meta device did not fill in.
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.register_buffer("position_ids", torch.arange(module.position_ids.shape[-1])[None], persistent=False)
    return encoder


def decoder_spec(config: Any, tied: bool | None = None) -> DecoderSpec:
    """The language model as the decoder writer needs it.

    tied: whether the output matrix is the embedding table; by default as the config has it.
    """
    return decoder_of(config, NAMES, is_tied(config) if tied is None else tied)


def vision_shape(config: Any) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the one whose output is used."""
    return tower_shape(config.vision_config, config.vision_feature_layer)
