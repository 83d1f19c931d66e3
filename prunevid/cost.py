"""What a video question costs: FLOPs per stage and bytes of KV cache, from shapes and token counts alone.

There are two accountings. `paper_layer_flops` is the convention of the pruning literature (FastV, arXiv
2403.06764; PruneVid, arXiv 2412.16117): visual tokens only, decoder layers only. Published ratios are
compared in it: `python -m prunevid.cost` prints them. Everything else here counts the arithmetic that is
really needed: two FLOPs per multiply-accumulate of every matrix product, with grouped-query attention, a
causal mask, the vision tower, and one row of logits. Elementwise work (norms, activations, softmax, RoPE,
means) is left out: it costs memory traffic, not arithmetic.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from prunevid.config import PruneConfig
from prunevid.errors import InvalidValueError
from prunevid.validation import LARGEST, is_integer, require

__all__ = [
    "LLAMA_7B",
    "MOST_LAYERS",
    "QWEN2_7B",
    "Cost",
    "DecoderShape",
    "PublishedFigure",
    "TokenCounts",
    "VisionShape",
    "decode_flops",
    "decoder_layer_flops",
    "kv_bytes",
    "lm_head_flops",
    "merge_flops",
    "paper_layer_flops",
    "paper_ratio",
    "prefill_cost",
    "projector_flops",
    "published_figures",
    "select_flops",
    "vision_flops",
]


MOST_LAYERS = 1000
"""Of a language model; the deepest that is known has 126."""


def _require_counts(instance: Any, least: int) -> None:
    """Check that every field of a dataclass is an integer of at least this much."""
    for field in fields(instance):
        value, name = getattr(instance, field.name), f"{type(instance).__name__}.{field.name}"
        require(name, value, is_integer(value) and value >= least, f"an integer of {least} or more")
        require(name, value, value <= LARGEST, f"{LARGEST} or less")


@dataclass(frozen=True)
class DecoderShape:
    """Shape of a language model of the Llama kind, with a gated MLP of three matrices.

    Raises:
        InvalidValueError: when a number is below 1 or too large, or the query heads do not divide into the KV heads.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int

    def __post_init__(self) -> None:
        _require_counts(self, least=1)
        require("DecoderShape.layers", self.layers, self.layers <= MOST_LAYERS, f"{MOST_LAYERS} or less")
        if self.heads % self.kv_heads:
            raise InvalidValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads}).")


@dataclass(frozen=True)
class VisionShape:
    """Shape of a vision tower of the SigLIP or CLIP kind, with an MLP of two matrices.

    Attributes:
        layers: layers that are run; a tower whose last layers are unused has fewer here than in its file.
        hidden_size: channels of a patch.
        intermediate_size: channels inside the MLP.
        patches: patches of one frame in the tower and in the projector, before pooling.
        patch_values: pixel values of one patch, 3 * side * side.

    Raises:
        InvalidValueError: when a number is below 1.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    patches: int
    patch_values: int

    def __post_init__(self) -> None:
        _require_counts(self, least=1)


@dataclass(frozen=True)
class TokenCounts:
    """How many tokens each stage of one question sees.

    Attributes:
        visual: visual tokens of all frames, as the projector and the pooling leave them.
        merged: visual tokens after merging; layers 0..M see them.
        kept: visual tokens after selection; later layers see them.
        text_before: tokens before the video.
        text_after: tokens after the video: the question, whose attention scores the visual tokens.

    Raises:
        InvalidValueError: when a number is negative, or merged or kept is more than what it is taken from.
    """

    visual: int
    merged: int
    kept: int
    text_before: int = 0
    text_after: int = 0

    def __post_init__(self) -> None:
        _require_counts(self, least=0)
        if not self.kept <= self.merged <= self.visual:
            raise InvalidValueError(
                f"kept ({self.kept}), merged ({self.merged}), visual ({self.visual}) must not decrease."
            )

    @property
    def text(self) -> int:
        """Tokens that are never pruned."""
        return self.text_before + self.text_after

    @property
    def retained(self) -> float:
        """Share of the visual tokens that is kept, as papers state it."""
        return self.kept / self.visual if self.visual else 1.0

    def unpruned(self) -> TokenCounts:
        """Counts of the same question with nothing merged or dropped."""
        return replace(self, merged=self.visual, kept=self.visual)


@dataclass(frozen=True)
class Cost:
    """FLOPs of one question up to its first answer token, by stage."""

    vision: int = 0
    projector: int = 0
    merge: int = 0
    llm_pre: int = 0
    select: int = 0
    llm_post: int = 0
    lm_head: int = 0

    @property
    def llm(self) -> int:
        """FLOPs of the language model, selection included."""
        return self.llm_pre + self.select + self.llm_post + self.lm_head

    @property
    def total(self) -> int:
        """FLOPs of all stages."""
        return self.vision + self.projector + self.merge + self.llm


def decoder_layer_flops(shape: DecoderShape, new: int, past: int = 0) -> int:
    """FLOPs of one decoder layer that computes `new` tokens after `past` cached ones, under a causal mask."""
    query_size = shape.heads * shape.head_dim
    kv_size = shape.kv_heads * shape.head_dim
    attention_weights = shape.hidden_size * (2 * query_size + 2 * kv_size)
    mlp_weights = 3 * shape.hidden_size * shape.intermediate_size
    seen_pairs = new * past + new * (new + 1) // 2
    return 2 * new * (attention_weights + mlp_weights) + 2 * 2 * query_size * seen_pairs


def lm_head_flops(shape: DecoderShape) -> int:
    """FLOPs of one position's logits."""
    return 2 * shape.hidden_size * shape.vocab_size


