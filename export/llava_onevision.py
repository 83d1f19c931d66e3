"""LLaVA-OneVision: what the exporter must know of this family. Tested with transformers 5.

Tower: SigLIP, all patches of the chosen hidden state; projector: two linear layers; pooling: bilinear, half the side,
rounded up. The video's tokens are followed by one learnt image_newline vector, which belongs to no frame.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import onnx_ir as ir

from prunevid.cost import DecoderShape, VisionShape
from prunevid.errors import PruneVidError
from prunevid.export.checkpoint import SafetensorsWeights
from prunevid.export.decoder import DecoderSpec
from prunevid.export.llava_onevision_config import check_built, check_config
from prunevid.export.vision import VisionSpec, hollow
from prunevid.export.vision_attention import use_attention

FAMILY = "llava_onevision"
IMAGE_NEWLINE = "model.image_newline"
EMBEDDINGS = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Names in checkpoints written before transformers 5, and by it (which writes the older names), to today's modules.
RENAMES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1"),
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
)


# Tensors that checkpoints hold and no output that the model reads depends on: the norm and the pooling head behind the
# tower's last layer, and what older releases of transformers stored instead of computing it.
UNUSED = (
    r"model\.vision_tower\.(post_layernorm|head)\..+",
    r"model\.vision_tower\.embeddings\.position_ids",
    r"model\.language_model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)


def parse_config(data: dict[str, Any], where: str) -> Any:
    """The transformers config object of a ``config.json``'s content.

    Raises PruneVidError for another family, for values out of bounds, and for variants that this exporter would get
    wrong.
    """
    family = data.get("model_type")
    if family != FAMILY:
        raise PruneVidError(f"{where} is a {repr(family)[:80]} model: this exporter knows {FAMILY!r}")
    known = check_config(data, where)
    from transformers import LlavaOnevisionConfig

    try:
        config = LlavaOnevisionConfig.from_dict(known)
    except Exception as error:  # its checks raise several classes of their own, which change from release to release
        said = " ".join(str(error).split())
        raise PruneVidError(f"{where} is no valid {FAMILY} config: {said[:200]}") from error
    check_built(config, where)
    text = config.text_config
    # Configs that have a window but do not use it lose it when they are read; Mistral uses it whenever it has one.
    if getattr(text, "sliding_window", None) is not None:
        raise PruneVidError(f"{where} uses sliding-window attention, which a pruned KV cache cannot follow")
    for biased in ("attention_bias", "mlp_bias"):
        if getattr(text, biased, False):
            raise PruneVidError(f"{where} has {biased} in its language model, which this exporter does not write")
    if text.hidden_act != "silu":
        raise PruneVidError(f"{where} has the activation {text.hidden_act!r} in its language model: known is 'silu'")
    return config


def empty_model(config: Any) -> Any:
    """The transformers model on the meta device: all names and shapes, no memory."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(config)


def tensor_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this model holds, tied ones once, and those that nothing uses not."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return {name: shape for name, shape in shapes.items() if not any(re.fullmatch(unused, name) for unused in UNUSED)}


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
            layers = config.vision_feature_layer
            chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
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
        prefix="model.language_model.",
        head=EMBEDDINGS if (is_tied(config) if tied is None else tied) else HEAD,
    )


def is_tied(config: Any) -> bool:
    """Whether the config says that the output matrix is the embedding table; ``head_is_stored`` looks at the file."""
    return bool(config.tie_word_embeddings or config.text_config.tie_word_embeddings)


def head_is_stored(config: Any, weights: SafetensorsWeights) -> bool:
    """Whether a checkpoint has an output matrix of its own, whatever its config says.

    As transformers 5 does it: a matrix that is there and differs from the embedding table is not tied to it.
    """
    return not is_tied(config) or (weights.has(HEAD) and not weights.are_equal(HEAD, EMBEDDINGS))


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


def vision_shape(config: Any) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the one whose output is used."""
    vision = config.vision_config
    layers = config.vision_feature_layer
    last = max(
        _layers_run(layer, vision.num_hidden_layers) for layer in ([layers] if isinstance(layers, int) else layers)
    )
    return VisionShape(
        layers=last,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        patches=(vision.image_size // vision.patch_size) ** 2,
        patch_values=3 * vision.patch_size**2,
    )


def _layers_run(hidden_state: int, layers: int) -> int:
    """Layers behind hidden_states[i], where state 0 is the embedding and negative numbers count from the end."""
    return hidden_state if hidden_state >= 0 else layers + 1 + hidden_state
