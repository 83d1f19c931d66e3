"""The estimate itself: bytes against a device's memory, and a roofline per stage against its rates.

A stage takes the longer of two times: its arithmetic at the device's rate, and the bytes it must move at the memory's
bandwidth (Williams, Waterman and Patterson, "Roofline", CACM 2009). Nothing overlaps, nothing else costs time.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.cost import (
    DecoderShape,
    TokenCounts,
    decoder_layer_flops,
    kv_bytes,
    lm_head_flops,
    projector_flops,
    select_flops,
    vision_flops,
)
from prunevid.errors import PruneVidError
from prunevid.models import ModelShape
from prunevid.runtime.fit.devices.device import Device
from prunevid.runtime.fit.footprint import (
    ParameterCounts,
    held_kv_bytes,
    loading_bytes,
    merge_bytes,
    parameter_counts,
    prefill_bytes,
    read_kv_bytes,
    vision_bytes,
)
from prunevid.runtime.fit.precision import Precision

__all__ = [
    "ANSWER",
    "ESTIMATED_STAGES",
    "QUESTION",
    "TEXT_BEFORE",
    "Estimate",
    "MemoryEstimate",
    "Workload",
    "estimate",
    "text_after",
    "text_per_frame",
    "workload",
]

ESTIMATED_STAGES = ("vision", "merge", "llm_pre", "select", "llm_post")
"""What runs before the first token, in order; merge and select only where tokens are pruned."""

TEXT_BEFORE, QUESTION = 14, 29
"""Tokens around the video that an estimate takes: a chat template's, and with it a question of some twenty words."""

_LINE_BREAK, _TIMESTAMP = 1, 10
"""Tokens that an estimate takes for what a chat template writes between frames, and for a text beside a frame."""

ANSWER = 128
"""Tokens of an answer: the runtime's default limit."""

VIDEO_PIXELS = 1920 * 1080
"""Pixels of a frame as the file has it: the runtime holds all sampled frames until they are encoded."""


@dataclass(frozen=True)
class Workload:
    """One question about one video.

    Attributes:
        model: whom it is asked.
        prune_layer: M, the last layer that sees all merged tokens.
        frames: how many are sampled.
        counts: tokens at each stage; nothing is pruned where all are kept.
        answer: tokens that are generated.
        video_pixels: pixels of a frame as the file has it.
    """

    model: ModelShape
    prune_layer: int
    frames: int
    counts: TokenCounts
    answer: int = ANSWER
    video_pixels: int = VIDEO_PIXELS

    @property
    def is_pruned(self) -> bool:
        """Whether any visual token is dropped."""
        return self.counts.kept < self.counts.visual

    @property
    def positions(self) -> int:
        """Positions that the language model must have."""
        return self.counts.merged + self.counts.text + self.answer


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they hold; all of it exists together."""

    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.activations


@dataclass(frozen=True)
class Estimate:
    """A workload on a device, in a precision.

    Attributes:
        workload: what is asked.
        precision: its name.
        memory: what it takes.
        left_bytes: what remains of the device's usable memory; negative where it does not fit.
        stages_s: seconds per stage before the first token.
        decode_s: seconds per further token.
    """

    workload: Workload
    precision: str
    memory: MemoryEstimate
    left_bytes: int
    stages_s: dict[str, float]
    decode_s: float

    @property
    def is_too_long(self) -> bool:
        """Whether the model has too few positions."""
        return self.workload.positions > self.workload.model.max_positions

    @property
    def fits(self) -> bool:
        """Whether memory and positions suffice."""
        return self.left_bytes >= 0 and not self.is_too_long

    @property
    def first_token_s(self) -> float:
        """Seconds before the first token, without reading and resizing the video."""
        return sum(self.stages_s.values())


def workload(
    model: ModelShape, prune_layer: int, frames: int, merged_share: float = 1.0, kept_share: float = 1.0
) -> Workload:
    """A typical question, of whose visual tokens a share is left by merging and a share is kept in the end.

    Raises:
        PruneVidError: when a share is out of range, or no frame is asked for.
    """
    if frames < 1:
        raise PruneVidError(f"frames must be 1 or more, not {frames}")
    if not 0 < kept_share <= merged_share <= 1:
        raise PruneVidError(
            f"shares must be above 0, at most 1, and no more kept than merged: "
            f"merged-share is {merged_share}, kept-share {kept_share}"
        )
    visual, layout = model.layout.visual(frames), model.layout
    text_before = TEXT_BEFORE + frames * text_per_frame(layout)
    counts = TokenCounts(visual, int(visual * merged_share), int(visual * kept_share), text_before, text_after(layout))
    return Workload(model, prune_layer, frames, counts)


def text_per_frame(layout: TokenLayout) -> int:
    """Rows that stand beside a frame's tokens, as many as they usually are."""
    between = _LINE_BREAK if layout.placeholder == "frame" else 0
    return between + _rows_of(layout.before_frame) + _rows_of(layout.after_frame)


