"""The three data-dependent steps of PruneVid as operators of the ONNX domain `prunevid`.

Each operator has a body of standard ONNX operators (a model-local function), so a graph that uses it runs on
any ONNX runtime. A backend with a kernel of its own drops the bodies and keeps the nodes. The oracle of all
three is `prunevid.methods`.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import GraphBuilder, build_function, build_graph

from prunevid.export.graphs.counting import count_in_row, earlier

DOMAIN = "prunevid"
DOMAIN_VERSION = 1

# Stands for "no distance" where a minimum is taken: larger than any squared distance of finite float32 features.
_FAR = 3.0e38
# Logarithm of a score of zero: below that of any token that is apart from a denser one.
_NO_SCORE = -1.0e38
# Stands for "no token" where the largest scores are taken: below any finite score.
_LOWEST = -3.4028234663852886e38


def dpc_knn(opset: int, neighbours: int) -> ir.Function:
    """`DpcKnn(squared_distances, valid, clusters) -> cluster`: density-peak clustering of padded groups.

    Inputs: squared_distances float32 [G, N, N] (divided by the channel count, zero diagonal), valid bool [G, N],
    clusters int64 [G]. Output: cluster int64 [G, N], the cluster number of each token within its group, -1 where
    invalid; clusters are numbered by decreasing density times delta. A group whose cluster count reaches its
    token count keeps its order. Source: PruneVid (arXiv 2412.16117), section 3.2.
    """

    def body(op: Any, squared_distances: ir.Value, valid: ir.Value, clusters: ir.Value) -> ir.Value:
        tokens = op.Shape(valid, start=1, end=2)
        pair_valid = op.And(op.Unsqueeze(valid, [1]), op.Unsqueeze(valid, [2]))
        squared = op.Where(pair_valid, squared_distances, _FAR)
        mean = _mean_of_nearest(op, squared, tokens, neighbours)
        delta = _squared_distance_to_denser(op, squared, pair_valid, mean, tokens)
        # The logarithm of density times delta: the same order, where float32 exp() would round densities together.
        score = op.Sub(op.Mul(op.Log(delta), 0.5), mean)
        score = op.Where(valid, op.Where(op.Greater(delta, 0.0), score, _NO_SCORE), -_FAR)
        _, order = op.TopK(score, tokens, axis=1, largest=1, sorted=1, _outputs=2)
        position = op.Expand(op.Range(0, op.Squeeze(tokens, [0]), 1), op.Shape(order))
        rank = op.ScatterElements(position, order, position, axis=1)
        nearest = _nearest_centre(op, squared, order, position, clusters)
        limit = op.Unsqueeze(clusters, [1])
        cluster = op.Where(op.Less(rank, limit), rank, nearest)
        counted = op.Cast(valid, to=ir.DataType.FLOAT)
        in_order = op.Cast(count_in_row(op, counted, tokens), to=ir.DataType.INT64)
        size = op.Cast(op.ReduceSum(counted, [1], keepdims=1), to=ir.DataType.INT64)
        keeps_all = op.GreaterOrEqual(limit, size)
        return op.Where(valid, op.Where(keeps_all, in_order, cluster), -1)

    return build_function(
        body,
        [ir.Value(name="squared_distances"), ir.Value(name="valid"), ir.Value(name="clusters")],
        domain=DOMAIN,
        name="DpcKnn",
        # The count of neighbours is fixed when the graph is written; kernels read it from the node's attribute.
        attributes=[ir.AttrInt64("neighbours", neighbours)],
        opset_imports={"": opset},
    )


def _mean_of_nearest(op: Any, squared: ir.Value, tokens: ir.Value, neighbours: int) -> ir.Value:
    """Mean of each token's smallest squared distances [G, N], itself included, over as many as there are."""
    nearest, _ = op.TopK(squared, op.Min(tokens, [neighbours]), axis=2, largest=0, sorted=0, _outputs=2)
    near = op.Less(nearest, _FAR)
    total = op.ReduceSum(op.Where(near, nearest, 0.0), [2], keepdims=0)
    count = op.ReduceSum(op.Cast(near, to=ir.DataType.FLOAT), [2], keepdims=0)
    return op.Div(total, op.Max(count, 1.0))


def _squared_distance_to_denser(
    op: Any, squared: ir.Value, pair_valid: ir.Value, mean: ir.Value, tokens: ir.Value
) -> ir.Value:
    """Smallest squared distance to a denser token [G, N]; the group's largest where none is denser.

    Density is exp(-mean), so the denser token has the smaller mean; of equals, the earlier one counts as denser.
    """
    other, own = op.Unsqueeze(mean, [1]), op.Unsqueeze(mean, [2])
    first = op.And(op.Equal(other, own), earlier(op, tokens))
    denser = op.And(pair_valid, op.Or(op.Less(other, own), first))
    smallest = op.ReduceMin(op.Where(denser, squared, _FAR), [2], keepdims=0)
    largest = op.ReduceMax(op.Where(pair_valid, squared, 0.0), [1, 2], keepdims=0)
    return op.Where(op.Less(smallest, _FAR), smallest, op.Unsqueeze(largest, [1]))


