"""From JSON to dataclasses, taking nothing that is not declared."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def decode(kind: Any, data: Any, where: str) -> Any:
    """Build ``kind`` (dataclass, tuple, dict, union or scalar) from JSON data; ValueError names what does not fit."""
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is not a list")
        kinds = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(data):
            raise ValueError(f"{where} has {len(data)} entries instead of {len(kinds)}")
        return tuple(decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data, strict=True)))
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where} is not an object")
        return {str(key): decode(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if origin is types.UnionType and type(None) in arguments and len(arguments) == 2:
        return None if data is None else decode(next(k for k in arguments if k is not type(None)), data, where)
    accepted = arguments if origin in (types.UnionType, typing.Union, typing.Literal) else (kind,)
    if origin is typing.Literal:
        if data not in accepted:
            raise ValueError(f"{where} is {data!r}")
        return data
    if float in accepted and isinstance(data, int) and not isinstance(data, bool):
        return float(data) if int not in accepted else data
    # bool is an int to isinstance(), but not to a reader of JSON.
    if type(data) not in accepted:
        raise ValueError(f"{where} is a {type(data).__name__}")
    return data


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - data.keys()):
        raise ValueError(f"{where} lacks {missing[0]!r}")
    if unknown := sorted(data.keys() - names):
        raise ValueError(f"{where} has an unknown entry {unknown[0]!r}")
    return kind(**{name: decode(hints[name], value, f"{where}.{name}") for name, value in data.items()})
