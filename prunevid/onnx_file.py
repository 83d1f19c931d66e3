"""What an ONNX file does and which other files it reads, without onnx: of its protocol buffers, the few fields needed.

The schema has the fields that an export writes, and what can be passed over without harm (texts, types of inner
values). A file with anything else, such as sparse initializers, training information or metadata of its own, is
refused: nobody here would check what another reader makes of it. Source: onnx.proto of ONNX, IR version 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from prunevid.protobuf import Field, Message, ProtobufError, Schema, read_message

__all__ = ["ExternalTensor", "OnnxError", "OnnxFile", "OnnxFunction", "OnnxNode", "OnnxValue", "read_onnx"]


class OnnxError(ValueError):
    """A file that is no ONNX graph as an export writes it; the text says why."""


@dataclass(frozen=True)
class OnnxValue:
    """An input or output of a graph: element type in NumPy's words; a dimension is a size or a symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxNode:
    """An operator in use. integers: its attributes that are whole numbers; bodies: the nodes of its subgraphs."""

    domain: str
    operator: str
    integers: dict[str, int]
    bodies: tuple[tuple[OnnxNode, ...], ...]


@dataclass(frozen=True)
class OnnxFunction:
    """An operator that the file brings its own definition of."""

    domain: str
    name: str
    nodes: tuple[OnnxNode, ...]
    opsets: dict[str, int]


@dataclass(frozen=True)
class ExternalTensor:
    """Where an initializer lies: `length` bytes from `offset` on in the file `location`."""

    name: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class OnnxFile:
    """A graph, the functions that it brings along, and the tensors that lie in other files."""

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    nodes: tuple[OnnxNode, ...]
    functions: tuple[OnnxFunction, ...]
    external: tuple[ExternalTensor, ...]


_SCHEMA: Schema = {
    "Model": {
        1: Field("ir_version", "int"),
        2: Field("producer_name", "skip"),
        3: Field("producer_version", "skip"),
        6: Field("doc_string", "skip"),
        7: Field("graph", "Graph"),
        8: Field("opset_import", "Opset", repeats=True),
        25: Field("functions", "Function", repeats=True),
    },
    "Opset": {1: Field("domain", "text"), 2: Field("version", "int")},
    "Graph": {
        1: Field("node", "Node", repeats=True),
        2: Field("name", "skip"),
        5: Field("initializer", "Tensor", repeats=True),
        10: Field("doc_string", "skip"),
        11: Field("input", "Value", repeats=True),
        12: Field("output", "Value", repeats=True),
        13: Field("value_info", "skip", repeats=True),
    },
    "Function": {
        1: Field("name", "text"),
        4: Field("input", "skip", repeats=True),
        5: Field("output", "skip", repeats=True),
        7: Field("node", "Node", repeats=True),
        8: Field("doc_string", "skip"),
        9: Field("opset_import", "Opset", repeats=True),
        10: Field("domain", "text"),
        11: Field("attribute_proto", "Attribute", repeats=True),
        12: Field("value_info", "skip", repeats=True),
    },
    "Node": {
        1: Field("input", "skip", repeats=True),
        2: Field("output", "skip", repeats=True),
        3: Field("name", "skip"),
        4: Field("op_type", "text"),
        5: Field("attribute", "Attribute", repeats=True),
        6: Field("doc_string", "skip"),
        7: Field("domain", "text"),
    },
    "Attribute": {
        1: Field("name", "text"),
        2: Field("f", "float"),
        3: Field("i", "int"),
        4: Field("s", "skip"),
        5: Field("t", "Tensor"),
        6: Field("g", "Graph"),
        8: Field("ints", "int", repeats=True),
        13: Field("doc_string", "skip"),
        20: Field("type", "int"),
    },
    "Tensor": {
        1: Field("dims", "int", repeats=True),
        2: Field("data_type", "int"),
        8: Field("name", "text"),
        9: Field("raw_data", "bytes"),
        12: Field("doc_string", "skip"),
        13: Field("external_data", "Entry", repeats=True),
        14: Field("data_location", "int"),
    },
    "Entry": {1: Field("key", "text"), 2: Field("value", "text")},
    "Value": {
        1: Field("name", "text"),
        2: Field("type", "Type"),
        3: Field("doc_string", "skip"),
        4: Field("metadata_props", "skip", repeats=True),
    },
    "Type": {1: Field("tensor_type", "TensorType")},
    "TensorType": {1: Field("elem_type", "int"), 2: Field("shape", "Shape")},
    "Shape": {1: Field("dim", "Dimension", repeats=True)},
    "Dimension": {1: Field("dim_value", "int"), 2: Field("dim_param", "text")},
}

# Element types by their numbers in TensorProto.DataType: NumPy's name (ml_dtypes' where NumPy has none) and bits.
_TYPES = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    17: ("float8_e4m3fn", 8),
    22: ("int4", 4),
}
# What an attribute of a type (AttributeProto.AttributeType) holds its value in.
_HOLDERS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 7: "ints"}
_EXTERNAL = 1
_MOST_ELEMENTS = 1 << 48


