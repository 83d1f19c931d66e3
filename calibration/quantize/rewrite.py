"""Putting quantized weights into a graph: what stands where a MatMul stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from prunevid.calibration.quantize.activations import Activations
from prunevid.calibration.quantize.linears import Linear, find_linears
from prunevid.calibration.quantize.qdq import BlockInt4Qdq, StaticQdq, fit_int4, scaled
from prunevid.calibration.quantize.rounding.qdq_schemes import Float8Activations, Float8PerChannel, Int8Activations
from prunevid.calibration.quantize.rounding.schemes import Int4Blocks, Int8PerChannel, Matrix
from prunevid.calibration.quantize.store import INPUT_PARTS, InputScaling

_CONTRIB = "com.microsoft"


class Treatment(Protocol):
    """What is done to a linear layer: how its weight is quantized, and which operator takes it then."""

    @property
    def text(self) -> str:
        """What is done, in words."""
        ...

    @property
    def activation_aware(self) -> bool:
        """Whether `fit` looks at activations, which then must be observed."""
        ...

    @property
    def opset(self) -> int:
        """The least opset of ONNX's own operators that it needs."""
        ...

    @property
    def domains(self) -> tuple[str, ...]:
        """Operator domains that it needs beyond ONNX's own."""
        ...

    def takes(self, matrix: Matrix) -> bool:
        """Whether a matrix of that shape can be treated; others stay in float."""
        ...

    def fit(self, matrices: Sequence[Matrix], seen: Activations | None) -> InputScaling:
        """What is to be done to the input that layers with these matrices share."""
        ...

    def quantize(self, matrix: Matrix, inputs: InputScaling) -> dict[str, np.ndarray]:
        """The arrays that stand for a matrix, whose rows are multiplied by the inputs' scale already."""
        ...

    def enter(self, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the input x, once for all layers that share it; the last one's output is what they take."""
        ...

    def product(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the layer's input x and the scheme's arrays; the last one's output is the layer's."""
        ...


@dataclass(frozen=True)
class DynamicInt8:
    """DynamicQuantizeMatMul: activations become uint8 when they come, with one scale for all of them.

    scale = (max(x, 0) - min(x, 0)) / 255. Source: ONNX Runtime's ContribOperators.md, DynamicQuantizeLinear of ONNX.
    """

    scheme: Int8PerChannel = Int8PerChannel()
    activation_aware: bool = False
    text: str = "int8 weights, one scale per output; activations in dynamic uint8 (DynamicQuantizeMatMul)"
    opset: int = 1
    domains: tuple[str, ...] = (_CONTRIB,)

    def takes(self, matrix: Matrix) -> bool:
        """Whether a matrix of that shape can be treated; others stay in float: every matrix."""
        return True

    def fit(self, matrices: Sequence[Matrix], seen: Activations | None) -> InputScaling:
        """What is to be done to the input that layers with these matrices share: nothing."""
        return InputScaling()

    def quantize(self, matrix: Matrix, inputs: InputScaling) -> dict[str, np.ndarray]:
        """The arrays that stand for a matrix, whose rows are multiplied by the inputs' scale already."""
        return self.scheme.quantize(matrix)

    def enter(self, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """No operators: layers take the input as it is."""
        return []

    def product(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the layer's input x and the scheme's arrays; the last one's output is the layer's."""
        inputs = [x, arrays["codes"], arrays["scale"]]
        return [ir.Node(_CONTRIB, "DynamicQuantizeMatMul", inputs, name=linear.node.name)]


@dataclass(frozen=True)
class BlockInt4:
    """MatMulNBits: 4-bit weights in blocks; at accuracy level 4 activations are int8, with one scale per row and block.

    Source: ONNX Runtime's ContribOperators.md.
    """

    scheme: Int4Blocks
    activation_aware: bool = False
    opset: int = 1
    domains: tuple[str, ...] = (_CONTRIB,)

    @property
    def text(self) -> str:
        """What is done, in words."""
        aware = ", scaled and rounded by what activations are" if self.activation_aware else ""
        return (
            f"int4 weights{aware}, one scale per block of {self.scheme.block} inputs; activations in int8 by row and "
            "block (MatMulNBits)"
        )

    def takes(self, matrix: Matrix) -> bool:
        """Whether a matrix of that shape can be treated; others stay in float: every matrix."""
        return True

    def fit(self, matrices: Sequence[Matrix], seen: Activations | None) -> InputScaling:
        """What is to be done to the input that layers with these matrices share."""
        return fit_int4(matrices, self.scheme, seen) if seen is not None else InputScaling()

    def quantize(self, matrix: Matrix, inputs: InputScaling) -> dict[str, np.ndarray]:
        """The arrays that stand for a matrix, whose rows are multiplied by the inputs' scale already."""
        return self.scheme.quantize(matrix, inputs.rounding)

    def enter(self, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the input x, once for all layers that share it; the last one's output is what they take."""
        return scaled(x, arrays)

    def product(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the layer's input x and the scheme's arrays; the last one's output is the layer's."""
        inputs, outputs = linear.weight.shape
        sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": self.scheme.block, "accuracy_level": 4}
        attributes = [ir.AttrInt64(name, value) for name, value in sizes.items()]
        values = [x, arrays["codes"], arrays["scale"]]
        return [ir.Node(_CONTRIB, "MatMulNBits", values, attributes, name=linear.node.name)]


TREATMENTS: dict[str, Treatment] = {
    "dynamic-int8": DynamicInt8(),
    "int4-block32": BlockInt4(Int4Blocks(32)),
    "int4-awq": BlockInt4(Int4Blocks(128), activation_aware=True),
    "int4-awq-qdq": BlockInt4Qdq(),
    "int8-qdq": StaticQdq("int8", Int8PerChannel(), Int8Activations()),
    "fp8-qdq": StaticQdq("float8 (E4M3)", Float8PerChannel(), Float8Activations()),
}
"""Everything that a recipe can do to a graph's linear layers, by the name that recipes call it."""


def put_quantized(
    model: ir.Model, treatment: Treatment, tensors: Mapping[str, Mapping[str, ir.TensorProtocol]]
) -> None:
    """Replace the layers that `tensors` has arrays for, by name, in place; the others stay as they are.

    What is to be done to an input is done once for all layers that share it.
    """
    graph = model.graph
    entered: dict[ir.Value, ir.Value] = {}
    for domain in treatment.domains:
        graph.opset_imports.setdefault(domain, 1)
    if tensors:
        graph.opset_imports[""] = max(graph.opset_imports[""], treatment.opset)
    for linear in find_linears(model):
        if linear.name not in tensors:
            continue
        old, (x, weight) = linear.node, linear.node.inputs[:2]
        assert x is not None  # find_linears says so, as of the weight
        parts = dict(tensors[linear.name])
        of_input = {part: parts.pop(part) for part in INPUT_PARTS if part in parts}
        if x not in entered:
            before = treatment.enter(x, {part: _initializer(graph, tensor) for part, tensor in of_input.items()})
            graph.insert_before(old, before)
            entered[x] = before[-1].outputs[0] if before else x
        arrays = {part: _initializer(graph, tensor) for part, tensor in parts.items()}
        *first, new = treatment.product(linear, entered[x], arrays)
        graph.insert_before(old, first)
        ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)
        assert weight is not None
        del graph.initializers[str(weight.name)]


def layers_of(model: ir.Model, treatment: Treatment) -> tuple[list[str], list[str]]:
    """Names of the linear layers that a treatment takes, and of those whose shape it does not."""
    linears = find_linears(model)
    taken = [linear.name for linear in linears if treatment.takes(linear.weight)]
    return taken, [linear.name for linear in linears if linear.name not in taken]


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
