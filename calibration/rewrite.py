"""Putting quantized weights into a graph: what stands where a MatMul stood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from prunevid.calibration.linears import Linear, find_linears
from prunevid.calibration.schemes import Int4Blocks, Int8PerChannel, Scheme

_CONTRIB = "com.microsoft"


class Treatment(Protocol):
    """What is done to a linear layer: how its weight is quantized, and which operator takes it then."""

    @property
    def text(self) -> str:
        """What is done, in words."""
        ...

    @property
    def scheme(self) -> Scheme:
        """How the weight is quantized."""
        ...

    @property
    def activation_aware(self) -> bool:
        """Whether inputs are scaled (:mod:`prunevid.calibration.awq`)."""
        ...

    def node(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> ir.Node:
        """The operator over the layer's input x and the scheme's arrays."""
        ...


@dataclass(frozen=True)
class DynamicInt8:
    """DynamicQuantizeMatMul: activations become uint8 when they come, with one scale for all of them.

    scale = (max(x, 0) - min(x, 0)) / 255. Source: ONNX Runtime's ContribOperators.md, DynamicQuantizeLinear of ONNX.
    """

    scheme: Int8PerChannel = Int8PerChannel()
    activation_aware: bool = False
    text: str = "int8 weights, one scale per output; activations in dynamic uint8 (DynamicQuantizeMatMul)"

    def node(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> ir.Node:
        """See :class:`Treatment`."""
        inputs = [x, arrays["codes"], arrays["scale"]]
        return ir.Node(_CONTRIB, "DynamicQuantizeMatMul", inputs, name=linear.node.name)


@dataclass(frozen=True)
class BlockInt4:
    """MatMulNBits: 4-bit weights in blocks; at accuracy level 4 activations are int8, with one scale per row and block.

    Source: ONNX Runtime's ContribOperators.md.
    """

    scheme: Int4Blocks
    activation_aware: bool = False

    @property
    def text(self) -> str:
        """See :class:`Treatment`."""
        aware = ", scaled by how large activations are" if self.activation_aware else ""
        return (
            f"int4 weights{aware}, one scale per block of {self.scheme.block} inputs; activations in int8 by row and "
            "block (MatMulNBits)"
        )

    def node(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> ir.Node:
        """See :class:`Treatment`."""
        inputs, outputs = linear.weight.shape
        sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": self.scheme.block, "accuracy_level": 4}
        attributes = [ir.AttrInt64(name, value) for name, value in sizes.items()]
        values = [x, arrays["codes"], arrays["scale"]]
        return ir.Node(_CONTRIB, "MatMulNBits", values, attributes, name=linear.node.name)


TREATMENTS: dict[str, Treatment] = {
    "dynamic-int8": DynamicInt8(),
    "int4-block32": BlockInt4(Int4Blocks(32)),
    "int4-awq": BlockInt4(Int4Blocks(128), activation_aware=True),
}
"""Everything that a recipe can do to a graph's linear layers, by the name that recipes call it."""


def put_quantized(
    model: ir.Model, treatment: Treatment, tensors: Mapping[str, Mapping[str, ir.TensorProtocol]]
) -> None:
    """Replace the layers that ``tensors`` has arrays for, by name, in place; the others stay as they are.

    Where a layer has an array ``inverse`` [K], its input is multiplied by it, once for all layers that share the input.
    """
    graph = model.graph
    scaled: dict[ir.Value, ir.Value] = {}
    graph.opset_imports.setdefault(_CONTRIB, 1)
    for linear in find_linears(model):
        if linear.name not in tensors:
            continue
        old, (x, weight) = linear.node, linear.node.inputs[:2]
        assert x is not None  # find_linears says so, as of the weight
        parts = dict(tensors[linear.name])
        inverse = parts.pop("inverse", None)
        if inverse is not None and x not in scaled:
            scaling = ir.Node("", "Mul", [x, _initializer(graph, inverse)])
            graph.insert_before(old, scaling)
            scaled[x] = scaling.outputs[0]
        arrays = {part: _initializer(graph, tensor) for part, tensor in parts.items()}
        new = treatment.node(linear, x if inverse is None else scaled[x], arrays)
        ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)
        assert weight is not None
        del graph.initializers[str(weight.name)]


def load_graph(file: Path) -> ir.Model:
    """A graph of a bundle; its weights stay in their file."""
    return ir.load(file)


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
