"""The merge methods there are. Nothing heavy is imported: settings are checked against these names.

A merge method is two modules and an entry here. Its reference is the definition, in NumPy; its graph does the same as
ONNX nodes. How many tokens a question keeps of what merging leaves is the same behind all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from prunevid.config import PruneConfig
    from prunevid.methods.arrays import Floats
    from prunevid.methods.merging import MergedTokens

__all__ = ["METHODS", "Method", "Reference", "reference_of"]


class Method(NamedTuple):
    """A merge method, by what must be known of it before it is loaded.

    Attributes:
        settings: those of `PruneConfig` that it reads. Graphs declare the inputs that carry them in this order.
        reference: the module that is its `Reference`.
        graph: the module of `prunevid.export` that writes its graph, see `prunevid.export.graphs.merge.MergeGraph`.
    """

    settings: tuple[str, ...]
    reference: str
    graph: str


METHODS = {
    "prunevid": Method(
        ("segment_ratio", "cluster_ratio", "min_cluster_tokens", "static_threshold", "neighbours"),
        "prunevid.methods.prunevid",
        "prunevid.export.graphs.methods.prunevid",
    ),
}
"""The merge methods, by name."""


class Reference(Protocol):
    """What a method's module in `prunevid.methods` has.

    Whatever a method does, merged tokens are in groups, among which they compete to be kept: at most two groups a
    frame, none of more tokens than a frame has, numbered in the order of the sequence.
    """

    def merge(self, video: Floats, config: PruneConfig) -> MergedTokens:
        """Merge the tokens of a video, float64 [T, N, C], finite; the merged tokens are float64, too."""
        ...


def reference_of(name: str) -> Reference:
    """The reference of the merge method of that name.

    Raises:
        KeyError: when there is none; `PruneConfig` has refused such a name.
    """
    return cast(Reference, import_module(METHODS[name].reference))
