"""What the manifest says about how a bundle was quantized."""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.validation import LARGEST, require_integer, require_number, require_text

_LONGEST = 1000


@dataclass(frozen=True)
class QuantizedGraph:
    """What was done to one graph: to how many of its linear layers, and which of them stayed in float.

    Raises:
        InvalidValueError: when a value is out of range.
    """

    treatment: str
    quantized: int
    float_layers: tuple[str, ...]

    def __post_init__(self) -> None:
        require_text("treatment", self.treatment, _LONGEST)
        require_integer("quantized", self.quantized, 0)
        for layer in self.float_layers:
            require_text("float_layers", layer, _LONGEST)


@dataclass(frozen=True)
class Quantization:
    """The recipe of a quantized bundle, what it did to each graph, and how the bundle was judged.

    questions: held-out questions asked of the original and of this bundle; agreement: share of the same greedy
    answers; divergence: mean KL of the first token's distribution, in nats.

    Raises:
        InvalidValueError: when a figure is out of range.
    """

    recipe: str
    graphs: dict[str, QuantizedGraph]
    questions: int
    agreement: float
    divergence: float

    def __post_init__(self) -> None:
        require_text("recipe", self.recipe, _LONGEST)
        require_integer("questions", self.questions, 0)
        require_number("agreement", self.agreement, 0, 1)
        require_number("divergence", self.divergence, 0, LARGEST)
