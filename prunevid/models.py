"""The catalog: the models that are known by name, with what must be known of them without a checkpoint.

`prunevid export --model` and `prunevid fit --model` read it. The exporter reads shapes from a checkpoint's config;
here they are as data, so that a runtime without transformers has them, too. A test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from prunevid.bundle.sections.blocks import DEFAULT_BLOCKS, Blocks
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.cost import DecoderShape, VisionShape
from prunevid.errors import InvalidValueError

__all__ = ["KNOWN", "VICUNA_7B", "KnownModel", "ModelShape", "PaperFigure", "known_model"]


@dataclass(frozen=True)
class ModelShape:
    """A video language model by its shapes.

    Attributes:
        name: what the command line calls it.
        decoder: the language model.
        vision: the vision tower, counting the layers that are run.
        image_size: side of the square that frames are resized to, in pixels.
        layout: visual tokens of a frame, as projector and pooling leave them, and what stands among them.
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
    layout: TokenLayout
    tied: bool
    projection_bias: bool
    query_key_norm: bool
    max_positions: int
    frames: int
    cache_bytes: int | None = None
    blocks: Blocks = DEFAULT_BLOCKS

    def __post_init__(self) -> None:
        for field in ("image_size", "max_positions", "frames"):
            if getattr(self, field) < 1:
                raise InvalidValueError(f"ModelShape.{field} must be 1 or more, not {getattr(self, field)}.")


@dataclass(frozen=True)
class PaperFigure:
    """What a paper says that a method saves of a model; `prunevid.published` sets it against the cost model.

    Attributes:
        model: the model, as the paper calls it.
        method: what prunes.
        tokens: visual tokens without pruning.
        retained: share of them that is kept in the end.
        ratio: FLOPs of the pruned model over those of the whole one, as printed.
        first: share of the tokens that the first layers see, and how many layers these are; None for what PruneVid's
            default settings make of `retained`.
        note: why the cost model differs; empty where it agrees.
    """

    model: str
    method: str
    tokens: int
    retained: float
    ratio: float
    first: tuple[float, int] | None = None
    note: str = ""


@dataclass(frozen=True)
class KnownModel:
    """A model by its short name.

    Attributes:
        family: which of the exporter's families it is of.
        hub_id: repository of its checkpoint; None for the demo model, which ships with the package.
        shape: its shapes, its name and how many frames of a video it is usually shown.
        figures: what papers say that pruning saves of it.
    """

    family: str
    hub_id: str | None
    shape: ModelShape
    figures: tuple[PaperFigure, ...] = ()

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.shape.name

    @property
    def frames(self) -> int:
        """Frames of a video that it is usually shown."""
        return self.shape.frames


VICUNA_7B = DecoderShape(32, 4096, 11008, heads=32, kv_heads=32, head_dim=128, vocab_size=32064)
"""Vicuna 7B, that is Llama 7B: the language model of LLaVA-1.5-7B and its kin."""

_SIGLIP_SO400M = VisionShape(26, 1152, 4304, patches=27 * 27, patch_values=3 * 14 * 14)


def _llava_onevision(
    name: str, size: str, decoder: DecoderShape, *, tied: bool, figures: tuple[PaperFigure, ...] = ()
) -> KnownModel:
    """LLaVA-OneVision (arXiv 2408.03326): SigLIP so400m at 384 pixels, 27 x 27 patches pooled to 14 x 14, and Qwen2."""
    shape = ModelShape(
        name=name,
        decoder=decoder,
        vision=_SIGLIP_SO400M,
        image_size=384,
        layout=TokenLayout(14 * 14, (14, 14), after_video=(Piece(row=decoder.vocab_size),)),
        tied=tied,
        projection_bias=True,
        query_key_norm=False,
        max_positions=32768,
        frames=32,
    )
    return KnownModel("llava_onevision", f"llava-hf/llava-onevision-qwen2-{size}-ov-hf", shape, figures)


_CLIP_L = VisionShape(23, 1024, 4096, patches=24 * 24, patch_values=3 * 14 * 14, class_token=True)


def _llava_of_vicuna(name: str, layout: TokenLayout, frames: int, vision: VisionShape = _CLIP_L) -> ModelShape:
    """A LLaVA of CLIP-L/14 at 336 pixels, whose last layer is not run, and Vicuna 7B."""
    return ModelShape(
        name=name,
        decoder=VICUNA_7B,
        vision=vision,
        image_size=336,
        layout=layout,
        tied=False,
        projection_bias=False,
        query_key_norm=False,
        max_positions=4096,
        frames=frames,
    )


_DEMO = ModelShape(
    name="demo",
    decoder=DecoderShape(7, 128, 256, heads=4, kv_heads=2, head_dim=32, vocab_size=61),
    vision=VisionShape(2, 96, 256, patches=16 * 16, patch_values=3 * 8 * 8),
    image_size=128,
    layout=TokenLayout(8 * 8, (8, 8), after_video=(Piece(row=61),)),
    tied=False,
    projection_bias=True,
    query_key_norm=False,
    max_positions=4096,
    frames=16,
)

KNOWN = {
    model.name: model
    for model in (
        _llava_onevision(
            "llava-ov",
            "7b",
            DecoderShape(28, 3584, 18944, heads=28, kv_heads=4, head_dim=128, vocab_size=152000),
            tied=False,
            figures=(
                PaperFigure(
                    "LLaVA-OneVision-7B",
                    "PruneVid",
                    tokens=6272,
                    retained=0.170,
                    ratio=0.20,
                    note="modelled with M = 8, the paper's layer 10 of 32 scaled to 28 layers, and with 42.5 % of the "
                    "tokens in layers 0..M; 0.20 comes out with M = 5, or with a keep_ratio of 0.5 (34 % in layers "
                    "0..M), so the published run may have used other settings.",
                ),
            ),
        ),
        _llava_onevision(
            "llava-ov-0.5b",
            "0.5b",
            DecoderShape(24, 896, 4864, heads=14, kv_heads=2, head_dim=64, vocab_size=152000),
            tied=True,
        ),
        _llava_onevision(
            "llava-ov-72b",
            "72b",
            DecoderShape(80, 8192, 29568, heads=64, kv_heads=8, head_dim=128, vocab_size=152000),
            tied=False,
        ),
        # 28 frames are all that 4096 positions take, and leave 64 for prompt, question and answer; 24 leave 640.
        KnownModel(
            "llava_next_video",
            "llava-hf/LLaVA-NeXT-Video-7B-hf",
            _llava_of_vicuna(
                "llava-next-video", TokenLayout(12 * 12, (12, 12)), 24, replace(_CLIP_L, projected=12 * 12)
            ),
        ),
        KnownModel(
            "llava",
            "llava-hf/llava-1.5-7b-hf",
            _llava_of_vicuna("llava-1.5", TokenLayout(576, (24, 24), placeholder="frame"), 6),
        ),
        KnownModel("llava_onevision", None, _DEMO),
    )
}
"""Every model that can be exported by name."""


def known_model(name: str) -> KnownModel:
    """The known model of that name. Raises InvalidValueError for any other, naming those there are."""
    if name not in KNOWN:
        raise InvalidValueError(f"unknown model {name!r}: known are {', '.join(KNOWN)}")
    return KNOWN[name]
