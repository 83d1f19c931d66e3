"""A graph that also computes what goes into its linear layers: outputs `watched_*.INDEX` beside its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from prunevid.calibration.quantize.linears import Linear
from prunevid.calibration.quantize.rounding.compensate import MOMENT_BLOCK

# Every so many rows one is sampled; a prime, so that no pattern of frames is met in step.
_EVERY = 37


def watch_input(graph: ir.Graph, linear: Linear, index: int) -> None:
    """Declare outputs that tell of the input [..., K] of a linear layer, as R rows of K channels.

    Every one is float32 but the count. `watched_total.INDEX` [K]: sums of magnitudes; `watched_largest.INDEX` [K]:
    largest magnitudes; `watched_count.INDEX` int64 [1]: R; `watched_rows.INDEX` [R / 37, K]: a sample of rows;
    `watched_moments.INDEX` [ceil(K / 128), 128, 128]: the sum over rows of x x^T / |x|^2, of every 128 channels among
    themselves. R may be 0: a prefill without new frames runs the graph as well.
    """
    source = linear.node.inputs[0]
    assert source is not None  # find_linears says so
    _Watch(graph, index).add(source, linear.weight.shape[0])


class _Watch:
    """Adds nodes to a graph whose outputs and constants are named for one watched input."""

    def __init__(self, graph: ir.Graph, index: int) -> None:
        self._graph = graph
        self._index = index

    def add(self, source: ir.Value, inputs: int) -> None:
        """Watch `source` as rows of so many inputs."""
        flat = self._node("Reshape", source, self._constant("shape", [-1, inputs]))
        # In half precision sums would overflow.
        rows = self._node("Cast", flat, to=ir.DataType.FLOAT.value)
        magnitude = self._node("Abs", rows)
        # Nothing is the largest of no rows.
        zero = self._constant("zero", np.zeros((1, inputs), np.float32))
        largest = self._node("Concat", magnitude, zero, axis=0)
        first_axis = self._constant("axis", [0])
        ends = [self._constant("start", [0]), self._constant("end", [2**62]), first_axis]
        sample = self._node("Slice", rows, *ends, self._constant("step", [_EVERY]))
        self._output(self._node("ReduceSum", magnitude, first_axis, keepdims=0), "total", [inputs])
        self._output(self._node("ReduceMax", largest, first_axis, keepdims=0), "largest", [inputs])
        self._output(self._node("Shape", flat, start=0, end=1), "count", [1], ir.DataType.INT64)
        self._output(sample, "rows", [f"sampled.{self._index}", inputs])
        self._output(self._moments(rows, inputs), "moments", [-(-inputs // MOMENT_BLOCK), MOMENT_BLOCK, MOMENT_BLOCK])

    def _moments(self, rows: ir.Value, inputs: int) -> ir.Value:
        squares = self._node("ReduceSumSquare", rows, self._constant("last_axis", [1]))
        # A row of zeros stays one.
        length = self._node("Sqrt", self._node("Max", squares, self._constant("least", np.array([1e-30], np.float32))))
        units = self._node("Div", rows, length)
        whole = self._node("Pad", units, self._constant("pads", [0, 0, 0, -inputs % MOMENT_BLOCK]))
        count = -(-inputs // MOMENT_BLOCK)
        blocks = self._node("Reshape", whole, self._constant("blocks", [0, count, MOMENT_BLOCK]))
        by_block = self._node("Transpose", blocks, perm=[1, 0, 2])
        by_channel = self._node("Transpose", blocks, perm=[1, 2, 0])
        return self._node("MatMul", by_channel, by_block)

    def _node(self, kind: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        node = ir.node(kind, inputs, attributes)
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, what: str, values: list[int] | np.ndarray) -> ir.Value:
        tensor = ir.tensor(np.asarray(values), name=f"watched_{what}.{self._index}")
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _output(
        self, value: ir.Value, what: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        value.name, value.type, value.shape = f"watched_{what}.{self._index}", ir.TensorType(dtype), ir.Shape(shape)
        self._graph.outputs.append(value)
