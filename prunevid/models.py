"""Shapes of the models that are known by name: what an estimate needs to know of them, without a checkpoint.

The exporter reads shapes from a checkpoint's config; here they are as data, so that a runtime without transformers
has them, too. A test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.bundle.sections.blocks import DEFAULT_BLOCKS, Blocks
from prunevid.cost import DecoderShape, VisionShape
from prunevid.errors import InvalidValueError

__all__ = ["MODELS", "ModelShape", "model_shape"]


@dataclass(frozen=True)
class ModelShape:
    """A video language model by its shapes.

    Attributes:
        name: what the command line calls it.
        decoder: the language model.
        vision: the vision tower, counting the layers that are run.
        image_size: side of the square that frames are resized to, in pixels.
        tokens_per_frame: visual tokens of a frame, as projector and pooling leave them.
        tied: whether the output matrix is the embedding table, and thus takes no memory of its own.
        projection_bias: whether the projections to queries, keys and values have a bias, as Qwen2's do.
        query_key_norm: whether queries and keys are normed, as Qwen3's are.
        max_positions: longest sequence that the language model takes: text, visual tokens and answer.
        frames: frames of a video that it is usually shown.
        cache_bytes: bytes of a value in the KV cache; None where it is of the activations' type.
        blocks: frames and rows that go through the graphs at once.

    Raises:
        InvalidValueError: when a number is below 1.
    """

    name: str
    decoder: DecoderShape
    vision: VisionShape
    image_size: int
    tokens_per_frame: int
    tied: bool
    projection_bias: bool
    query_key_norm: bool
    max_positions: int
    frames: int
    cache_bytes: int | None = None
    blocks: Blocks = DEFAULT_BLOCKS

    def __post_init__(self) -> None:
        for field in ("image_size", "tokens_per_frame", "max_positions", "frames"):
            if getattr(self, field) < 1:
                raise InvalidValueError(f"ModelShape.{field} must be 1 or more, not {getattr(self, field)}.")


_SIGLIP_SO400M = VisionShape(26, 1152, 4304, patches=27 * 27, patch_values=3 * 14 * 14)


def _llava_onevision(name: str, decoder: DecoderShape, *, tied: bool) -> ModelShape:
    """LLaVA-OneVision (arXiv 2408.03326): SigLIP so400m at 384 pixels, 27 x 27 patches pooled to 14 x 14, and Qwen2."""
    return ModelShape(
        name=name,
        decoder=decoder,
        vision=_SIGLIP_SO400M,
        image_size=384,
        tokens_per_frame=14 * 14,
        tied=tied,
        projection_bias=True,
        query_key_norm=False,
        max_positions=32768,
        frames=32,
    )


MODELS = {
    model.name: model
    for model in (
        _llava_onevision(
            "llava-ov",
            DecoderShape(28, 3584, 18944, heads=28, kv_heads=4, head_dim=128, vocab_size=152000),
            tied=False,
        ),
        _llava_onevision(
            "llava-ov-0.5b",
            DecoderShape(24, 896, 4864, heads=14, kv_heads=2, head_dim=64, vocab_size=152000),
            tied=True,
        ),
        _llava_onevision(
            "llava-ov-72b",
            DecoderShape(80, 8192, 29568, heads=64, kv_heads=8, head_dim=128, vocab_size=152000),
            tied=False,
        ),
    )
}
"""The published models, by name."""


def model_shape(name: str) -> ModelShape:
    """The known model of that name. Raises InvalidValueError for any other, naming those there are."""
    if name not in MODELS:
        raise InvalidValueError(f"unknown model {name!r}: known are {', '.join(MODELS)}")
    return MODELS[name]
