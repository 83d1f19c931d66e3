"""LLaVA-OneVision. Tested with transformers 5.

Tower: SigLIP, all patches of the chosen hidden state; projector: two linear layers; pooling: bilinear, half the side,
rounded up. The video's tokens are followed by one learnt image_newline vector, which belongs to no frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.cost import VisionShape
from prunevid.export.checkpoint.schema import one_of, only
from prunevid.export.families import llava_architecture as architecture
from prunevid.export.families import siglip_config as siglip
from prunevid.export.families.family import ChatFormat, ProcessorFormat
from prunevid.export.families.text_config import TOKEN, decoder_of, is_tied
from prunevid.export.families.vision_config import tower_shape
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.export.graphs.vision import VisionSpec

FAMILY = "llava_onevision"

NAMES = architecture.tensor_names(("model.image_newline",), siglip.UNUSED)

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

# LlavaOnevisionVideoProcessor, or the files of its image processor, and of older ones that it was saved from.
PROCESSOR = ProcessorFormat(
    called="LLaVA-OneVision",
    section="video_processor",
    files=("video_preprocessor_config.json", "preprocessor_config.json"),
    classes=("LlavaOnevision", "Siglip", "CLIP"),
    size={"height": 384, "width": 384},
    crop=None,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

_CONFIG = architecture.config_section(
    siglip.VISION,
    {
        "video_token_index": TOKEN,
        "video_token_id": TOKEN,
        "vision_feature_select_strategy": only(one_of("full"), "SigLIP has no class token to leave out"),
    },
)


def recognizes(data: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family."""
    return data.get("model_type") == FAMILY


def parse_config(data: dict[str, Any], where: str) -> Any:
    """The transformers config of a `config.json`'s content; see `llava_architecture.build_config`."""
    return architecture.build_config(data, _CONFIG, FAMILY, "video", where)


def empty_model(config: Any) -> Any:
    """The transformers model on the meta device: all names and shapes, no memory."""
    return architecture.empty_model(config)


def placeholder(config: Any) -> int:
    """The number of the token `<video>`, which stands for the whole video."""
    return int(config.video_token_id)


def vision_spec(config: Any, model: Any, dtype: ir.DataType, attention: str) -> VisionSpec:
    """Tower, projector and transformers' own pooling behind it."""
    pool = type(model.model).apply_pooling

    def project(encoder: Any, patches: Any) -> Any:
        return pool(encoder, encoder.multi_modal_projector(patches))

    return architecture.encoder_spec(config, model, dtype, attention, token_layout(config).tokens_per_frame, project)


def token_layout(config: Any) -> TokenLayout:
    """A square of tokens per frame, and image_newline behind the video."""
    side = math.ceil(architecture.patch_side(config) / 2)
    return TokenLayout(side**2, (side, side), after_video=(Piece(row=config.text_config.vocab_size),))


def vision_shape(config: Any) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the one whose output is used."""
    return tower_shape(config.vision_config, config.vision_feature_layer)


def decoder_spec(config: Any, tied: bool | None = None) -> DecoderSpec:
    """The language model. tied: whether the output matrix is the embedding table; by default as the config has it."""
    return decoder_of(config, NAMES, is_tied(config) if tied is None else tied)