def read_onnx(data: bytes) -> OnnxFile:
    """Read an ONNX file's content. Raises OnnxError where it is none, or has what no export writes."""
    try:
        model = read_message(data, _SCHEMA, "Model")
    except ProtobufError as error:
        raise OnnxError(f"it is no ONNX graph as an export writes it: {error}") from error
    graph = model.get("graph", {})
    names = [tensor.get("name", "") for tensor in graph.get("initializer", [])]
    if len(set(names)) != len(names) or "" in names:
        raise OnnxError("two of its initializers have one name, or one has none")
    tensors = [_external(tensor) for tensor in graph.get("initializer", [])]
    return OnnxFile(
        ir_version=model.get("ir_version", 0),
        opsets=_opsets(model),
        inputs=tuple(map(_value, graph.get("input", []))),
        outputs=tuple(map(_value, graph.get("output", []))),
        nodes=_nodes(graph),
        functions=tuple(map(_function, model.get("functions", []))),
        external=tuple(tensor for tensor in tensors if tensor is not None),
    )


def _opsets(message: Message) -> dict[str, int]:
    entries = message.get("opset_import", [])
    found = {entry.get("domain", ""): entry.get("version", 0) for entry in entries}
    if len(found) != len(entries):
        raise OnnxError("it imports one operator domain twice")
    return found


def _function(message: Message) -> OnnxFunction:
    for attribute in message.get("attribute_proto", []):
        if _attribute(attribute) != "i":
            raise OnnxError("an attribute of a function has a default that is no whole number")
    return OnnxFunction(message.get("domain", ""), message.get("name", ""), _nodes(message), _opsets(message))


def _nodes(message: Message) -> tuple[OnnxNode, ...]:
    return tuple(map(_node, message.get("node", [])))


def _node(message: Message) -> OnnxNode:
    integers, bodies, names = {}, [], set()
    for attribute in message.get("attribute", []):
        name, holder = attribute.get("name", ""), _attribute(attribute)
        if name in names:
            raise OnnxError(f"a node has the attribute {name!r} twice")
        names.add(name)
        if holder == "i":
            integers[name] = attribute.get("i", 0)
        elif holder == "t":
            if _external(attribute["t"]) is not None:
                raise OnnxError(f"the attribute {name!r} of a node lies in another file")
        elif holder == "g":
            bodies.append(_body(attribute["g"]))
    return OnnxNode(message.get("domain", ""), message.get("op_type", ""), integers, tuple(bodies))


def _attribute(message: Message) -> str:
    """The field that holds an attribute's value, which is the only one: readers differ in which one they look at."""
    holder = _HOLDERS.get(message.get("type", 0))
    held = [name for name in _HOLDERS.values() if name in message]
    # An empty list, and the number 0 in some writers, are not written at all.
    if holder is None or held not in ([holder], []) or (not held and holder in ("t", "g")):
        raise OnnxError("an attribute has no value, or several")
    return holder


def _body(graph: Message) -> tuple[OnnxNode, ...]:
    if "initializer" in graph:
        raise OnnxError("a graph inside it has initializers")
    return _nodes(graph)


def _value(message: Message) -> OnnxValue:
    kind = message.get("type", {}).get("tensor_type", {})
    if kind.get("elem_type") not in _TYPES or "shape" not in kind:
        raise OnnxError("an input or output of it has no type or shape")
    return OnnxValue(message.get("name", ""), _TYPES[kind["elem_type"]][0], tuple(_dimensions(kind["shape"])))


def _dimensions(shape: Message) -> Iterator[int | str]:
    for dimension in shape.get("dim", []):
        if len(dimension) != 1:
            raise OnnxError("a dimension of an input or output has no size, or two")
        yield dimension.get("dim_param", dimension.get("dim_value"))


def _external(tensor: Message) -> ExternalTensor | None:
    """Where a tensor lies if it is in another file. Raises OnnxError where its bytes are not what its shape needs."""
    name, dims = tensor.get("name", ""), tensor.get("dims", [])
    if tensor.get("data_type") not in _TYPES:
        raise OnnxError(f"the tensor {name[:80]!r} has an element type that no export writes")
    elements = math.prod(dims) if len(dims) <= 16 and min(dims, default=0) >= 0 else _MOST_ELEMENTS
    if elements >= _MOST_ELEMENTS:
        raise OnnxError(f"the tensor {name[:80]!r} has no possible shape")
    size = -(-elements * _TYPES[tensor["data_type"]][1] // 8)
    entries = {entry.get("key", ""): entry.get("value", "") for entry in tensor.get("external_data", [])}
    if tensor.get("data_location", 0) != _EXTERNAL:
        if "external_data" in tensor or len(tensor.get("raw_data", b"")) != size:
            raise OnnxError(f"the tensor {name[:80]!r} does not have the bytes that its shape needs")
        return None
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    # Not isdecimal(), which other scripts' digits are, too.
    if (
        entries.keys() != {"location", "offset", "length"}
        or len(tensor["external_data"]) != 3
        or "raw_data" in tensor
        or not all(1 <= len(number) <= 18 and set(number) <= set("0123456789") for number in numbers)
    ):
        raise OnnxError(f"the tensor {name[:80]!r} does not say in full where it lies")
    offset, length = map(int, numbers)
    if length != size:
        raise OnnxError(f"the tensor {name[:80]!r} does not have the bytes that its shape needs")
    return ExternalTensor(name, entries["location"], offset, length)