def decode_flops(shape: DecoderShape, past: int) -> int:
    """FLOPs of decoding one token after `past` cached ones in every layer."""
    return shape.layers * decoder_layer_flops(shape, 1, past) + lm_head_flops(shape)


def vision_flops(shape: VisionShape, frames: int) -> int:
    """FLOPs of the vision tower; every patch of a frame attends to every other of that frame."""
    weights = 4 * shape.hidden_size**2 + 2 * shape.hidden_size * shape.intermediate_size
    attention = 2 * 2 * shape.hidden_size * shape.patches**2
    layer = 2 * shape.patches * weights + attention
    embedding = 2 * shape.patches * shape.patch_values * shape.hidden_size
    return frames * (embedding + shape.layers * layer)


def projector_flops(vision: VisionShape, decoder: DecoderShape, frames: int) -> int:
    """FLOPs of a projector of two matrices, run on every patch before pooling, as LLaVA-OneVision does."""
    weights = vision.hidden_size * decoder.hidden_size + decoder.hidden_size**2
    return 2 * frames * vision.patches * weights


def merge_flops(channels: int, frames: int, group_sizes: Sequence[int], config: PruneConfig) -> int:
    """FLOPs of merging: distances through Gram matrices, and cluster means as products with one-hot matrices.

    Args:
        channels: channels of a visual token.
        frames: frames that are segmented.
        group_sizes: tokens of every group before clustering. A group that is left as it is costs nothing.
        config: the settings.
    """
    flops = 2 * channels * frames**2
    clusters_of = config.cluster_counts(max(group_sizes, default=0))
    for size in group_sizes:
        clusters = int(clusters_of[size])
        if clusters < size:
            flops += 2 * channels * (size * size + clusters * size)
    return flops


def select_flops(shape: DecoderShape, counts: TokenCounts) -> int:
    """FLOPs of scoring: the question's queries times the keys of the merged visual tokens, at layer M."""
    return 2 * shape.heads * shape.head_dim * counts.text_after * counts.merged


def prefill_cost(
    decoder: DecoderShape,
    counts: TokenCounts,
    config: PruneConfig,
    *,
    vision: VisionShape | None = None,
    frames: int = 0,
    group_sizes: Sequence[int] = (),
) -> Cost:
    """Count the FLOPs of one question up to its first answer token.

    Args:
        decoder: the language model.
        counts: tokens at each stage.
        config: the settings; prune_layer splits the layers. Disabled settings cost no merging or selection.
        vision: the vision tower; without one, vision and projector count as nothing.
        frames: frames that are encoded and merged.
        group_sizes: tokens of every group before clustering, see `merge_flops`.

    Raises:
        InvalidValueError: when the model has no layer after prune_layer.
    """
    pre_layers = config.prune_layer + 1
    if pre_layers >= decoder.layers:
        raise InvalidValueError(
            f"prune_layer {config.prune_layer} must leave a layer after it, of {decoder.layers} in all."
        )
    prunes = not config.is_disabled
    pre_layer = decoder_layer_flops(decoder, counts.merged + counts.text)
    post_layer = decoder_layer_flops(decoder, counts.kept + counts.text)
    return Cost(
        vision=vision_flops(vision, frames) if vision else 0,
        projector=projector_flops(vision, decoder, frames) if vision else 0,
        merge=merge_flops(decoder.hidden_size, frames, group_sizes, config) if prunes else 0,
        llm_pre=pre_layers * pre_layer,
        select=select_flops(decoder, counts) if prunes else 0,
        llm_post=(decoder.layers - pre_layers) * post_layer,
        lm_head=lm_head_flops(decoder),
    )


def kv_bytes(shape: DecoderShape, tokens_by_layer: Sequence[int], bytes_per_value: int = 2) -> int:
    """Bytes of keys and values, given the cached tokens of every layer.

    Raises:
        InvalidValueError: when there is not one number per layer.
    """
    if len(tokens_by_layer) != shape.layers:
        raise InvalidValueError(
            f"tokens_by_layer must have one number per layer ({shape.layers}), not {len(tokens_by_layer)}."
        )
    return 2 * shape.kv_heads * shape.head_dim * bytes_per_value * sum(tokens_by_layer)


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
