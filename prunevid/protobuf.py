"""Reading protocol buffers without a library: just the messages and fields that a schema declares.

Stricter than the format, on purpose: a file that two readers can understand differently is refused, so that what was
checked here is what every other reader will see. Fields that are not in the schema, fields of one value that occur
twice (which others merge or let the last one win), numbers that are not in their shortest form, and groups are errors.
Source: the encoding guide of protocol buffers (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Field", "Message", "ProtobufError", "Schema", "read_message"]

Message = dict[str, Any]
"""Fields by name: an int, a float, a str, bytes or a Message each; a list of them where the field repeats. What the
bytes do not have is not in it."""

# A decoder of 80 layers with quantized weights has some 150,000.
_MOST_FIELDS = 500_000
_DEEPEST = 16
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


class ProtobufError(ValueError):
    """Bytes that are not the message they should be; the text says why."""


@dataclass(frozen=True)
class Field:
    """A field of a message: its name, what it holds, and whether it repeats.

    kind: `int` (signed, 64 bits), `float` (32 bits), `text` (UTF-8), `bytes`, `skip` (a message or text
    that is not looked into), or the name of a message of the schema.
    """

    name: str
    kind: str
    repeats: bool = False


Schema = Mapping[str, Mapping[int, Field]]
"""The messages by name, each with its fields by number."""

_WIRE_TYPES = {"int": _VARINT, "float": _FIXED32}


def read_message(data: bytes, schema: Schema, name: str) -> Message:
    """Read `data` as the message called `name`. Raises ProtobufError where it is no such message, or a huge one."""
    return _Reader(data, schema).message(name, 0, len(data), 0)


class _Reader:
    def __init__(self, data: bytes, schema: Schema) -> None:
        self._data, self._schema = data, schema
        self._left = _MOST_FIELDS

    def message(self, name: str, at: int, end: int, depth: int) -> Message:
        if depth > _DEEPEST:
            raise ProtobufError("messages are nested too deep")
        fields, found = self._schema[name], Message()
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ProtobufError(f"there are more than {_MOST_FIELDS} fields")
            tag, at = self._varint(at, end)
            field = fields.get(tag >> 3)
            if field is None:
                raise ProtobufError(f"a {name} has the field {tag >> 3}")
            if tag & 7 != _WIRE_TYPES.get(field.kind, _BYTES):
                raise ProtobufError(f"{name}.{field.name} is of another type")
            value, at = self._value(field.kind, at, end, depth)
            if field.repeats:
                found.setdefault(field.name, []).append(value)
            elif field.name in found:
                raise ProtobufError(f"{name}.{field.name} is there twice")
            else:
                found[field.name] = value
        return found

    def _value(self, kind: str, at: int, end: int, depth: int) -> tuple[Any, int]:
        if kind == "int":
            number, at = self._varint(at, end)
            return (number if number < 1 << 63 else number - (1 << 64)), at
        if kind == "float":
            if end - at < 4:
                raise ProtobufError("it ends within a number")
            return struct.unpack_from("<f", self._data, at)[0], at + 4
        size, at = self._varint(at, end)
        stop = at + size
        if stop > end:
            raise ProtobufError("a part is longer than what it is part of")
        if kind == "skip":
            return None, stop
        if kind == "bytes":
            return self._data[at:stop], stop
        if kind == "text":
            try:
                return self._data[at:stop].decode("utf-8"), stop
            except UnicodeDecodeError as error:
                raise ProtobufError("a text is not UTF-8") from error
        return self.message(kind, at, stop, depth + 1), stop

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of up to 64 bits, in its shortest form, and the place behind it."""
        number = shift = 0
        while at < end:
            byte = self._data[at]
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                if (not byte and shift) or number >> 64:
                    raise ProtobufError("a number is longer than it needs to be")
                return number, at
            shift += 7
            if shift > 63:
                raise ProtobufError("a number is too long")
        raise ProtobufError("it ends within a number")
