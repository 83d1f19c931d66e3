"""The section `vision_config` of a transformers config: what towers over patches have in common, and their shape."""

from __future__ import annotations

from typing import Any

from prunevid.cost import VisionShape
from prunevid.export.checkpoint.schema import Section, exactly, number, one_of, only, refuse, whole
from prunevid.export.families.text_config import ALIKE, LAYERS, UNQUANTIZED
from prunevid.validation import Rule

ACTIVATIONS = one_of("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu")
_MOST_PATCHES = 1 << 14

TOWER: dict[str, Rule | Section] = {
    "hidden_size": whole(1, 1 << 14),
    "intermediate_size": whole(1, 1 << 18),
    "num_hidden_layers": whole(1, LAYERS),
    "num_attention_heads": whole(1, 1 << 10),
    "num_channels": only(exactly(3), "frames are RGB"),
    "image_size": whole(1, 4096),
    "patch_size": whole(1, 4096),
    "hidden_act": ACTIVATIONS,
    "layer_norm_eps": number(0, 1),
    "quantization_config": UNQUANTIZED,
    "per_layer_config": ALIKE,
}
"""What the section may say, by key, whichever the tower."""


def check_vision(vision: dict[str, Any], where: str) -> None:
    """What must fit together in the section. Raises PruneVidError that names the file, the key and what is allowed."""
    if "image_size" in vision and "patch_size" in vision and vision["patch_size"] > vision["image_size"]:
        raise refuse(
            where, "vision_config.patch_size", vision["patch_size"], f"no larger than image_size {vision['image_size']}"
        )


def check_built_vision(vision: Any, chosen: int | list[int], where: str) -> None:
    """What must fit together once transformers has filled in what the file left out.

    chosen: the hidden states that are used (vision_feature_layer). Raises PruneVidError that names the file, the key,
    the value and what is allowed.
    """
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
    for layer in as_layers(chosen):
        if not 1 <= abs(layer) <= layers:
            allowed = f"1 to {layers}, the tower's layers, or from behind -1 to -{layers}"
            raise refuse(where, "vision_feature_layer", layer, allowed)


def as_layers(chosen: int | list[int]) -> list[int]:
    """The hidden states that are used, of which a config may name one or several."""
    return [chosen] if isinstance(chosen, int) else chosen


def tower_shape(vision: Any, chosen: int | list[int]) -> VisionShape:
    """Shape of the vision tower, counting the layers up to the last whose output is used."""
    last = max(_layers_run(layer, vision.num_hidden_layers) for layer in as_layers(chosen))
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
