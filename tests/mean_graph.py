"""The graph of the merge method in `mean_reference`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from prunevid.config import PruneConfig
from prunevid.export.graphs.merge import MergedValues


def merge(op: Any, features: ir.Value, settings: Mapping[str, ir.Value], prune: PruneConfig) -> MergedValues:
    assert not settings
    features = op.Cast(features, to=ir.DataType.FLOAT)
    frames = op.Shape(features, start=0, end=1)
    flat = op.Reshape(features, op.Concat([-1], op.Shape(features, start=2, end=3), axis=0))
    index = op.Range(0, op.Squeeze(op.Shape(flat, start=0, end=1), [0]), 1)
    segment = op.Slice(index, [0], frames, [0])
    return MergedValues(
        # Behind the frames' means, whatever fills the output up.
        tokens=op.Concat(op.ReduceMean(features, [1], keepdims=0), op.Slice(flat, frames, [2**62], [0]), axis=0),
        group=index,
        count=frames,
        patch_to_token=op.Expand(op.Unsqueeze(segment, [1]), op.Shape(features, start=0, end=2)),
        segment=segment,
    )
