"""What is known of a graph's values before it runs: element types, dimensions, constants, and bounds of integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import uses_external_data

# ONNX's names of element types where NumPy's differ.
_TYPE_NAMES = {"float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float4e2m1": "float4_e2m1"}
# Operators that pass every number of their first input on, or some of them.
_PASS_ON = frozenset(
    {"Cast", "CastLike", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
# Operators by which shapes are computed; where another one stands between, it is computed like any tensor.
_OF_SHAPES = _PASS_ON | frozenset(
    ["Abs", "Add", "Ceil", "Concat", "Div", "Floor", "Gather", "Max", "Min", "Mul", "Neg", "Relu", "Sub", "Where"]
)


class Bounds(NamedTuple):
    """Between which numbers all elements of an integer tensor lie, both included."""

    low: float
    high: float


UNKNOWN = Bounds(-inf, inf)


def type_name(number: int) -> str:
    """NumPy's name of an ONNX element type; empty for an unknown one."""
    if not number:
        return ""
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return _TYPE_NAMES.get(name, name)


@dataclass
class Scope:
    """What is known of the values that a graph's nodes can name, those of the graphs around it included.

    ranges: bounds of integer inputs. shapes: bounds of the dimensions of the graph's inputs. dims: dimensions of all
    values at their largest, None where that is not known. inputs: values that come when the graph runs. opset: of
    ONNX's own operators.
    """

    ranges: Mapping[str, Bounds] = field(default_factory=dict)
    shapes: Mapping[str, list[Bounds]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    dims: dict[str, list[int | None]] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto | None] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    opset: int = 0

    def inside(self, graph: onnx.GraphProto) -> Scope:
        """The scope of a graph within this one."""
        inner = Scope(
            self.ranges,
            self.shapes,
            dict(self.types),
            dict(self.dims),
            dict(self.constants),
            dict(self.producers),
            set(self.inputs),
            self.opset,
        )
        for value in (*graph.input, *graph.output, *graph.value_info):
            inner._add(value.name, value.type.tensor_type)
        inner.inputs.update(value.name for value in graph.input)
        for tensor in graph.initializer:
            inner.constants[tensor.name] = tensor
            inner.types[tensor.name] = type_name(tensor.data_type)
            inner.dims[tensor.name] = list(tensor.dims)
        for node in graph.node:
            inner.producers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant":
                inner.constants[node.output[0]] = _constant(node)
        return inner

    def _add(self, name: str, kind: onnx.TypeProto.Tensor) -> None:
        self.types[name] = type_name(kind.elem_type)
        if kind.HasField("shape"):
            self.dims[name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]

    def values(self, name: str) -> npt.NDArray[Any] | None:
        """The elements of a constant that is no weight in another file, else None."""
        tensor = self.constants.get(name)
        if tensor is None or uses_external_data(tensor):
            return None
        array: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return array

    def static(self, name: str) -> list[int] | None:
        """The dimensions of a value, None where one of them or their number is not known."""
        dims = self.dims.get(name)
        known = [dim for dim in dims or () if dim is not None]
        return known if dims is not None and len(known) == len(dims) else None

    def from_floating_input(self, name: str) -> bool:
        """Whether a value is computed as a shape is, and from an input of the graph in floating point."""
        waiting, seen = [name], set()
        while waiting:
            value = waiting.pop()
            if value in seen or value in self.constants:
                continue
            seen.add(value)
            node = self.producers.get(value)
            if node is None:
                if value in self.inputs and "float" in self.types.get(value, ""):
                    return True
            elif node.op_type in _OF_SHAPES:
                waiting += node.input
        return False

    def sizes(self, name: str) -> list[Bounds]:
        """Bounds of every dimension of a value; none where its rank is unknown."""
        if name in self.shapes:
            return self.shapes[name]
        least = 0 if name not in self.constants else inf
        return [Bounds(0, inf) if dim is None else Bounds(min(least, dim), dim) for dim in self.dims.get(name, [])]

    def bounds(self, name: str) -> Bounds:
        """Bounds of an integer tensor that is a constant, an input, or computed from shapes of such."""
        if name in self.constants:
            array = self.values(name)
            return Bounds(array.min(), array.max()) if array is not None and array.size else UNKNOWN
        node = self.producers.get(name)
        if node is None:
            return self.ranges.get(name, UNKNOWN)
        return self._computed(node)

    def _computed(self, node: onnx.NodeProto) -> Bounds:
        operator = node.op_type
        if operator in _PASS_ON:
            return self.bounds(node.input[0])
        if operator == "Shape":
            return _around(self._shape(node))
        if operator == "Gather":
            return self._gathered(node)
        if operator == "Where":
            met = self._condition(node.input[0])
            sides = [side for side, when in ((node.input[1], True), (node.input[2], False)) if met in (when, None)]
            return _around(self.bounds(side) for side in sides)
        parts = [self.bounds(part) for part in node.input if part]
        if operator in ("Min", "Max"):
            choose = min if operator == "Min" else max
            return Bounds(choose(part.low for part in parts), choose(part.high for part in parts))
        if operator == "Concat":
            return _around(parts)
        if operator == "Add":
            return Bounds(parts[0].low + parts[1].low, parts[0].high + parts[1].high)
        if operator == "Sub":
            return Bounds(parts[0].low - parts[1].high, parts[0].high - parts[1].low)
        if operator == "Mul" and all(part.low >= 0 for part in parts):
            return Bounds(parts[0].low * parts[1].low, _product(parts[0].high, parts[1].high))
        return UNKNOWN

    def _shape(self, node: onnx.NodeProto) -> list[Bounds]:
        limits = {attribute.name: attribute.i for attribute in node.attribute}
        sizes = self.sizes(node.input[0])
        return sizes[limits.get("start", 0) : limits.get("end", len(sizes))]

    def _gathered(self, node: onnx.NodeProto) -> Bounds:
        source, places = self.producers.get(node.input[0]), self.values(node.input[1])
        if source is None or source.op_type != "Shape" or places is None:
            return self.bounds(node.input[0])
        sizes = self._shape(source)
        return _around(sizes[place] for place in places.ravel() if -len(sizes) <= place < len(sizes))

    def _condition(self, name: str) -> bool | None:
        """Whether two integers are equal, if `name` says so and it is known, else None."""
        node = self.producers.get(name)
        if node is None or node.op_type != "Equal":
            return None
        left, right = (self.bounds(part) for part in node.input)
        if left.high < right.low or right.high < left.low:
            return False
        return True if left == right and left.low == left.high else None


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node, None for what is no tensor of numbers."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_int", "value_ints"):
            return onnx.numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.int64))
        if attribute.name in ("value_float", "value_floats"):
            return onnx.numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.float32))
    return None


def _around(parts: Iterable[Bounds] | Iterator[Bounds]) -> Bounds:
    known = list(parts)
    if not known:
        return UNKNOWN
    return Bounds(min(part.low for part in known), max(part.high for part in known))


def _product(left: float, right: float) -> float:
    return 0 if 0 in (left, right) else left * right
