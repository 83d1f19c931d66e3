"""ONNX files field by field: protobuf's wire format, with as much of onnx.proto3 as says which fields are messages."""

from __future__ import annotations

from random import Random

from benchmarks.fuzz.raw import NUMBERS, odd_number
from benchmarks.fuzz.trees import Part, damage_parts

__all__ = ["damage_model", "read_model", "write_message"]

# Message: its fields that are messages themselves, by number. Source: onnx/onnx.proto.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "Opset", 14: "Entry", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
    "Tensor": {13: "Entry"},
    "Value": {2: "Type"},
    "Type": {1: "TensorType"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Dimension"},
    "Function": {7: "Node", 9: "Opset", 11: "Attribute"},
}
_OPERATORS = (
    b"Loop If Scan Sin MatMul Reshape Tile Expand Range Resize Pad Identity Cast Gather Einsum DpcKnn X".split()
)
_DOMAINS = (b"", b"com.microsoft", b"prunevid", b"ai.onnx.ml", b"nobody.knows")


def read_model(data: bytes) -> list[Part]:
    """The fields of an ONNX model as parts: a name is a field's tag as written, a body what follows its length."""
    return _read(data, "Model")


def _read(data: bytes, message: str) -> list[Part]:
    parts, at = [], 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        name = data[start:at]
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            body = data[at : at + length]
            inner = _MESSAGES.get(message, {}).get(tag >> 3)
            parts.append(Part(name, _read(body, inner) if inner else body))
            at += length
        elif kind == 0:
            start = at
            _, at = _varint(data, at)
            parts.append(Part(name, data[start:at]))
        else:
            length = 8 if kind == 1 else 4
            parts.append(Part(name, data[at : at + length]))
            at += length
    return parts


def write_message(parts: list[Part]) -> bytes:
    """The fields as bytes again, with their lengths."""
    written = []
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else write_message(part.body)
        written.append(part.name)
        if part.name and part.name[0] & 7 == 2:
            written.append(_as_varint(len(body)))
        written.append(body)
    return b"".join(written)


def damage_model(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Damage an ONNX model's fields; returns it and what was done."""
    parts = read_model(data)
    if rng.random() < 0.4:
        done = _damage_meaning(rng, parts)
    else:
        done = "; ".join(damage_parts(rng, parts) for _ in range(rng.choice([1, 1, 2])))
    return write_message(parts), done


def _damage_meaning(rng: Random, parts: list[Part]) -> str:
    """Another operator, domain, name, number or dimension where one belongs: the file stays a model."""
    graph = next(part.body for part in parts if part.name == b"\x3a")
    assert isinstance(graph, list)
    nodes = [part.body for part in graph if part.name == b"\x0a" and isinstance(part.body, list)]
    how = rng.choice(["operator", "domain", "input", "output", "attribute", "number", "opset"])
    if how == "opset":
        opset = next(part.body for part in parts if part.name == b"\x42")
        fields, names = opset, {b"\x10"}
    elif how in ("attribute", "number"):
        attributes = [field.body for node in nodes for field in node if field.name == b"\x2a"]
        values = [part.body for part in graph if part.name in (b"\x5a", b"\x62")]
        fields = rng.choice(attributes if how == "attribute" else values)
        while isinstance(fields, list) and fields and isinstance(fields[-1].body, list):
            fields = rng.choice([part.body for part in fields if isinstance(part.body, list)])
        names = {b"\x15", b"\x18", b"\x22", b"\x08", b"\x40"}
    else:
        fields, names = rng.choice(nodes), {{"input": b"\x0a", "output": b"\x12", "domain": b"\x3a"}.get(how, b"\x22")}
    assert isinstance(fields, list)
    found = [field for field in fields if field.name in names]
    if not found:
        return damage_parts(rng, parts)
    field = rng.choice(found)
    before = field.body
    if how == "operator":
        field.body = rng.choice(_OPERATORS)
    elif how == "domain":
        field.body = rng.choice(_DOMAINS)
    elif how in ("input", "output"):
        theirs = [f.body for node in nodes for f in node if f.name in (b"\x0a", b"\x12")]
        field.body = rng.choice([rng.choice(theirs), b"", b"nowhere", b"x" * 100_000, b"\xff\xfe"])
    elif field.name[0] & 7 == 0:
        field.body = _as_varint(rng.choice([odd_number(rng), (1 << 64) - rng.choice(NUMBERS) - 1]))
    else:
        assert isinstance(before, bytes)
        field.body = rng.randbytes(len(before))
    return f"{how}: {_shown(before)} is {_shown(field.body)}"


def _shown(value: bytes | list[Part]) -> str:
    return repr(value[:40]) if isinstance(value, bytes) else "a message"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _as_varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
