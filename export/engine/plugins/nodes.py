"""What TensorRT's parser must find in a graph to take an operator for the plugin of that name.

A plugin's inputs, outputs and own attributes are the operator's (`export/graphs/operators.py`), with two exceptions.
Plugins cannot read booleans: DpcKnn reads `valid` as int32. And what only bounds the work of an operator's body is
left out: GroupTopK does not read `most`. No plugin has an output for scratch memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunevid.errors import PruneVidError

if TYPE_CHECKING:
    from onnx import NodeProto

NAMESPACE = "prunevid"
"""The ONNX domain of the operators, and the namespace of the plugins."""

ATTRIBUTES: dict[str, str | int] = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
"""What a plugin node has beside the operator's attributes: where to look, and to take the kernel into the engine."""


@dataclass(frozen=True)
class PluginNode:
    """How a plugin differs from its operator.

    inputs: how many of the operator's inputs it reads. cast_inputs: number of an input to the ONNX type that the plugin
    reads it as.
    """

    inputs: int
    cast_inputs: dict[int, str] = field(default_factory=dict)


PLUGINS = {
    "DpcKnn": PluginNode(3, cast_inputs={1: "INT32"}),
    "RefineSegments": PluginNode(1),
    "GroupTopK": PluginNode(3),
}
"""The plugins, by the operators' names."""


def plugin_nodes(node: NodeProto) -> list[NodeProto]:
    """The nodes that take the place of an operator's node where its plugin is used; the node given stays as it is.

    The model's functions of the domain must go, too: some releases of TensorRT would prefer them. Raises PruneVidError
    for an operator that has no plugin.
    """
    from onnx import NodeProto, TensorProto, helper

    if node.op_type not in PLUGINS:
        raise PruneVidError(f"the operator {node.op_type} has no TensorRT plugin: known are {', '.join(PLUGINS)}")
    plugin, form = NodeProto(), PLUGINS[node.op_type]
    plugin.CopyFrom(node)
    del plugin.input[form.inputs :]
    plugin.attribute.extend(helper.make_attribute(name, value) for name, value in ATTRIBUTES.items())
    nodes = [plugin]
    for number, kind in form.cast_inputs.items():
        plugin.input[number] = f"{node.output[0]}/{kind}"
        to = TensorProto.DataType.Value(kind)
        nodes.insert(0, helper.make_node("Cast", [node.input[number]], [plugin.input[number]], to=to))
    return nodes
