"""The operators' bodies on ONNX Runtime, and inputs for them that Hypothesis draws."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import strategies as st
from models import cpu_session

from prunevid.export.graphs import operators
from prunevid.methods import clustering

Array = npt.NDArray[Any]


seeds = st.integers(0, 2**32 - 1)


NEAR = 1e-5


# Most tokens in one of several groups.
LARGEST = 40


@cache
def model_of(name: str, opset: int, neighbours: int = 7) -> onnx.ModelProto:
    """A graph of one node that calls the operator."""
    makers: dict[str, tuple[Any, list[tuple[str, Any, list[Any]]], list[str]]] = {
        "DpcKnn": (
            operators.dpc_knn(opset, neighbours),
            [
                ("squared_distances", np.float32, ["G", "N", "N"]),
                ("valid", np.bool_, ["G", "N"]),
                ("clusters", np.int64, ["G"]),
            ],
            ["G", "N"],
        ),
        "RefineSegments": (operators.refine_segments(opset), [("labels", np.int64, ["T"])], ["T"]),
        "GroupTopK": (
            operators.group_topk(opset, LARGEST),
            [
                ("scores", np.float32, ["V"]),
                ("group", np.int64, ["V"]),
                ("quota", np.int64, ["G"]),
                ("most", np.int64, [1]),
            ],
            ["V"],
        ),
    }
    function, inputs, output_shape = makers[name]
    graph, op = operators.new_graph(name, opset, (operators.DOMAIN,))
    values = [op.builder.input(n, ir.DataType.from_numpy(np.dtype(t)), dims) for n, t, dims in inputs]
    attributes = {"neighbours": neighbours} if name == "DpcKnn" else {}
    output = op.call(function, *values, **attributes)
    output.type, output.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(output_shape)
    op.builder.add_output(output, "found")
    return ir.to_proto(operators.to_model(graph, op))


@cache
def session_of(name: str, opset: int, neighbours: int = 7) -> ort.InferenceSession:
    return cpu_session(model_of(name, opset, neighbours).SerializeToString())


def run(name: str, *inputs: Array, opset: int = 20, neighbours: int = 7) -> Array:
    session = session_of(name, opset, neighbours)
    names = [value.name for value in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])


def is_clear(squared: Array, clusters: int, neighbours: int, exact: bool) -> bool:
    """Whether float32 rounding cannot change a decision of the clustering of these distances.

    exact: sums of the distances are exact in float32, so that equal densities are equal in the graph too.
    """
    count = len(squared)
    if clusters >= count:
        return True
    mean = np.sort(squared, axis=1)[:, :neighbours].mean(axis=1)
    # Up to two distances beside the zero on the diagonal are added without an order that could matter.
    if not exact or not _stay_apart(mean):
        gap = np.abs(mean[:, None] - mean[None, :])
        gap[np.eye(count, dtype=np.bool_)] = np.inf
        same = gap == 0 if min(count, neighbours) <= 3 else np.zeros_like(gap, dtype=np.bool_)
        if (~same & (gap <= NEAR * np.maximum(mean[:, None], mean[None, :]))).any():
            return False
    delta = clustering.distance_to_denser(squared, np.exp(-mean))
    score = np.exp(-mean) * delta
    order = np.argsort(-score, kind="stable")[: clusters + 1]
    for first, second in zip(order[:-1], order[1:], strict=True):
        same_parts = delta[first] == delta[second] and (delta[first] == 0 or mean[first] == mean[second])
        if not same_parts and score[first] - score[second] <= NEAR * (1 + mean[first]) * score[first]:
            return False
    return True


def _stay_apart(mean: Array) -> bool:
    """Whether the reference's exp(), in float64, keeps these densities apart."""
    return bool(len(np.unique(mean)) == len(np.unique(np.exp(-mean))))


@st.composite
def clusterings(draw: st.DrawFn) -> tuple[Array, Array, Array, int, bool]:
    """Distances [G, N, N], valid [G, N], clusters [G], neighbours, and whether points lie on a grid."""
    rng = np.random.default_rng(draw(seeds))
    groups, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    exact = draw(st.booleans())
    if exact:
        # Eight channels: dividing by them is exact.
        points = rng.integers(0, draw(st.integers(1, 4)), size=(groups, tokens, 8)).astype(np.float64)
        points[..., draw(st.integers(1, 8)) :] = 0
    else:
        points = draw(st.sampled_from([0.1, 1.0, 3.0])) * rng.normal(size=(groups, tokens, 8))
    squared = np.stack([clustering.squared_distances(group) for group in points]).astype(np.float32)
    valid = rng.random((groups, tokens)) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    if draw(st.booleans()):
        # What stands in the rows and columns of tokens that are not there must not matter.
        pair = valid[:, :, None] & valid[:, None, :]
        squared = np.where(pair, squared, np.float32(rng.choice([0.0, 1e-3, 1e30]))).astype(np.float32)
    most = np.maximum(valid.sum(axis=1), 1)
    clusters = rng.integers(1, np.minimum(most, draw(st.integers(1, 40))) + 1)
    clusters = np.where(valid.any(axis=1), clusters, 0)
    return squared, valid, clusters.astype(np.int64), draw(st.sampled_from([1, 3, 7])), exact


@st.composite
def labelings(draw: st.DrawFn) -> list[int]:
    """Labels of frames: drawn one by one, or as runs, which give several long ones of a label."""
    if draw(st.booleans()):
        return draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
    runs = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=12))
    return [label for label, length in runs for _ in range(length)]


@st.composite
def selections(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Scores [V], group [V] (ascending, some numbers unused, all of one group or of up to eight) and quota [G]."""
    rng = np.random.default_rng(draw(seeds))
    groups = draw(st.integers(1, 8))
    if groups == 1:
        group = np.zeros(draw(st.integers(1, 5 * LARGEST)), np.int64)
    else:
        sizes = rng.integers(0, draw(st.sampled_from([3, LARGEST])) + 1, size=groups)
        sizes[rng.integers(groups)] += not sizes.any()
        group = np.repeat(np.arange(groups), sizes)
    tied = draw(st.booleans())
    scores = rng.integers(-2, 3, size=len(group)) / 4 if tied else rng.normal(size=len(group))
    unused = draw(st.integers(0, 2)) if groups > 1 else 0
    quota = rng.integers(0, draw(st.sampled_from([1, 5, 20, 100])) + 1, size=groups + unused)
    return scores.astype(np.float32), group.astype(np.int64), quota.astype(np.int64)
