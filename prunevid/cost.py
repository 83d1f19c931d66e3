"""What a video question costs: FLOPs per stage and bytes of KV cache, from shapes and token counts alone.

Counted is the arithmetic that is really needed: two FLOPs per multiply-accumulate of every matrix product, with
grouped-query attention, a causal mask, the vision tower, and one row of logits. Elementwise work (norms,
activations, softmax, RoPE, means) is left out: it costs memory traffic, not arithmetic. The literature counts
otherwise: `prunevid.published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from prunevid.config import PruneConfig
from prunevid.errors import InvalidValueError
from prunevid.validation import LARGEST, is_integer, require, require_integer

__all__ = [
    "MOST_LAYERS",
    "Cost",
    "DecoderShape",
    "TokenCounts",
    "VisionShape",
    "decode_flops",
    "decoder_layer_flops",
    "kv_bytes",
    "lm_head_flops",
    "merge_flops",
    "prefill_cost",
    "projector_flops",
    "select_flops",
    "vision_flops",
]


MOST_LAYERS = 1000
"""Of a language model; the deepest that is known has 126."""


def _require_counts(instance: Any, least: int, but: tuple[str, ...] = ()) -> None:
    """Check that every field of a dataclass, but some, is an integer of at least this much."""
    for field in fields(instance):
        if field.name in but:
            continue
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
        class_token: whether a learned token runs through the layers with a frame's patches, as in CLIP, which has a
            norm before the layers, too, and no bias in the patches' embedding.
        projected: rows of one frame that the projector takes; None for all patches, which are pooled behind it.

    Raises:
        InvalidValueError: when a value is out of its range.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    patches: int
    patch_values: int
    class_token: bool = False
    projected: int | None = None

    def __post_init__(self) -> None:
        _require_counts(self, least=1, but=("class_token", "projected"))
        require("VisionShape.class_token", self.class_token, isinstance(self.class_token, bool), "true or false")
        if self.projected is not None:
            require_integer("VisionShape.projected", self.projected, 1, self.patches)

    @property
    def rows(self) -> int:
        """Rows of one frame that run through the layers."""
        return self.patches + self.class_token


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
    attention = 2 * 2 * shape.hidden_size * shape.rows**2
    layer = 2 * shape.rows * weights + attention
    embedding = 2 * shape.patches * shape.patch_values * shape.hidden_size
    return frames * (embedding + shape.layers * layer)


def projector_flops(vision: VisionShape, decoder: DecoderShape, frames: int) -> int:
    """FLOPs of a projector of two matrices, run on every patch or on what pooling leaves of them."""
    weights = vision.hidden_size * decoder.hidden_size + decoder.hidden_size**2
    return 2 * frames * (vision.projected or vision.patches) * weights


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
