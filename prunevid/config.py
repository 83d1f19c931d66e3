"""Settings of the method, and the token counts that follow from them.

NumPy is imported inside the functions that need it: the command line reads the defaults from here to print
its help, and should not wait for NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from prunevid.errors import InvalidValueError
from prunevid.methods.catalog import METHODS
from prunevid.setting import GraphInput, Off, Setting, declare
from prunevid.validation import LARGEST, Rule, is_integer, is_number, require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["PAPER_LAYERS", "SETTINGS", "PruneConfig"]

PAPER_LAYERS = 32
"""Depth of the 7B model that the paper's prune_layer of 10 belongs to."""

_SELECTIONS = ("group", "global")

_SEGMENT_COUNTS = GraphInput("segment_counts", "int64", "frames", lambda config, most: config.segment_counts(most))
_CLUSTER_COUNTS = GraphInput("cluster_counts", "int64", "tokens", lambda config, most: config.cluster_counts(most))
_STATIC_THRESHOLD = GraphInput("static_threshold", "float32", None, lambda config, _: config.static_threshold)

_RATIO = Rule("a number above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1)
_THRESHOLD = Rule("a number from -1 to 2 (nothing is above 1)", lambda value: is_number(value) and -1 <= value <= 2)
_KEEPS_ALL = Off(1.0, lambda value: value == 1)
_NOTHING_IS_STATIC = Off(2.0, lambda value: value > 1)


def _at_least(least: int) -> Rule:
    return Rule(
        f"an integer of {least} or more, {LARGEST} at most",
        lambda value: is_integer(value) and least <= value <= LARGEST,
    )


@dataclass(frozen=True)
class PruneConfig:
    """Settings of the PruneVid method; the defaults are the paper's (arXiv 2412.16117, section 4).

    What else is known of a setting (bounds, help, whether it is fixed at export, what carries it into the graphs, how
    tuning searches it) is declared with its field, and found in `SETTINGS`.

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
        method: the merge method, by its name in `prunevid.methods.catalog.METHODS`.

    Raises:
        InvalidValueError: when a setting is out of range, or set where the merge method has no use for it; the
            sentence names it.
    """

    segment_ratio: float = declare(
        0.25,
        "T frames fall into at most int(T * gamma) segments",
        _RATIO,
        symbol="gamma",
        graph_input=_SEGMENT_COUNTS,
        search=(0.125, 0.25, 0.5),
    )
    static_threshold: float = declare(
        0.8,
        "mean cosine similarity above which a position is static",
        _THRESHOLD,
        symbol="tau",
        graph_input=_STATIC_THRESHOLD,
        off=_NOTHING_IS_STATIC,
        search=(0.7, 0.8, 0.9),
    )
    cluster_ratio: float = declare(
        0.5,
        "a group of n tokens is merged into int(n * beta)",
        _RATIO,
        symbol="beta",
        graph_input=_CLUSTER_COUNTS,
        off=_KEEPS_ALL,
        search=(0.25, 0.5, 1.0),
    )
    keep_ratio: float = declare(
        0.4,
        "int(n * alpha) of a group's merged tokens are kept in the language model",
        _RATIO,
        symbol="alpha",
        off=_KEEPS_ALL,
        search=(0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0),
    )
    prune_layer: int = declare(
        10,
        "last layer (from 0) that sees all merged tokens",
        _at_least(0),
        symbol="M",
        fixed=True,
        search="bundles",
    )
    neighbours: int = declare(
        7,
        "neighbours that make a token's density",
        _at_least(1),
        symbol="k",
        fixed=True,
    )
    min_cluster_tokens: int = declare(
        14,
        "groups of so many tokens or fewer are not clustered",
        _at_least(0),
        graph_input=_CLUSTER_COUNTS,
    )
    selection: str = declare(
        "group",
        "keep the best of every group, or the best of all",
        Rule('"group" or "global"', lambda value: value in _SELECTIONS),
        choices=_SELECTIONS,
    )
    method: str = declare(
        "prunevid",
        "how visual tokens are merged",
        Rule(f"a known merge method ({', '.join(METHODS)})", lambda value: isinstance(value, str) and value in METHODS),
        choices=METHODS,
        fixed=True,
    )

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            require(name, value, setting.rule.fits(value), setting.rule.allowed)
        for name, setting in SETTINGS.items():
            value, off = getattr(self, name), setting.off
            unused = name in self.own_settings or value == setting.default or (off is not None and off.holds(value))
            require(name, value, unused, f"left out (the merge method {self.method} has no such setting)")

    @classmethod
    def disabled(cls) -> PruneConfig:
        """Settings under which every stage is the identity: nothing is merged, nothing is dropped."""
        return cls().turned_off()

    def turned_off(self) -> PruneConfig:
        """These settings with every stage switched off, and all that it does not take left as it is."""
        return replace(self, **{name: setting.off.value for name, setting in SETTINGS.items() if setting.off})

    @property
    def is_disabled(self) -> bool:
        """Whether every stage is the identity."""
        return all(setting.off.holds(getattr(self, name)) for name, setting in SETTINGS.items() if setting.off)

    @property
    def own_settings(self) -> tuple[str, ...]:
        """The settings that say something under this merge method, in their order."""
        merging = METHODS[self.method].settings
        others = {name for method in METHODS.values() for name in method.settings} - {*merging}
        return tuple(name for name in SETTINGS if name not in others)

    @property
    def graph_inputs(self) -> tuple[GraphInput, ...]:
        """The inputs by which these settings reach the graphs that merge, in the order in which graphs declare them."""
        carrying = (SETTINGS[name].graph_input for name in METHODS[self.method].settings)
        return tuple({each.name: each for each in carrying if each}.values())

    def graph_values(self, frames: int, tokens: int) -> dict[str, npt.NDArray[Any]]:
        """What `graph_inputs` are under these settings, by name, for so many frames of so many tokens."""
        import numpy as np

        most = {"frames": frames, "tokens": tokens, None: 0}
        return {each.name: np.asarray(each.value(self, most[each.per]), each.dtype) for each in self.graph_inputs}

    def merging(self) -> PruneConfig:
        """These settings with all that merging does not read at its default: alike for those that merge alike."""
        others = SETTINGS.keys() - {*METHODS[self.method].settings, "method"}
        return replace(self, **{name: SETTINGS[name].default for name in others})

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
        unknown = [str(name) for name in values if name not in SETTINGS]
        if unknown:
            names = ", ".join(unknown)
            raise InvalidValueError(f"unknown prune setting {names}: known are {', '.join(SETTINGS)}.")
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


SETTINGS: dict[str, Setting] = {field.name: field.metadata["setting"] for field in fields(PruneConfig)}
"""All that is known of every setting, by its name."""
