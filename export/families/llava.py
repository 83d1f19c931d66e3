"""LLaVA-1.5. Tested with transformers 5.

A model of images: a video is a row of them, each frame an `<image>` of its own in the prompt. Tower: CLIP, all
patches of the chosen hidden state, without its class token; projector: two linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from prunevid.bundle.sections.layout import TokenLayout
from prunevid.cost import VisionShape
from prunevid.errors import PruneVidError
from prunevid.export.families import clip_config as clip
from prunevid.export.families import llava_architecture as architecture
from prunevid.export.families.family import ProcessorFormat
from prunevid.export.families.text_config import decoder_of, is_tied
from prunevid.export.families.vicuna import vicuna_chat
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.export.graphs.vision import VisionSpec

FAMILY = "llava"

NAMES = architecture.tensor_names((), clip.UNUSED)

CHAT = vicuna_chat("image", {"<image>": 32000, "<pad>": 32001})

PROCESSOR = ProcessorFormat(
    called="LLaVA-1.5",
    section="image_processor",
    files=("preprocessor_config.json",),
    classes=("CLIPImageProcessor", "LlavaImageProcessor"),
    size={"shortest_edge": 224},
    crop=224,
    mean=clip.MEAN,
    std=clip.STD,
    refused=("do_pad",),
)

_CONFIG = architecture.config_section(clip.VISION, {"vision_feature_select_strategy": clip.SELECT})

# PLLaVA calls itself llava, pools the frames of a clip together, and keeps its language model's LoRA apart.
_OF_PLLAVA = ("pooling_method", "pooling_shape", "use_pooling", "frame_shape", "num_frames")


def recognizes(data: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family, or says that it is."""
    return data.get("model_type") == FAMILY


def parse_config(data: dict[str, Any], where: str) -> Any:
    """The transformers config of a `config.json`'s content; see `llava_architecture.build_config`."""
    for key in _OF_PLLAVA:
        if data.get(key) is not None:
            raise PruneVidError(
                f"{where} is PLLaVA's: it has {key}, by which frames are pooled together, and this exporter knows "
                "LLaVA-1.5, which pools nothing"
            )
    return architecture.build_config(data, _CONFIG, FAMILY, "image", where)


def empty_model(config: Any) -> Any:
    """The transformers model on the meta device: all names and shapes, no memory."""
    return architecture.empty_model(config)


def placeholder(config: Any) -> int:
    """The number of the token `<image>`, which stands for one frame."""
    return int(config.image_token_id)


def vision_spec(config: Any, model: Any, dtype: ir.DataType, attention: str) -> VisionSpec:
    """Tower and projector."""

    def project(encoder: Any, patches: Any) -> Any:
        return encoder.multi_modal_projector(patches)

    tokens = token_layout(config).tokens_per_frame
    return architecture.encoder_spec(config, model, dtype, attention, tokens, project)


def token_layout(config: Any) -> TokenLayout:
    """A square of tokens per frame, with what the chat template writes between two images between two frames."""
    side = architecture.patch_side(config)
    return TokenLayout(side**2, (side, side), placeholder="frame")


def vision_shape(config: Any) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the one whose output is used."""
    return clip.clip_shape(config)


def decoder_spec(config: Any, tied: bool | None = None) -> DecoderSpec:
    """The language model. tied: whether the output matrix is the embedding table; by default as the config has it."""
    return decoder_of(config, NAMES, is_tied(config) if tied is None else tied)
