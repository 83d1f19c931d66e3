"""What papers say that pruning saves, beside what their own way of counting makes of it.

The convention of the pruning literature (FastV, arXiv 2403.06764; PruneVid, arXiv 2412.16117): visual tokens only,
decoder layers only. ``python -m prunevid.published`` prints the comparison.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from prunevid.config import PruneConfig
from prunevid.cost import DecoderShape

__all__ = [
    "LLAMA_7B",
    "QWEN2_7B",
    "PublishedFigure",
    "paper_layer_flops",
    "paper_ratio",
    "published_figures",
]

LLAMA_7B = DecoderShape(32, 4096, 11008, heads=32, kv_heads=32, head_dim=128, vocab_size=32000)
"""Llama and Vicuna 7B, the language models of PLLaVA-7B and ST-LLM."""

QWEN2_7B = DecoderShape(28, 3584, 18944, heads=28, kv_heads=4, head_dim=128, vocab_size=152064)
"""Qwen2 7B, the language model of LLaVA-OneVision-7B."""

PUBLISHED_TOLERANCE = 0.01
"""Papers print ratios with two digits."""


def paper_layer_flops(shape: DecoderShape, tokens: float) -> float:
    """FLOPs of one decoder layer as the literature counts them: 4nd^2 + 2n^2d + 3ndm.

    FastV (arXiv 2403.06764) has 2ndm for an MLP of two matrices; Llama's has three, and only
    with three does the published 0.33x of FastV come out. Grouped queries and the causal mask are ignored.
    """
    width = shape.hidden_size
    projections = 4 * tokens * width**2
    attention = 2 * tokens**2 * width
    mlp = 3 * tokens * width * shape.intermediate_size
    return projections + attention + mlp


def paper_ratio(
    shape: DecoderShape, tokens: int, first_share: float, kept_share: float, first_layers: int, text: int = 0
) -> float:
    """FLOPs of a pruned model over those of the whole one, as the literature counts them.

    Args:
        shape: the language model.
        tokens: visual tokens without pruning.
        first_share: share of them that the first layers see.
        kept_share: share of them that the other layers see.
        first_layers: how many layers come first; M + 1 for PruneVid.
        text: tokens besides the visual ones; papers leave them out.
    """
    first = paper_layer_flops(shape, tokens * first_share + text)
    rest = paper_layer_flops(shape, tokens * kept_share + text)
    whole = paper_layer_flops(shape, tokens + text)
    return (first_layers * first + (shape.layers - first_layers) * rest) / (shape.layers * whole)


@dataclass(frozen=True)
class PublishedFigure:
    """A FLOPs ratio that PruneVid's paper states, beside what the cost model makes of it.

    Attributes:
        name: model and method.
        tokens: visual tokens without pruning.
        retained: share of them that is kept in the end.
        paper: the ratio as printed.
        modelled: the ratio by `paper_ratio`.
        note: why they may differ; empty where they agree.
    """

    name: str
    tokens: int
    retained: float
    paper: float
    modelled: float
    note: str = ""

    @property
    def is_reproduced(self) -> bool:
        """Whether the model is within a digit of the paper."""
        return abs(self.modelled - self.paper) <= PUBLISHED_TOLERANCE


def published_figures() -> list[PublishedFigure]:
    """Compare the cost model with the FLOPs ratios of PruneVid's paper (arXiv 2412.16117, section 4).

    The paper gives the share of tokens kept in the end. What layers 0..M see is that share divided by the
    keep_ratio of 0.4.
    """
    return [
        PublishedFigure("PLLaVA-7B, PruneVid", 2304, 0.162, 0.23, _prunevid_ratio(LLAMA_7B, 2304, 0.162)),
        PublishedFigure("PLLaVA-7B, FastV", 2304, 0.300, 0.33, paper_ratio(LLAMA_7B, 2304, 1.0, 0.300, 2)),
        PublishedFigure(
            "LLaVA-OneVision-7B, PruneVid",
            6272,
            0.170,
            0.20,
            _prunevid_ratio(QWEN2_7B, 6272, 0.170),
            "modelled with M = 8, the paper's layer 10 of 32 scaled to 28 layers, and with 42.5 % of the "
            "tokens in layers 0..M; 0.20 comes out with M = 5, or with a keep_ratio of 0.5 (34 % in layers "
            "0..M), so the published run may have used other settings.",
        ),
        PublishedFigure(
            "ST-LLM-7B, PruneVid",
            512,
            0.151,
            0.26,
            _prunevid_ratio(LLAMA_7B, 512, 0.151),
            "a sequence this short is sensitive to what the convention leaves out: counting 25 text tokens "
            "gives 0.26. Its groups are small, too, so that rounding down keeps less than 0.4 of them: at an "
            "effective 0.32, layers 0..M see 47 % instead of 38 %, which also gives 0.26.",
        ),
    ]


def format_published_figures(figures: Sequence[PublishedFigure]) -> str:
    """Lay out published figures as a plain-text table, with the notes below it."""
    lines = [f"{'FLOPs ratio':30}{'tokens':>6}{'kept':>8}{'paper':>7}{'model':>8}"]
    for figure in figures:
        mark = "" if figure.is_reproduced else "  differs"
        shares = f"{figure.retained:8.1%}{figure.paper:7.2f}{figure.modelled:8.3f}"
        lines.append(f"{figure.name:30}{figure.tokens:6d}{shares}{mark}")
    for figure in figures:
        if figure.note:
            lines += ["", *textwrap.wrap(f"{figure.name}: {figure.note}", width=80)]
    return "\n".join(lines)


def _prunevid_ratio(shape: DecoderShape, tokens: int, retained: float) -> float:
    """Ratio by the paper's counting, at the default settings for the model's depth."""
    config = PruneConfig.for_depth(shape.layers)
    return paper_ratio(shape, tokens, retained / config.keep_ratio, retained, config.prune_layer + 1)


if __name__ == "__main__":
    print(format_published_figures(published_figures()))
