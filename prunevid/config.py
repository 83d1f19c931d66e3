"""Settings of the method, and the token counts that follow from them.

NumPy is imported inside the functions that need it: the command line reads the defaults from here to print
its help, and should not wait for NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from prunevid.errors import InvalidValueError
from prunevid.validation import LARGEST, is_integer, is_number, require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["PAPER_LAYERS", "SELECTIONS", "PruneConfig"]

PAPER_LAYERS = 32
"""Depth of the 7B model that the paper's prune_layer of 10 belongs to."""

SELECTIONS = ("group", "global")
"""How the kept tokens are spread: a share of every group, or the best of all."""

_NOTHING_IS_STATIC = 2.0


@dataclass(frozen=True)
class PruneConfig:
    """Settings of the PruneVid method; the defaults are the paper's (arXiv 2412.16117, section 4).

    Attributes:
        segment_ratio: gamma; T frames are clustered into int(T * gamma) segments before refinement.
        static_threshold: tau; a position is static in a segment when the mean cosine similarity of its frame
            pairs is above it. Above 1, nothing is static.
        cluster_ratio: beta; a group of n tokens is merged into int(n * beta) tokens.
        keep_ratio: alpha; of n merged tokens, int(n * alpha) are kept inside the language model.
        prune_layer: M, 0-based; layers 0..M see the whole merged sequence, later layers the kept tokens.
        neighbours: k of DPC-KNN's density, the token itself included.
        min_cluster_tokens: a group of so many tokens or fewer is not clustered.
        selection: "group" keeps the best int(n * alpha) of every group, "global" the best of all tokens.

    Raises:
        InvalidValueError: when a setting is out of range; the sentence names it.
    """

    segment_ratio: float = 0.25
    static_threshold: float = 0.8
    cluster_ratio: float = 0.5
    keep_ratio: float = 0.4
    prune_layer: int = 10
    neighbours: int = 7
    min_cluster_tokens: int = 14
    selection: str = "group"

    def __post_init__(self) -> None:
        for name in ("segment_ratio", "cluster_ratio", "keep_ratio"):
            ratio = getattr(self, name)
            require(name, ratio, is_number(ratio) and 0 < ratio <= 1, "a number above 0 and at most 1")
        threshold = self.static_threshold
        in_range = is_number(threshold) and -1 <= threshold <= _NOTHING_IS_STATIC
        require("static_threshold", threshold, in_range, "a number from -1 to 2 (nothing is above 1)")
        for name, least in (("prune_layer", 0), ("neighbours", 1), ("min_cluster_tokens", 0)):
            value = getattr(self, name)
            in_range = is_integer(value) and least <= value <= LARGEST
            require(name, value, in_range, f"an integer of {least} or more, {LARGEST} at most")
        require("selection", self.selection, self.selection in SELECTIONS, '"group" or "global"')

    @classmethod
    def disabled(cls) -> PruneConfig:
        """Settings under which every stage is the identity: nothing is merged, nothing is dropped."""
        return cls(static_threshold=_NOTHING_IS_STATIC, cluster_ratio=1.0, keep_ratio=1.0)

    @property
    def is_disabled(self) -> bool:
        """Whether every stage is the identity."""
        return self.static_threshold > 1 and self.cluster_ratio == 1 and self.keep_ratio == 1

    @classmethod
    def for_depth(cls, layers: int) -> PruneConfig:
        """Defaults for a language model of so many layers; see `scaled_to`."""
        return cls().scaled_to(layers)

    def scaled_to(self, layers: int) -> PruneConfig:
        """Read prune_layer as a layer of the paper's 32-layer model and scale it to a model of another depth.

        The result is int(prune_layer * layers / 32): the default 10 becomes 8 of 28 layers and 25 of 80.

        Raises:
            InvalidValueError: when layers is not a positive integer.
        """
        require("layers", layers, is_integer(layers) and layers >= 1, "an integer of 1 or more")
        return replace(self, prune_layer=self.prune_layer * layers // PAPER_LAYERS)

    def segment_counts(self, max_frames: int) -> npt.NDArray[np.int64]:
        """Clusters that the frames fall into before refinement, by number of frames.

        Returns:
            int64 [max_frames + 1]; entry n is max(1, int(n * segment_ratio)), entry 0 is 0.
        """
        return _at_least_one(_scaled_counts(max_frames, self.segment_ratio))

    def cluster_counts(self, max_tokens: int) -> npt.NDArray[np.int64]:
        """Tokens that a group is merged into, by its number of tokens.

        Returns:
            int64 [max_tokens + 1]; entry n is max(1, int(n * cluster_ratio)), but n up to min_cluster_tokens.
        """
        import numpy as np

        counts = _at_least_one(_scaled_counts(max_tokens, self.cluster_ratio))
        sizes = np.arange(len(counts), dtype=np.int64)
        return np.where(sizes <= self.min_cluster_tokens, sizes, counts)

    def keep_counts(self, max_tokens: int) -> npt.NDArray[np.int64]:
        """Tokens that are kept inside the language model, by number of merged tokens.

        Returns:
            int64 [max_tokens + 1]; entry n is int(n * keep_ratio).
        """
        return _scaled_counts(max_tokens, self.keep_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruneConfig:
        """Make settings of what `to_dict` returned; absent settings take their defaults.

        Raises:
            InvalidValueError: when values is not a mapping, has an unknown key, or a setting is out of range.
        """
        if not isinstance(values, Mapping):
            raise InvalidValueError(f"prune settings must be a mapping of names to values, not {values!r}.")
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            names = ", ".join(unknown)
            raise InvalidValueError(f"unknown prune setting {names}: known are {', '.join(known)}.")
        return cls(**values)


def _scaled_counts(maximum: int, ratio: float) -> npt.NDArray[np.int64]:
    """Count int(n * ratio) in float64 for n = 0..maximum.

    Counts are looked up in a table everywhere, in graphs as well: a float32 product is now and then on the
    other side of an integer.
    """
    import numpy as np

    require("the largest count", maximum, maximum >= 0, "0 or more")
    return (np.arange(maximum + 1, dtype=np.float64) * ratio).astype(np.int64)


def _at_least_one(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Raise every count but the first to 1: what has items has a cluster."""
    counts[1:] = counts[1:].clip(min=1)
    return counts
