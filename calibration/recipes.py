"""The recipes: what each does to which graph, and what it runs on. Nothing heavy is imported: help lists them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A way to quantize a bundle.

    dialect: of the bundles that it is for; precision: what the manifest will call the result; treatments: by graph,
    the name of what is done to its linear layers (:mod:`prunevid.calibration.rewrite`); summary: for help.
    """

    name: str
    dialect: str
    precision: str
    treatments: dict[str, str]
    summary: str


KV_CACHES = ("float", "int8")
"""What the KV cache can be kept in."""

_DECODER = ("llm_pre", "llm_post")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "cpu-int8",
            "ort",
            "int8",
            dict.fromkeys(("vision_merge", *_DECODER), "dynamic-int8"),
            "int8 weights and activations everywhere: fastest prefill on a CPU",
        ),
        Recipe(
            "cpu-int4",
            "ort",
            "int4",
            {"vision_merge": "dynamic-int8", **dict.fromkeys(_DECODER, "int4-block32")},
            "4-bit weights in the language model, int8 in the vision tower: for long answers on a CPU",
        ),
        Recipe(
            "int4-awq",
            "ort",
            "int4",
            {"vision_merge": "dynamic-int8", **dict.fromkeys(_DECODER, "int4-awq")},
            "as cpu-int4, with fewer scales, and weights scaled by the activations of the calibration videos: smallest",
        ),
    )
}
"""All recipes by name."""