def text_after(layout: TokenLayout) -> int:
    """Rows behind the video's tokens: its last ones, and the question."""
    return _rows_of(layout.after_video) + QUESTION


def _rows_of(pieces: tuple[Piece, ...]) -> int:
    return sum(1 if piece.text is None else _TIMESTAMP for piece in pieces)


def estimate(work: Workload, precision: Precision, device: Device) -> Estimate:
    """Estimate memory and time of a workload."""
    parameters = parameter_counts(work.model)
    clock = _Roofline(precision, device, work.model)
    memory = MemoryEstimate(
        weights=precision.weight_bytes(parameters, device),
        kv=held_kv_bytes(work.model.decoder, work.counts, work.prune_layer, work.answer, clock.cache_bytes),
        activations=_activation_bytes(work, precision.value_bytes(device)),
    )
    return Estimate(
        workload=work,
        precision=precision.name,
        memory=memory,
        left_bytes=device.usable_bytes - memory.total,
        stages_s=_stages(work, parameters, clock),
        decode_s=_decode(work, parameters, clock),
    )


def _activation_bytes(work: Workload, value: int) -> int:
    """Arrays that outlive a stage and the scratch memory of the stage that needs most; or what loading takes."""
    model, counts = work.model, work.counts
    width = model.decoder.hidden_size
    # The frames as read; pixel values in float32; features; then embeddings and hidden states of all rows.
    frames = work.frames * (3 * work.video_pixels + 3 * model.image_size**2 * 4)
    rows = counts.merged + counts.text
    arrays = (counts.visual + 2 * rows) * width * value
    scratch = [
        vision_bytes(model.vision, work.frames, value, model.blocks),
        prefill_bytes(model.decoder, rows, value, model.blocks),
    ]
    if work.is_pruned:
        scratch.append(merge_bytes(model, work.frames))
    return max(frames + arrays + max(scratch), loading_bytes(model.decoder, value))


class _Roofline:
    """Seconds of a stage on a device, in a precision."""

    def __init__(self, precision: Precision, device: Device, model: ModelShape) -> None:
        self.precision, self.device = precision, device
        self.value_bytes = precision.value_bytes(device)
        self.cache_bytes = model.cache_bytes or self.value_bytes
        self._vision = precision.vision_rate(device) * device.compute_efficiency
        self._linear = precision.decoder_rate(device) * device.compute_efficiency
        self._wide = precision.wide_rate(device) * device.compute_efficiency
        self._fp32 = device.fp32 * device.compute_efficiency
        self._bandwidth = device.bandwidth * device.bandwidth_efficiency

    def seconds(self, moved: float, *, vision: float = 0, linear: float = 0, wide: float = 0, fp32: float = 0) -> float:
        """The longer of moving so many bytes, and of computing these FLOPs.

        Args:
            moved: Bytes.
            vision: FLOPs in linear layers of the tower.
            linear: FLOPs in linear layers of the language model.
            wide: FLOPs in attention.
            fp32: FLOPs in float32.
        """
        computed = vision / self._vision + linear / self._linear + wide / self._wide + fp32 / self._fp32
        return max(computed, moved / self._bandwidth)


