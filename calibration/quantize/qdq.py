"""Linear layers as QuantizeLinear and DequantizeLinear around a plain product, as TensorRT's parser wants them.

Sources: TensorRT's page "Explicit Quantization"; onnx-tensorrt's onnxOpImporters.cpp at 10.1
(QuantDequantLinearHelper): scales are positive, zero points zero, and blocks are told by the shape of the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunevid.calibration.quantize.activations import Activations
from prunevid.calibration.quantize.awq import find_scale, scaled_moments
from prunevid.calibration.quantize.linears import Linear
from prunevid.calibration.quantize.rounding.compensate import Rounding
from prunevid.calibration.quantize.rounding.qdq_schemes import ActivationScheme, Int4PerBlock
from prunevid.calibration.quantize.rounding.schemes import Matrix, Scheme
from prunevid.calibration.quantize.smooth import find_smoothing
from prunevid.calibration.quantize.store import InputScaling


@dataclass(frozen=True)
class StaticQdq:
    """Weights and activations in `kind`: activations with one scale that calibration found, weights one per output.

    QuantizeLinear in opset 19 takes float8; the float type around it is the graph's own.
    """

    kind: str
    scheme: Scheme
    inputs: ActivationScheme
    activation_aware: bool = True
    opset: int = 19
    domains: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is done, in words."""
        return f"{self.kind} weights, one scale per output; smoothed activations in static {self.kind} (Q/DQ)"

    def takes(self, matrix: Matrix) -> bool:
        """Whether a matrix of that shape can be treated; others stay in float: every matrix."""
        return True

    def fit(self, matrices: Sequence[Matrix], seen: Activations | None) -> InputScaling:
        """What is to be done to the input that layers with these matrices share."""
        assert seen is not None  # activation_aware
        scale, step = find_smoothing(matrices, self.scheme, self.inputs, seen)
        return InputScaling(scale, {"step": step, "zero": self.inputs.zero})

    def quantize(self, matrix: Matrix, inputs: InputScaling) -> dict[str, np.ndarray]:
        """The arrays that stand for a matrix, whose rows are multiplied by the inputs' scale already."""
        return self.scheme.quantize(matrix)

    def enter(self, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the input x, once for all layers that share it; the last one's output is what they take."""
        nodes = scaled(x, arrays)
        source = nodes[-1].outputs[0] if nodes else x
        codes = ir.Node("", "QuantizeLinear", [source, arrays["step"], arrays["zero"]])
        return [*nodes, codes, ir.Node("", "DequantizeLinear", [codes.outputs[0], arrays["step"], arrays["zero"]])]

    def product(self, linear: Linear, x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
        """Operators over the layer's input x and the scheme's arrays; the last one's output is the layer's."""
        weight = ir.Node("", "DequantizeLinear", [arrays["codes"], arrays["scale"]], [ir.AttrInt64("axis", 1)])
        return [weight, ir.Node("", "MatMul", [x, weight.outputs[0]], name=linear.node.name)]


@dataclass(frozen=True)
class BlockInt4Qdq:
    """int4 weights in blocks, scaled by activations (AWQ); activations stay in float. DequantizeLinear of opset 21."""

    scheme: Int4PerBlock = Int4PerBlock()
    activation_aware: bool = True
    opset: int = 21
    domains: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is done, in words."""
        aware = ", scaled and rounded by what activations are" if self.activation_aware else ""
        return f"int4 weights{aware}, one scale per block of {self.scheme.block} inputs; activations in float (DQ)"

    def takes(self, matrix: Matrix) -> bool:
        """Whether a matrix of that shape can be treated; others stay in float.

        TensorRT has blocks of 128 and 64 inputs (its page "Quantization Schemes"), and packs pairs of outputs.
        """
        inputs, outputs = matrix.shape
        return self.scheme.block_of(inputs) is not None and outputs % 2 == 0

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
        block = self.scheme.block_of(linear.weight.shape[0])
        assert block is not None  # takes() said so
        how = [ir.AttrInt64("axis", 0), ir.AttrInt64("block_size", block)]
        weight = ir.Node("", "DequantizeLinear", [arrays["codes"], arrays["scale"]], how)
        return [weight, ir.Node("", "MatMul", [x, weight.outputs[0]], name=linear.node.name)]


def fit_int4(matrices: Sequence[Matrix], scheme: Scheme, seen: Activations) -> InputScaling:
    """Activation-aware scales for int4 weights, and rounding that makes up for its errors behind them."""
    scale = find_scale(matrices, scheme, seen)
    rounding = Rounding(scaled_moments(seen.moments, scale))
    return InputScaling(None if np.ptp(scale) == 0 else scale, rounding=rounding)


def scaled(x: ir.Value, arrays: Mapping[str, ir.Value]) -> list[ir.Node]:
    """The input times `inverse`, if there is one."""
    return [ir.Node("", "Mul", [x, arrays["inverse"]])] if "inverse" in arrays else []
