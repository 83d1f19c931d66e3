"""Whether a model fits on a device: every precision and number of frames, pruned beside unpruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunevid.errors import PruneVidError
from prunevid.models import ModelShape
from prunevid.runtime.fit.devices.device import Device
from prunevid.runtime.fit.estimate import ANSWER, TEXT_BEFORE, Estimate, estimate, text_after, text_per_frame, workload
from prunevid.runtime.fit.footprint import parameter_counts
from prunevid.runtime.fit.precision import EXPORTED, precisions_of

__all__ = ["FitResult", "Pair", "Shares", "estimate_all"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Shares:
    """Shares of the visual tokens that merging leaves, and that are kept in the end."""

    merged: float
    kept: float


@dataclass(frozen=True)
class Pair:
    """The same question in the same precision, unpruned and pruned."""

    unpruned: Estimate
    pruned: Estimate

    @property
    def precision(self) -> str:
        """Its name."""
        return self.pruned.precision

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return self.pruned.workload.frames


@dataclass(frozen=True)
class FitResult:
    """All estimates for a model on a device, by precision and then by frames, ascending."""

    model: ModelShape
    prune_layer: int
    device: Device
    shares: Shares
    pairs: tuple[Pair, ...]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions there are, in order."""
        return tuple(dict.fromkeys(pair.precision for pair in self.pairs))

    def of(self, precision: str) -> list[Pair]:
        """The pairs of one precision."""
        return [pair for pair in self.pairs if pair.precision == precision]

    @property
    def verdict(self) -> str:
        """One sentence: whether the model fits, pruned, and in which precisions."""
        fitting = [name for name in self.precisions if any(pair.pruned.fits for pair in self.of(name))]
        subject = f"{self.model.name} on {self.device.title}"
        if not fitting:
            return f"DOES NOT FIT: {subject}"
        if set(fitting) & set(EXPORTED):
            return f"FITS: {subject}, in {', '.join(fitting)}"
        return f"FITS ONLY QUANTIZED: {subject}, in {', '.join(fitting)}, which `prunevid calibrate` makes"

    @property
    def details(self) -> list[str]:
        """One line per precision: which frame counts fit, and what is left."""
        return [f"{name}: {_detail(self.of(name))}" for name in self.precisions]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in bytes and seconds."""
        parameters = parameter_counts(self.model)
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "estimate",
            "verdict": self.verdict,
            "details": self.details,
            "model": {
                **_model(self.model),
                "prune_layer": self.prune_layer,
                "parameters": {**asdict(parameters), "total": parameters.total},
            },
            "device": {**asdict(self.device), "usable_bytes": self.device.usable_bytes},
            "assumptions": {
                **{f"{name}_share": share for name, share in asdict(self.shares).items()},
                "text_before": TEXT_BEFORE,
                "text_after": text_after(self.model.layout),
                "answer_tokens": ANSWER,
            },
            "estimates": [_to_dict(made) for pair in self.pairs for made in (pair.unpruned, pair.pruned)],
        }


def _model(model: ModelShape) -> dict[str, Any]:
    """A model's shapes; of its token layout, how many tokens a frame has."""
    shapes = asdict(model)
    del shapes["layout"]
    return {**shapes, "tokens_per_frame": model.layout.tokens_per_frame}


def estimate_all(
    model: ModelShape, prune_layer: int, device: Device, frames: Sequence[int], shares: Shares
) -> FitResult:
    """Estimate every precision that makes sense on the device, with every number of frames.

    Raises:
        PruneVidError: when even pruned, a number of frames needs more positions than the model has.
    """
    pairs = []
    for precision in precisions_of(device):
        for count in sorted(set(frames)):
            pruned = workload(model, prune_layer, count, shares.merged, shares.kept)
            if pruned.positions > model.max_positions:
                raise PruneVidError(_too_long(model, prune_layer, count, shares))
            unpruned = workload(model, prune_layer, count)
            pairs.append(Pair(estimate(unpruned, precision, device), estimate(pruned, precision, device)))
    return FitResult(model, prune_layer, device, shares, tuple(pairs))


def frames_taken(model: ModelShape, prune_layer: int, frames: Sequence[int], shares: Shares) -> list[int]:
    """Of some numbers of frames, those that the model has positions for when pruned; unless it takes all, its own, too.

    Raises:
        PruneVidError: when a share is out of range.
    """
    needed = {count: workload(model, prune_layer, count, shares.merged, shares.kept).positions for count in frames}
    taken = [count for count in frames if needed[count] <= model.max_positions]
    return taken if len(taken) == len(frames) else sorted({model.frames, *taken})


def most_frames(model: ModelShape, merged_share: float) -> int:
    """The longest video that the model has positions for, in frames."""
    layout = model.layout
    room = model.max_positions - TEXT_BEFORE - text_after(layout) - ANSWER
    beside = text_per_frame(layout)
    # int(x * share) <= room as long as x * share < room + 1.
    frames = int((room + 1) / (layout.tokens_per_frame * merged_share + beside))
    while int(layout.visual(frames) * merged_share) + frames * beside > room:
        frames -= 1
    return max(0, frames)


def _too_long(model: ModelShape, prune_layer: int, frames: int, shares: Shares) -> str:
    needed = workload(model, prune_layer, frames, shares.merged, shares.kept).positions
    return (
        f"{frames} frames, text and answer take {needed} positions after merging, {model.name} has "
        f"{model.max_positions}: give at most {most_frames(model, shares.merged)} frames "
        f"({most_frames(model, 1.0)} without pruning)"
    )


def _detail(pairs: Sequence[Pair]) -> str:
    """What fits of one precision, which has a pair per number of frames, ascending."""
    pruned = [pair.pruned for pair in pairs if pair.pruned.fits]
    unpruned = [pair.unpruned for pair in pairs if pair.unpruned.fits]
    note = "" if pairs[0].precision in EXPORTED else "; made by `prunevid calibrate`"
    if not pruned:
        shortest = pairs[0].pruned
        return f"does not fit, {-shortest.left_bytes / 1e9:.1f} GB short at {_frames([shortest])}{note}"
    left = " to ".join(dict.fromkeys(f"{made.left_bytes / 1e9:.1f}" for made in (pruned[0], pruned[-1])))
    without = _frames(unpruned) if unpruned else "nothing"
    same = len(unpruned) == len(pruned)
    return f"fits {_frames(pruned)}, {left} GB left" + ("" if same else f"; without pruning {without}") + note


def _frames(made: Sequence[Estimate]) -> str:
    counts = [str(one.workload.frames) for one in made]
    return ", ".join(counts) + (" frame" if counts == ["1"] else " frames")


def _to_dict(made: Estimate) -> dict[str, Any]:
    work = made.workload
    return {
        "precision": made.precision,
        "frames": work.frames,
        "pruned": work.is_pruned,
        "tokens": asdict(work.counts),
        "positions": work.positions,
        "weights_bytes": made.memory.weights,
        "kv_bytes": made.memory.kv,
        "activations_bytes": made.memory.activations,
        "total_bytes": made.memory.total,
        "left_bytes": made.left_bytes,
        "too_long": made.is_too_long,
        "fits": made.fits,
        "stages_s": made.stages_s,
        "first_token_s": made.first_token_s,
        "decode_per_token_s": made.decode_s,
    }
