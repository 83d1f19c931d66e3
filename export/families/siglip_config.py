"""The section `vision_config` of a transformers config whose tower is SigLIP: what it may say, and its tensors."""

from __future__ import annotations

from prunevid.export.checkpoint.schema import FLAG, Section, one_of
from prunevid.export.families.vision_config import TOWER
from prunevid.validation import Rule

VISION: dict[str, Rule | Section] = {
    "model_type": one_of("siglip_vision_model"),
    **TOWER,
    "vision_use_head": FLAG,
}
"""What the section may say, by key."""

UNUSED = (r"model\.vision_tower\.(post_layernorm|head)\..+",)
"""The norm and the pooling head behind the tower's last layer."""
