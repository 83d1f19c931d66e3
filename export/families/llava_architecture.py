"""What the LLaVA models have in common: a vision tower, a projector of two linear layers, and a language model.

Here are the top level of their configs, the names of their tensors, and the encoder that is traced; a family adds what
is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.schema import FLAG, Section, conform, either, list_of, refuse, whole
from prunevid.export.families.family import TensorNames
from prunevid.export.families.text_config import (
    ALIKE,
    LAYERS,
    TEXT,
    TOKEN,
    TOKENS,
    UNQUANTIZED,
    check_built_text,
    check_text,
)
from prunevid.export.families.vision_config import ACTIVATIONS, as_layers, check_built_vision, check_vision
from prunevid.export.graphs.vision import VisionSpec, hollow
from prunevid.export.graphs.vision_attention import use_attention
from prunevid.validation import Rule

_LAYER = whole(-LAYERS - 1, LAYERS)


def tensor_names(learned: tuple[str, ...], unused: tuple[str, ...]) -> TensorNames:
    """Names of the tensors.

    Args:
        learned: Learned vectors that stand among visual tokens (`TensorNames.learned_rows`).
        unused: Patterns of tensors that nothing reads, beside those that no LLaVA model reads.
    """
    return TensorNames(
        embeddings="model.language_model.embed_tokens.weight",
        head="lm_head.weight",
        learned_rows=learned,
        decoder="model.language_model.",
        # In checkpoints written before transformers 5, and by it, which writes the older names.
        renames=(
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.(model\.)?", "model.language_model."),
            (r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1"),
            (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
        ),
        # What older releases of transformers stored instead of computing it.
        unused=(
            *unused,
            r"model\.vision_tower\.embeddings\.position_ids",
            r"model\.language_model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        ),
    )


def config_section(vision: Mapping[str, Rule | Section], own: Mapping[str, Rule | Section]) -> Section:
    """What a `config.json` may say.

    Args:
        vision: The rules of its `vision_config`.
        own: Those of keys that the family adds.
    """
    return Section(
        {
            "text_config": Section(TEXT),
            "vision_config": Section(vision),
            "image_token_index": TOKEN,
            "image_token_id": TOKEN,
            "projector_hidden_act": ACTIVATIONS,
            "multimodal_projector_bias": FLAG,
            "vision_feature_layer": either(_LAYER, list_of(_LAYER, 1, 32)),
            "tie_word_embeddings": FLAG,
            "eos_token_id": TOKENS,
            "quantization_config": UNQUANTIZED,
            "compression_config": UNQUANTIZED,
            "per_layer_config": ALIKE,
            **own,
        },
        required=("text_config", "vision_config"),
    )


def build_config(data: dict[str, Any], section: Section, model_type: str, placeholder: str, where: str) -> Any:
    """The transformers config object of a `config.json`'s content, as transformers has it for `model_type`.

    Args:
        data: The content.
        section: What it may say.
        model_type: The name of the config's class in transformers.
        placeholder: `video` or `image`, whose token stands for what is shown.
        where: The file, as messages call it.

    Raises:
        PruneVidError: A value is out of bounds, or asks for what this exporter would get wrong; it names the file, the
            key, the value and what is allowed.
    """
    known = _checked(data, section, where)
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[model_type].from_dict(known)
    except Exception as error:  # its checks raise several classes of their own, which change from release to release
        said = " ".join(str(error).split())
        raise PruneVidError(f"{where} is no valid {model_type} config: {said[:200]}") from error
    check_built_text(config.text_config, where)
    check_built_vision(config.vision_config, config.vision_feature_layer, where)
    token, rows = getattr(config, f"{placeholder}_token_id"), config.text_config.vocab_size
    if token >= rows:
        raise refuse(where, f"{placeholder}_token_index", token, f"below text_config.vocab_size {rows}")
    return config


def _checked(data: dict[str, Any], section: Section, where: str) -> dict[str, Any]:
    """The part of a `config.json` that the model depends on, each value within its bounds."""
    config = conform(data, section, where)
    for part, key in (("text_config", "rms_norm_eps"), ("vision_config", "layer_norm_eps")):
        if key in config[part]:  # JSON does not tell 1 from 1.0, and transformers does
            config[part][key] = float(config[part][key])
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
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def patch_side(config: Any) -> int:
    """Patches along a side of a frame."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side


def encoder_spec(
    config: Any,
    model: Any,
    dtype: ir.DataType,
    attention: str,
    tokens_per_frame: int,
    project: Callable[[Any, Any], Any],
) -> VisionSpec:
    """The encoder to trace, of the transformers model's own parts.

    Args:
        config: The model's config.
        model: The transformers model on the meta device; its tower is told how to attend.
        dtype: Type of the parameters, FLOAT or FLOAT16.
        attention: transformers' name for how the tower attends.
        tokens_per_frame: Tokens that `project` leaves of a frame.
        project: From the encoder module and the chosen patches [F, patches, channels] to features
            [F, tokens_per_frame, C], by the module's `multi_modal_projector`.
    """
    use_attention(model.model.vision_tower, attention)
    return VisionSpec(
        encoder=_encoder(config, model, dtype, project),
        prefix="model.",
        image_size=config.vision_config.image_size,
        tokens_per_frame=tokens_per_frame,
        channels=config.text_config.hidden_size,
    )


def _encoder(config: Any, model: Any, dtype: ir.DataType, project: Callable[[Any, Any], Any]) -> Any:
    import torch

    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
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
            return project(self, patches)

    encoder = hollow(Encoder(), torch_dtype)
    for module in encoder.modules():
        # The only buffer without a value in a checkpoint: patch numbers, which the meta device did not fill in.
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.register_buffer("position_ids", torch.arange(module.position_ids.shape[-1])[None], persistent=False)
    return encoder
