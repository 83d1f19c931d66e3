"""A bundle's graph as TensorRT's parser wants it.

Which of the two the parser takes where a node has both a function body and a plugin of its name differs by release: up
to 10.6 the body, from 10.7 to 10.14 the plugin, from 10.15 on the body unless the node names the plugin's namespace. So
a graph gets one or the other: bodies are dropped where there are plugins, and written out in place of their nodes
where there are none.
"""

from __future__ import annotations

import onnx
from onnx import inliner

from prunevid.export.engine import plugins


def for_parser(model: onnx.ModelProto, *, plugins_too: bool) -> onnx.ModelProto:
    """A copy of `model` for TensorRT: with plugins, or with nothing but ONNX's own operators.

    Weights that lie in other files stay there.
    """
    return with_plugins(model) if plugins_too else inliner.inline_local_functions(model)


def with_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the bodies of the `prunevid` operators, whose nodes name their plugins."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    bodies = [function for function in made.functions if (function.domain, function.name) not in plugins.OPERATORS]
    del made.functions[:]
    made.functions.extend(bodies)
    _name_plugins(made.graph)
    return made


def _name_plugins(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_plugins(attribute.g)
        nodes += plugins.nodes_of(node) if plugins.is_plugin(node) else [node]
    made = onnx.GraphProto()
    made.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(made.node)
