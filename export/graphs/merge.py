"""Merging as a graph, as it is for every merge method: the settings come in, the features of a video become its tokens.

What stands between them is the method's (`MergeGraph`). All of it is plain operators in both dialects, as the tower of
vision_merge. The oracle is `prunevid.methods.merging.merge_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import onnx_ir as ir

from prunevid.config import PruneConfig
from prunevid.export.graphs import operators
from prunevid.export.graphs.dialects import add_output
from prunevid.methods.catalog import METHODS

OPSET = 20


@dataclass(frozen=True)
class MergedValues:
    """What a merge yields.

    Attributes:
        tokens: float32 [T * N, C], of which the first `count` are meant.
        group: int64 [T * N], ascending, of which the first `count` are meant.
        count: int64 [1], the merged tokens that there are.
        patch_to_token: int64 [T, N], where each patch went.
        segment: int64 [T], the segment of each frame.
    """

    tokens: ir.Value
    group: ir.Value
    count: ir.Value
    patch_to_token: ir.Value
    segment: ir.Value


class MergeGraph(Protocol):
    """What a method's module in `prunevid.export.graphs.methods` has."""

    def merge(self, op: Any, features: ir.Value, settings: Mapping[str, ir.Value], prune: PruneConfig) -> MergedValues:
        """Append the merge of features to the graph behind `op`.

        Args:
            op: the builder.
            features: [T, N, C], of any floating-point type. Shapes may depend on T, N and C alone.
            settings: the graph's inputs that carry settings, by name (`PruneConfig.graph_inputs`).
            prune: the settings at export, for what is fixed then.
        """
        ...


@dataclass(frozen=True)
class FeatureShape:
    """Features of one frame: so many tokens and channels, of the bundle's element type."""

    tokens: int
    channels: int
    dtype: ir.DataType

    def of(self, frames: str) -> list[int | str]:
        """Shape of the features of `frames` frames."""
        return [frames, self.tokens, self.channels]


def build_merge(shape: FeatureShape, prune: PruneConfig) -> ir.Model:
    """The merge graph: what vision_merge does behind its tower, for features that are there already. No weights.

    Inputs: features [T, N, C] and the inputs that carry the settings. Outputs: video_tokens [T * N, C] and token_group
    int64 [T * N], of which the first token_count int64 [1] are meant, patch_to_token int64 [T, N], frame_segment
    int64 [T].
    """
    graph, op = operators.new_graph("merge", OPSET, (operators.DOMAIN,))
    features = op.builder.input("features", shape.dtype, shape.of("frames"))
    add_merged(op, features, declare_settings(op, prune, shape.tokens), shape, prune)
    return operators.to_model(graph, op)


def declare_settings(op: Any, prune: PruneConfig, tokens: int) -> dict[str, ir.Value]:
    """Declare the graph inputs that carry the settings, for frames of so many tokens."""
    return {
        each.name: op.builder.input(each.name, ir.DataType.from_numpy(np.dtype(each.dtype)), [*each.shape(tokens)])
        for each in prune.graph_inputs
    }


def add_merged(
    op: Any, features: ir.Value, settings: Mapping[str, ir.Value], shape: FeatureShape, prune: PruneConfig
) -> None:
    """Append the merge of all frames' features, and declare what it yields as the graph's outputs."""
    method = cast(MergeGraph, import_module(METHODS[prune.method].graph))
    merged = method.merge(op, features, settings, prune)
    int64 = ir.DataType.INT64
    add_output(op, op.Cast(merged.tokens, to=shape.dtype), "video_tokens", shape.dtype, ["patches", shape.channels])
    add_output(op, merged.group, "token_group", int64, ["patches"])
    add_output(op, merged.count, "token_count", int64, [1])
    add_output(op, merged.patch_to_token, "patch_to_token", int64, ["frames", shape.tokens])
    add_output(op, merged.segment, "frame_segment", int64, ["frames"])
