"""Plays TensorRT's builder for a plugin, in a process that has the real bindings (`tensorrt_on_cpu`).

The plugin is the object that TensorRT itself would get from the registry, and its methods are called in TensorRT's
order. Of TensorRT's own, only dimensions are played: they are texts, which show what the plugin computes of them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Input(NamedTuple):
    """A tensor of the network: type, sizes (a text is one that varies) and the largest sizes of the profile."""

    type: str
    sizes: tuple[int | str, ...]
    largest: tuple[int, ...]


class Launch(NamedTuple):
    """What TensorRT learns of a plugin: its outputs, and how to launch which kernel."""

    types: list[str]
    shapes: list[list[str]]
    kernel: str
    ptx: str
    grid: tuple[str, str, str]
    threads: tuple[str, str, str]
    shared_bytes: str
    arguments: list[str]


@dataclass
class Dimension:
    """Stands for IDimensionExpr."""

    text: str

    def is_constant(self) -> bool:
        return self.text.isdigit()

    def get_constant_value(self) -> int:
        return int(self.text)


class ExpressionBuilder:
    """Stands for IExprBuilder."""

    def constant(self, value: int) -> Dimension:
        return Dimension(str(value))

    def operation(self, operation: Any, first: Dimension, second: Dimension) -> Dimension:
        return Dimension(f"{operation.name}({first.text}, {second.text})")


class _Arguments(dict[int, Dimension]):
    """Stands for the setter of a kernel's arguments."""

    nbSymExprs = 0


class _LaunchParameters:
    """Stands for IKernelLaunchParams."""


def start(capability: int) -> None:
    """Load TensorRT and register the plugins in this process."""
    from tensorrt_on_cpu import import_tensorrt

    from prunevid.export.engine.plugins.registration import register

    with tempfile.TemporaryDirectory() as folder:
        import_tensorrt(Path(folder))
    import tensorrt as trt
    import tensorrt.plugin as trtp

    trt.IDimensionExpr = Dimension
    trt.DimsExprs = lambda count: [None] * count
    trtp._tensor.SymExprImpl = lambda expression: expression._expr
    register(capability)


def register_again(capability: int) -> None:
    from prunevid.export.engine.plugins.registration import register

    register(capability)


def attributes(operator: str) -> list[str]:
    """The attributes that TensorRT asks the node of a plugin for."""
    import tensorrt as trt

    creator = trt.get_plugin_registry().get_creator(operator, "1", "prunevid")
    return [field.name for field in creator.field_names]


def build(operator: str, inputs: list[Input], settings: dict[str, int]) -> Launch:
    """Do with a plugin what the builder does for one profile."""
    import tensorrt as trt

    creator = trt.get_plugin_registry().get_creator(operator, "1", "prunevid")
    # So does the parser, whatever type the plugin asked for.
    fields = [
        trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)
        for name, value in settings.items()
    ]
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    collection = trt.PluginFieldCollection(fields)
    plugin = creator.create_plugin(operator, "prunevid", collection, trt.TensorRTPhase.BUILD, request)

    types = plugin.get_output_data_types(
        [trt.DataType.__members__[i.type] for i in inputs], [len(i.sizes) for i in inputs]
    )
    dimensions = [[Dimension(str(size)) for size in i.sizes] for i in inputs]
    shapes = plugin.get_output_shapes(dimensions, [], ExpressionBuilder())
    described = [_described(trt.DataType.__members__[i.type], i.sizes, i.largest) for i in inputs]
    largest = {str(size): most for i in inputs for size, most in zip(i.sizes, i.largest, strict=True)}
    described += [
        _described(kind, [d.text for d in shape], [largest[d.text] for d in shape])
        for kind, shape in zip(types, shapes, strict=True)
    ]
    combinations = plugin.get_supported_format_combinations(described, len(inputs))
    wanted = [(d.desc.type, d.desc.format) for d in described]
    per = len(described)
    offered = [[(c.type, c.format) for c in combinations[at : at + per]] for at in range(0, len(combinations), per)]
    assert wanted in offered, f"{wanted} is not among {offered}"
    plugin.configure_plugin(described[: len(inputs)], described[len(inputs) :])
    assert plugin.get_valid_tactics() == []
    plugin.set_tactic(0)
    launch, arguments = _LaunchParameters(), _Arguments()
    plugin.get_launch_params(dimensions, described, len(inputs), launch, arguments, ExpressionBuilder())
    name, ptx = plugin.get_kernel(
        [d.desc for d in described[: len(inputs)]], [d.desc for d in described[len(inputs) :]]
    )
    found: Any = launch
    return Launch(
        types=[kind.name for kind in types],
        shapes=[[dimension.text for dimension in shape] for shape in shapes],
        kernel=name,
        ptx=ptx.decode(),
        grid=(found.grid_x.text, found.grid_y.text, found.grid_z.text),
        threads=(found.block_x.text, found.block_y.text, found.block_z.text),
        shared_bytes=found.shared_mem.text,
        arguments=[arguments[index].text for index in range(arguments.nbSymExprs)],
    )


def _described(kind: Any, sizes: Any, largest: Any) -> Any:
    """The DynamicPluginTensorDesc of a tensor: -1 for what varies."""
    import tensorrt as trt

    described = trt.DynamicPluginTensorDesc()
    described.desc.dims = trt.Dims([int(size) if str(size).isdigit() else -1 for size in sizes])
    described.desc.type, described.desc.format = kind, trt.TensorFormat.LINEAR
    described.min = trt.Dims([1] * len(largest))
    described.opt = described.max = trt.Dims(list(largest))
    return described