def _stages(work: Workload, parameters: ParameterCounts, clock: _Roofline) -> dict[str, float]:
    shape, counts = work.model.decoder, work.counts
    pre_layers = work.prune_layer + 1
    layer = clock.precision.decoder_bytes(parameters, clock.device) / shape.layers
    # The question is run behind the rest, in blocks of its own.
    at_once = work.model.blocks.rows
    before = counts.text_before + counts.merged + _rows_of(work.model.layout.after_video)
    blocks = _blocks(before, at_once) + _blocks(counts.merged + counts.text - before, at_once)
    linear, wide = _decoder_flops(shape, counts.merged + counts.text)
    stages = {"vision": _vision(work, parameters, clock)}
    if work.is_pruned:
        stages["merge"] = _merge(work, clock)
    stages["llm_pre"] = clock.seconds(
        blocks * pre_layers * layer, linear=pre_layers * linear, wide=pre_layers * wide + select_flops(shape, counts)
    )
    if work.is_pruned:
        stages["select"] = _select(work, clock)
    linear, wide = _decoder_flops(shape, counts.kept + counts.text)
    post_layers = shape.layers - pre_layers
    stages["llm_post"] = clock.seconds(
        _blocks(counts.kept + counts.text, at_once) * post_layers * layer
        + clock.precision.head_bytes(parameters, clock.device),
        linear=post_layers * linear,
        wide=post_layers * wide + lm_head_flops(shape),
    )
    return stages


def _vision(work: Workload, parameters: ParameterCounts, clock: _Roofline) -> float:
    vision = work.model.vision
    wide = work.frames * vision.layers * 2 * 2 * vision.hidden_size * vision.rows**2
    whole = vision_flops(vision, work.frames) + projector_flops(vision, work.model.decoder, work.frames)
    batches = -(-work.frames // work.model.blocks.frames)
    moved = batches * clock.precision.vision_bytes(parameters, clock.device)
    return clock.seconds(moved, vision=whole - wide, wide=wide)


def _merge(work: Workload, clock: _Roofline) -> float:
    """Distances and cluster means over a table of twice as many groups as frames, in float32."""
    tokens = work.model.layout.tokens_per_frame
    flops = 2 * 2 * 2 * work.frames * tokens**2 * work.model.decoder.hidden_size
    return clock.seconds(2 * merge_bytes(work.model, work.frames), fp32=flops)


def _select(work: Workload, clock: _Roofline) -> float:
    """Joining the hidden states, and copying what is kept of them and of the KV cache."""
    shape, counts = work.model.decoder, work.counts
    kept = counts.kept + counts.text
    rows = [kept] * (work.prune_layer + 1) + [0] * (shape.layers - work.prune_layer - 1)
    hidden = (counts.merged + counts.text + kept) * shape.hidden_size * clock.value_bytes
    return clock.seconds(2 * (kv_bytes(shape, rows, clock.cache_bytes) + hidden))


def _decode(work: Workload, parameters: ParameterCounts, clock: _Roofline) -> float:
    """The first step behind the first token; each reads all of the language model's weights and the KV cache."""
    shape, past = work.model.decoder, work.counts.kept + work.counts.text
    linear, wide = _decoder_flops(shape, 1, past)
    precision, device = clock.precision, clock.device
    weights = precision.decoder_bytes(parameters, device) + precision.head_bytes(parameters, device)
    return clock.seconds(
        weights + read_kv_bytes(shape, work.counts, clock.cache_bytes),
        linear=shape.layers * linear,
        wide=shape.layers * wide + lm_head_flops(shape),
    )


def _decoder_flops(shape: DecoderShape, new: int, past: int = 0) -> tuple[int, int]:
    """FLOPs of one layer in its linear layers, and in attention."""
    one_pair = 2 * 2 * shape.heads * shape.head_dim
    linear = new * (decoder_layer_flops(shape, 1) - one_pair)
    return linear, decoder_layer_flops(shape, new, past) - linear


def _blocks(rows: int, at_once: int) -> int:
    return -(-rows // at_once)