def _nearest_centre(op: Any, squared: ir.Value, order: ir.Value, position: ir.Value, clusters: ir.Value) -> ir.Value:
    """Cluster number of the centre nearest to each token [G, N]; ties go to the lower number."""
    columns = op.Expand(op.Unsqueeze(order, [1]), op.Shape(squared))
    to_ranked = op.GatherElements(squared, columns, axis=2)
    is_centre = op.Less(op.Unsqueeze(position, [1]), op.Unsqueeze(clusters, [1, 2]))
    return op.ArgMin(op.Where(is_centre, to_ranked, _FAR), axis=2, keepdims=0)


def refine_segments(opset: int) -> ir.Function:
    """`RefineSegments(labels) -> segment`: cluster labels of frames to contiguous segments.

    Input: labels int64 [T]. Output: segment int64 [T], non-decreasing from 0. A run of equal labels is kept if it
    is the longest of its label and longer than one frame; the frames of all other runs join, left to right, the
    longer of the runs beside them (ties: left). Source: PruneVid (arXiv 2412.16117), section 3.2.
    """

    def body(op: Any, labels: ir.Value) -> ir.Value:
        length = _run_lengths(op, labels)
        same_label = op.Equal(op.Unsqueeze(labels, [0]), op.Unsqueeze(labels, [1]))
        longest = op.ReduceMax(op.Where(same_label, op.Unsqueeze(length, [0]), 0), [1], keepdims=0)
        kept = op.And(op.Equal(length, longest), op.Greater(length, 1))
        right_label, right_length = _next_kept(op, labels, length, kept)
        refined = _join_left_to_right(op, labels, kept, right_label, right_length)
        return _run_numbers(op, refined)

    return build_function(
        body, [ir.Value(name="labels")], domain=DOMAIN, name="RefineSegments", opset_imports={"": opset}
    )


def _run_numbers(op: Any, labels: ir.Value) -> ir.Value:
    """Number of the run of equal labels that each frame belongs to, int64 [T], from 0."""
    previous = op.Concat(op.Slice(labels, [0], [1], [0]), op.Slice(labels, [0], [-1], [0]), axis=0)
    changed = op.Cast(op.Not(op.Equal(labels, previous)), to=ir.DataType.INT64)
    # The first frame changes nothing, so the changes after the first up to each frame are those not after it.
    later = earlier(op, op.Shape(labels))
    return op.ReduceSum(op.Where(op.Transpose(later, perm=[1, 0]), 0, op.Unsqueeze(changed, [0])), [1], keepdims=0)


def _run_lengths(op: Any, labels: ir.Value) -> ir.Value:
    """Length in frames of the run that each frame belongs to, int64 [T]."""
    run = _run_numbers(op, labels)
    same_run = op.Equal(op.Unsqueeze(run, [0]), op.Unsqueeze(run, [1]))
    return op.ReduceSum(op.Cast(same_run, to=ir.DataType.INT64), [1], keepdims=0)


