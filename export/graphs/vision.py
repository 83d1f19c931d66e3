"""The vision_merge graph: frames in, merged visual tokens out.

The tower, projector and pooling are traced by `torch.onnx.export` from the transformers modules themselves, with
hollow parameters: tensors of the right shape that own no memory. Their values come from the checkpoint later, one
at a time, as for every other graph. The merge is appended to the traced graph node by node.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir import passes
from onnxscript import optimizer

from prunevid.config import PruneConfig
from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.weights import Weights
from prunevid.export.graphs import operators
from prunevid.export.graphs.dialects import add_output
from prunevid.export.graphs.merge import OPSET, FeatureShape, add_merged, declare_settings

# Bytes up to which constants are folded: shapes and scales, not weights.
_FOLD_LIMIT = 1024


@dataclass(frozen=True)
class VisionSpec:
    """A vision encoder to trace.

    encoder: torch module with hollow parameters; float32 pixel values [F, 3, size, size] to features [F, N, C] of the
    parameters' dtype. prefix: what stands before its parameters' names in the checkpoint.
    """

    encoder: Any
    prefix: str
    image_size: int
    tokens_per_frame: int
    channels: int


def build_vision_merge(spec: VisionSpec, weights: Weights, prune: PruneConfig) -> ir.Model:
    """The vision_merge graph.

    Inputs: pixel_values float32 [F, 3, size, size] of new frames, at least one, past_features [P, N, C] (features of
    the frames before them, if any) and the inputs that carry the settings.
    Outputs: features [P + F, N, C] and what the graph merge makes of them (see
    `prunevid.export.graphs.merge.build_merge`). Features and tokens have the weights' dtype.
    """
    model = _trace(spec)
    graph = model.graph
    graph.name = "vision_merge"
    _fill_parameters(graph, spec, weights)
    _optimize(model)
    traced = graph.outputs[0]
    graph.outputs.clear()
    graph.opset_imports[operators.DOMAIN] = operators.DOMAIN_VERSION
    op = operators.builder_for(graph)

    dims = ["frames_new", 3, spec.image_size, spec.image_size]
    graph.inputs[0].shape = ir.Shape(dims)
    shape = FeatureShape(spec.tokens_per_frame, spec.channels, weights.dtype)
    past = op.builder.input("past_features", shape.dtype, shape.of("frames_past"))
    settings = declare_settings(op, prune, shape.tokens)
    features = op.Concat(past, traced, axis=0)
    add_output(op, features, "features", shape.dtype, shape.of("frames"))
    add_merged(op, features, settings, shape, prune)
    return operators.to_model(graph, op)


def hollow(module: Any, dtype: Any) -> Any:
    """Give every parameter of a torch module on the meta device a shape without memory; returns the module.

    A zero of torch type `dtype`, expanded to the parameter's shape, owns a few bytes, yet it can be traced like the
    real thing.
    """
    import torch

    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            zero = torch.zeros((), dtype=dtype).expand(parameter.shape)
            child.register_parameter(name, torch.nn.Parameter(zero, requires_grad=False))
    return module


def _optimize(model: ir.Model) -> None:
    """Fold and tidy the graph. A pass that reads small weights hides what the checkpoint says of them: it is raised."""
    try:
        optimizer.optimize_ir(model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    except passes.PassError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, PruneVidError):
            cause = cause.__cause__
        raise cause or error from None


def _trace(spec: VisionSpec) -> ir.Model:
    import torch

    frames = torch.zeros(2, 3, spec.image_size, spec.image_size)
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            spec.encoder.eval(), (frames,), dynamic_shapes=({0: torch.export.Dim("frames_new")},)
        )
        exported = torch.onnx.export(
            program,
            input_names=["pixel_values"],
            output_names=["traced_features"],
            opset_version=OPSET,
            dynamo=True,
            # Folding would compute with the hollow values; it is done once the real ones are in place.
            optimize=False,
            verbose=False,
        )
    if exported is None:
        raise PruneVidError("torch could not trace the vision tower: is this torch older than 2.9?")
    model: ir.Model = exported.model
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings, of its own deprecated internals and of packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _fill_parameters(graph: ir.Graph, spec: VisionSpec, weights: Weights) -> None:
    """Point every traced parameter at the checkpoint.

    The tracer transposes a linear layer's matrix at run time; such a parameter is stored transposed instead.
    """
    for name, _ in spec.encoder.named_parameters():
        value = graph.initializers.get(name)
        if value is None:
            # A parameter that the features do not depend on, such as the norm behind the last layer.
            continue
        for node in [use.node for use in value.uses() if use.node.op_type == "Transpose"]:
            matrix = weights.tensor(spec.prefix + name, transpose=True)
            swapped = ir.Value(
                name=f"{name}.T", shape=matrix.shape, type=ir.TensorType(matrix.dtype), const_value=matrix
            )
            graph.register_initializer(swapped)
            node.outputs[0].replace_all_uses_with(swapped)
            graph.remove(node, safe=True)
        if value.uses():
            value.const_value = weights.tensor(spec.prefix + name)
        else:
            del graph.initializers[name]
