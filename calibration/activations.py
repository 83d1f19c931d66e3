"""What goes into linear layers while a bundle answers questions: magnitudes and a sample of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunevid.bundle import Bundle
from prunevid.calibration.linears import Linear, find_linears, load_graph
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.variants import VariantBackend
from prunevid.runtime.arrays import Array
from prunevid.runtime.sampling import SamplingConfig

# Every so many rows one is sampled; a prime, so that no pattern of frames is met in step.
_EVERY = 37
_MOST_ROWS = 128
_QUESTIONS = 4
_FIRST_TOKEN = SamplingConfig(max_new_tokens=1)


@dataclass(frozen=True)
class Activations:
    """Inputs of a linear layer: mean magnitude float32 [K] of every channel, and a sample of rows float32 [n, K].

    largest: magnitude float32 [K] that no input of the channel had more of.
    """

    magnitude: np.ndarray
    rows: np.ndarray
    largest: np.ndarray


def input_groups(model: ir.Model) -> dict[str, list[Linear]]:
    """Linear layers by the name of their input: query, key and value share one, as gate and up do."""
    groups: dict[str, list[Linear]] = defaultdict(list)
    for linear in find_linears(model):
        source = linear.node.inputs[0]
        assert source is not None  # find_linears says so
        groups[str(source.name)].append(linear)
    return dict(groups)


def observe(
    bundle: Bundle, name: str, videos: Sequence[AskedVideo], threads: int | None, advance: Callable[[], None]
) -> dict[str, Activations]:
    """Inputs of the linear layers of the graph ``name``, by the input's name, while questions are prefilled, pruned."""
    model = load_graph(bundle.file(bundle.manifest.graphs[name].file))
    groups = list(input_groups(model).items())
    for index, (_, linears) in enumerate(groups):
        _add_outputs(model.graph, linears[0], index)
    totals: dict[int, list[np.ndarray]] = defaultdict(list)
    counts: dict[int, list[int]] = defaultdict(list)
    rows: dict[int, list[np.ndarray]] = defaultdict(list)
    largest: dict[int, list[np.ndarray]] = defaultdict(list)

    def take(computed: Mapping[str, Array]) -> None:
        for index in range(len(groups)):
            totals[index].append(np.array(computed[f"watched_total.{index}"]))
            counts[index].append(int(np.array(computed[f"watched_count.{index}"])[0]))
            rows[index].append(np.array(computed[f"watched_rows.{index}"]))
            largest[index].append(np.array(computed[f"watched_largest.{index}"]))

    pipeline = VariantBackend(bundle, threads).variant(name, model, take)
    for video in videos:
        session = pipeline.open(video.path)
        for question in video.questions[:_QUESTIONS]:
            "".join(session.stream(question.text, _FIRST_TOKEN))
        advance()
    return {
        source: Activations(
            (np.sum(totals[index], axis=0) / sum(counts[index])).astype(np.float32),
            _thinned(rows[index]),
            np.max(largest[index], axis=0),
        )
        for index, (source, _) in enumerate(groups)
    }


def _thinned(rows: Sequence[np.ndarray]) -> np.ndarray:
    """At most 128 of all rows, evenly spread over them."""
    together = np.concatenate(rows)
    chosen = np.linspace(0, len(together) - 1, min(len(together), _MOST_ROWS)).round().astype(np.int64)
    sample: np.ndarray = together[chosen]
    return sample


def _add_outputs(graph: ir.Graph, linear: Linear, index: int) -> None:
    """Declare outputs ``watched_*.INDEX``: sum and largest of magnitudes, the count of rows, and a sample of them."""
    inputs = linear.weight.shape[0]

    def constant(what: str, values: list[int]) -> ir.Value:
        tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=f"watched_{what}.{index}")
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        return value

    flat = ir.Node("", "Reshape", [linear.node.inputs[0], constant("shape", [-1, inputs])])
    first_axis = constant("axis", [0])
    # In half precision sums would overflow.
    wide = ir.Node("", "Cast", [flat.outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    magnitude = ir.Node("", "Abs", [wide.outputs[0]])
    keep = [ir.AttrInt64("keepdims", 0)]
    total = ir.Node("", "ReduceSum", [magnitude.outputs[0], first_axis], keep)
    count = ir.Node("", "Shape", [flat.outputs[0]], [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)])
    ends = [constant("start", [0]), constant("end", [2**62]), first_axis, constant("step", [_EVERY])]
    rows = ir.Node("", "Slice", [wide.outputs[0], *ends])
    # A run without new frames has no rows, and nothing is the largest of none.
    none = ir.Node("", "Expand", [_zero(graph, index), constant("one_row", [1, inputs])])
    some = ir.Node("", "Concat", [magnitude.outputs[0], none.outputs[0]], [ir.AttrInt64("axis", 0)])
    largest = ir.Node("", "ReduceMax", [some.outputs[0], first_axis], keep)
    graph.extend([flat, wide, magnitude, total, count, rows, none, some, largest])
    described = (
        (total, "total", ir.DataType.FLOAT, [inputs]),
        (largest, "largest", ir.DataType.FLOAT, [inputs]),
        (count, "count", ir.DataType.INT64, [1]),
        (rows, "rows", ir.DataType.FLOAT, [f"sampled.{index}", inputs]),
    )
    for node, what, dtype, shape in described:
        output = node.outputs[0]
        output.name, output.type, output.shape = f"watched_{what}.{index}", ir.TensorType(dtype), ir.Shape(shape)
        graph.outputs.append(output)


def _zero(graph: ir.Graph, index: int) -> ir.Value:
    tensor = ir.tensor(np.zeros((1, 1), np.float32), name=f"watched_zero.{index}")
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