def _next_kept(op: Any, labels: ir.Value, length: ir.Value, kept: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Label and length of the first kept run at or after each frame, int64 [T] each; length 0 where none is."""
    index = op.Range(0, op.Squeeze(op.Shape(labels), [0]), 1)
    ahead = op.And(op.Unsqueeze(kept, [0]), op.GreaterOrEqual(op.Unsqueeze(index, [0]), op.Unsqueeze(index, [1])))
    ahead = op.Cast(ahead, to=ir.DataType.INT64)
    first = op.ArgMax(ahead, axis=1, keepdims=0)
    exists = op.ReduceMax(ahead, [1], keepdims=0)
    return op.Gather(labels, first), op.Mul(op.Gather(length, first), exists)


def _join_left_to_right(
    op: Any, labels: ir.Value, kept: ir.Value, right_label: ir.Value, right_length: ir.Value
) -> ir.Value:
    """Labels int64 [T] after every dissolved frame took the label of the longer run beside it."""

    def step(op: Any, left_label: Any, left_length: Any, label: Any, keep: Any, right: Any, right_size: Any) -> Any:
        goes_left = op.And(op.Greater(left_length, 0), op.GreaterOrEqual(left_length, right_size))
        # With nothing kept anywhere, the first frame keeps its own label and all others join it.
        beside = op.Where(op.Greater(right_size, 0), right, label)
        chosen = op.Where(keep, label, op.Where(goes_left, left_label, beside))
        grown = op.Add(op.Where(op.Equal(chosen, left_label), left_length, 0), 1)
        return op.Identity(chosen), grown, op.Identity(chosen)

    int64, boolean = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)

    def scalar(name: str, kind: ir.TensorType) -> ir.Value:
        return ir.Value(name=name, type=kind, shape=ir.Shape([]))

    states = [scalar("left_label", int64), scalar("left_length", int64)]
    frames = [
        scalar("label", int64),
        scalar("keep", boolean),
        scalar("right", int64),
        scalar("right_size", int64),
    ]
    outputs = [scalar("chosen", int64), scalar("grown", int64), scalar("refined", int64)]
    loop = build_graph(
        step,
        [*states, *frames],
        outputs,
        opset_imports=dict(op.builder.graph.opset_imports),
        parent=op.builder,
    )
    first = op.Squeeze(op.Slice(labels, [0], [1], [0]), [0])
    _, _, refined = op.Scan(
        first, op.Constant(value_int=0), labels, kept, right_label, right_length,
        body=loop, num_scan_inputs=4, _outputs=3,
    )  # fmt: skip
    return refined


def group_topk(opset: int, largest: int) -> ir.Function:
    """`GroupTopK(scores, group, quota, most) -> marks`: the best tokens of every group.

    Inputs: scores float32 [V], group int64 [V], ascending, quota int64 [G], most int64 [1], a number that no quota
    exceeds. Output: marks int64 [V], 1 for the quota[g] tokens of group g with the largest scores, ties to the lower
    index, else 0. One group may have any number of tokens; of several, none has more than `largest`. So nothing is
    sorted but a group's tokens, and only as far as quotas go. Source: PruneVid, section 3.3.
    """

    def body(op: Any, scores: ir.Value, group: ir.Value, quota: ir.Value, most: ir.Value) -> ir.Value:
        # Of group rather than of scores, which may be a slice: so the count has a bound that can be told beforehand.
        tokens, groups = op.Shape(group), op.Shape(quota)
        width = op.Where(op.Equal(groups, [1]), tokens, op.Min(tokens, [largest]))
        shape = op.Concat(groups, width, axis=0)
        place = op.Sub(op.Range(0, op.Squeeze(tokens, [0]), 1), op.Gather(_first_of_group(op, group, groups), group))
        cell = op.Add(op.Mul(group, width), place)
        empty = op.Expand(op.Constant(value=ir.tensor([_LOWEST], dtype=ir.DataType.FLOAT)), op.Mul(groups, width))
        table = op.Reshape(op.ScatterElements(empty, cell, scores, axis=0), shape)
        ranks = op.Max(op.Min(width, most), [1])
        _, order = op.TopK(table, ranks, axis=1, largest=1, sorted=1, _outputs=2)
        kept = op.Less(op.Range(0, op.Squeeze(ranks, [0]), 1), op.Unsqueeze(quota, [1]))
        marks = op.ScatterElements(op.Expand(0, shape), order, op.Cast(kept, to=ir.DataType.INT64), axis=1)
        return op.Gather(op.Reshape(marks, [-1]), cell)

    return build_function(
        body,
        [ir.Value(name="scores"), ir.Value(name="group"), ir.Value(name="quota"), ir.Value(name="most")],
        domain=DOMAIN,
        name="GroupTopK",
        opset_imports={"": opset},
    )


def _first_of_group(op: Any, group: ir.Value, groups: ir.Value) -> ir.Value:
    """Index of the first token of every group, int64 [G]: as many as there are in the groups before it."""
    numbers = op.Range(0, op.Squeeze(groups, [0]), 1)
    smaller = op.Less(op.Unsqueeze(group, [0]), op.Unsqueeze(numbers, [1]))
    # Counted in float32, which is exact and which runtimes are fast at.
    count = op.ReduceSum(op.Cast(smaller, to=ir.DataType.FLOAT), [1], keepdims=0)
    return op.Cast(count, to=ir.DataType.INT64)


def new_graph(name: str, opset: int, domains: tuple[str, ...] = ()) -> tuple[ir.Graph, Any]:
    """An empty graph for `opset` (with version 1 of `domains`) and the op builder that writes into it."""
    graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": opset, **dict.fromkeys(domains, 1)})
    return graph, builder_for(graph)


def builder_for(graph: ir.Graph) -> Any:
    """An op builder that appends nodes to `graph`: `op.Add(x, y)` adds an Add node and returns its output."""
    return GraphBuilder(graph).op


def to_model(graph: ir.Graph, op: Any) -> ir.Model:
    """The finished graph with the functions that it calls, as a model. IR version 10 is what opset 20 shipped with."""
    model = ir.Model(graph, ir_version=10, producer_name="prunevid", functions=list(op.functions.values()))
    # The tracer notes where in its sources every node comes from: paths of this machine, megabytes of them.
    ClearMetadataAndDocStringPass()(model)
    return model
