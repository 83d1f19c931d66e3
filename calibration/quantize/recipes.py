"""The recipes: what each does to which graph, and what it runs on. Nothing heavy is imported: help lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """A way to quantize a bundle.

    precision: what the manifest will call the result; dialects: by the dialect of a bundle and by graph, the name of
    what is done to its linear layers (`prunevid.calibration.quantize.rewrite`); summary: for help; simulated: by
    the float type of a bundle, what ONNX Runtime on the CPU computes in float, on the rounded numbers, instead of in
    its kind.
    """

    name: str
    precision: str
    dialects: dict[str, dict[str, str]]
    summary: str
    simulated: Mapping[str, str] = field(default_factory=dict)


KV_CACHES = ("float", "int8")
"""What the KV cache can be kept in."""

_DECODER = ("llm_pre", "llm_post")
_ALL = ("vision_merge", *_DECODER)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "cpu-int8",
            "int8",
            {"ort": dict.fromkeys(_ALL, "dynamic-int8")},
            "int8 weights and activations everywhere: fastest prefill on a CPU",
        ),
        Recipe(
            "cpu-int4",
            "int4",
            {"ort": {"vision_merge": "dynamic-int8", **dict.fromkeys(_DECODER, "int4-block32")}},
            "4-bit weights in the language model, int8 in the vision tower: for long answers on a CPU",
        ),
        Recipe(
            "int4-awq",
            "int4",
            {
                "ort": {"vision_merge": "dynamic-int8", **dict.fromkeys(_DECODER, "int4-awq")},
                "portable": {"vision_merge": "int8-qdq", **dict.fromkeys(_DECODER, "int4-awq-qdq")},
            },
            "4-bit weights scaled and rounded by the calibration videos' activations, int8 in the tower: smallest",
            simulated={"fp16": "the vision tower's int8"},
        ),
        Recipe(
            "int8-qdq",
            "int8",
            {"portable": dict.fromkeys(_ALL, "int8-qdq")},
            "int8 weights and activations, smoothed, for TensorRT",
            simulated={"fp16": "int8"},
        ),
        Recipe(
            "fp8-qdq",
            "fp8",
            {"portable": dict.fromkeys(_ALL, "fp8-qdq")},
            "8-bit floating-point weights and activations, smoothed, for TensorRT on Ada and newer",
            simulated={"fp32": "fp8", "fp16": "fp8"},
        ),
    )
}
"""All recipes by name."""
