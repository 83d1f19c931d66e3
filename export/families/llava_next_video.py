"""LLaVA-NeXT-Video. Tested with transformers 5.

Tower: CLIP, the patches of the chosen hidden state without its class token; pooling: the average of 2 x 2 patches,
before the projector of two linear layers. Nothing stands between or behind frames: image_newline is for images alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from prunevid.bundle.sections.layout import TokenLayout
from prunevid.cost import VisionShape
from prunevid.export.checkpoint.schema import exactly, one_of, only
from prunevid.export.families import clip_config as clip
from prunevid.export.families import llava_architecture as architecture
from prunevid.export.families.family import ProcessorFormat
from prunevid.export.families.text_config import TOKEN, decoder_of, is_tied
from prunevid.export.families.vicuna import vicuna_chat
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.export.graphs.vision import VisionSpec

FAMILY = "llava_next_video"

NAMES = architecture.tensor_names((), (*clip.UNUSED, r"model\.image_newline"))

CHAT = vicuna_chat("video", {"<video>": 32000, "<image>": 32001})

# LlavaNextVideoVideoProcessor, or the files of its image processor, and of older ones that it was saved from.
PROCESSOR = ProcessorFormat(
    called="LLaVA-NeXT-Video",
    section="video_processor",
    files=("video_preprocessor_config.json", "preprocessor_config.json"),
    classes=("LlavaNext", "CLIP"),
    size={"shortest_edge": 224},
    crop=224,
    mean=clip.MEAN,
    std=clip.STD,
)

_STRIDE = 2
_CONFIG = architecture.config_section(
    clip.VISION,
    {
        "video_token_index": TOKEN,
        "video_token_id": TOKEN,
        "vision_feature_select_strategy": clip.SELECT,
        "spatial_pool_mode": only(one_of("average"), "other ways to pool have weights, or were never published"),
        "spatial_pool_stride": only(exactly(_STRIDE), "processors count a quarter of a frame's patches"),
    },
)


def recognizes(data: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family.

    The first revisions call it llava_next, which is LLaVA-NeXT's name, too: only this one has a token for videos and a
    way to pool them.
    """
    of_video = {"video_token_index", "spatial_pool_mode"} <= data.keys()
    return data.get("model_type") == FAMILY or (data.get("model_type") == "llava_next" and of_video)


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
    """Tower, transformers' own pooling, and projector behind it."""
    pool = model.model.vision_resampler

    def project(encoder: Any, patches: Any) -> Any:
        return encoder.multi_modal_projector(pool(patches))

    return architecture.encoder_spec(config, model, dtype, attention, token_layout(config).tokens_per_frame, project)


def token_layout(config: Any) -> TokenLayout:
    """A square of tokens per frame, and nothing else; patches that fill no window are not shown."""
    side = architecture.patch_side(config) // _STRIDE
    return TokenLayout(side**2, (side, side))


def vision_shape(config: Any) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the one whose output is used."""
    return clip.clip_shape(config, projected=token_layout(config).tokens_per_frame)


def decoder_spec(config: Any, tied: bool | None = None) -> DecoderSpec:
    """The language model. tied: whether the output matrix is the embedding table; by default as the config has it."""
    return decoder_of(config, NAMES, is_tied(config) if tied is None else tied)
