"""What the manifest says about how a bundle was quantized."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizedGraph:
    """What was done to one graph: to how many of its linear layers, and which of them stayed in float."""

    treatment: str
    quantized: int
    float_layers: tuple[str, ...]


@dataclass(frozen=True)
class Quantization:
    """The recipe of a quantized bundle, what it did to each graph, and how the bundle was judged.

    questions: held-out questions asked of the original and of this bundle; agreement: share of the same greedy
    answers; divergence: mean KL of the first token's distribution, in nats; kv_cache: ``int8``, or None where keys and
    values stay in float.
    """

    recipe: str
    graphs: dict[str, QuantizedGraph]
    questions: int
    agreement: float
    divergence: float
    kv_cache: str | None = None
