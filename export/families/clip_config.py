"""The section `vision_config` of a transformers config whose tower is CLIP: what it may say, and its tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prunevid.cost import VisionShape
from prunevid.export.checkpoint.schema import Section, one_of, only
from prunevid.export.families.vision_config import TOWER, tower_shape
from prunevid.validation import Rule

VISION: dict[str, Rule | Section] = {"model_type": one_of("clip_vision_model"), **TOWER}
"""What the section may say, by key."""

SELECT = only(one_of("default"), "the class token stands for no place in a frame")
"""What `vision_feature_select_strategy` may be: all patches, without the class token before them."""

UNUSED = (r"model\.vision_tower\.post_layernorm\..+",)
"""The norm behind the tower's last layer."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What the processors of CLIP towers normalize with."""


def clip_shape(config: Any, projected: int | None = None) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the one whose output is used.

    Args:
        config: The model's config.
        projected: Rows of a frame that the projector takes; None for all patches.
    """
    shape = tower_shape(config.vision_config, config.vision_feature_layer)
    return replace(shape, class_token=True, projected=projected)
