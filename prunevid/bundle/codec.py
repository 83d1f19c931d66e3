"""From JSON to dataclasses, taking nothing that is not declared."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any

from prunevid.errors import InvalidValueError
from prunevid.validation import shown, without_doubles

_MOST_DIGITS = 18
_LONGEST_TEXT = 4096


class UnknownEntryError(ValueError):
    """An entry that nothing here knows, as a newer release may have written it."""


def read_json(text: bytes) -> Any:
    """JSON in UTF-8 with finite numbers, and every key once. Raises ValueError or RecursionError for anything else."""
    return json.loads(
        text.decode("utf-8"),
        parse_int=_integer,
        parse_float=_number,
        parse_constant=_number,
        object_pairs_hook=without_doubles,
    )


def decode(kind: Any, data: Any, where: str) -> Any:
    """Build `kind` (dataclass, tuple, dict, union or scalar) from JSON data.

    Raises ValueError, which names what does not fit, or UnknownEntryError for what is not declared.
    """
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
        return {_text(key, where): decode(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if origin in (types.UnionType, typing.Union) and type(None) in arguments and len(arguments) == 2:
        return None if data is None else decode(next(k for k in arguments if k is not type(None)), data, where)
    accepted = arguments if origin in (types.UnionType, typing.Union, typing.Literal) else (kind,)
    if origin is typing.Literal:
        if not isinstance(data, str) or data not in accepted:
            raise ValueError(f"{where} is {shown(data)}, which is none of {', '.join(accepted)}")
        return data
    if float in accepted and isinstance(data, int) and not isinstance(data, bool):
        return float(data) if int not in accepted else data
    # bool is an int to isinstance(), but not to a reader of JSON.
    if type(data) not in accepted:
        raise ValueError(f"{where} is a {type(data).__name__}")
    return _text(data, where) if isinstance(data, str) else data


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
    if unknown := sorted(data.keys() - names):
        raise UnknownEntryError(f"{where} has the entry {shown(unknown[0])}")
    if missing := sorted(required - data.keys()):
        raise ValueError(f"{where} lacks {missing[0]!r}")
    values = {name: decode(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return kind(**values)
    except InvalidValueError as error:
        raise ValueError(f"{where}: {str(error).rstrip('.')}") from error


def _text(text: str, where: str) -> str:
    """A text that does nothing to a terminal. Raises ValueError for any other."""
    if len(text) > _LONGEST_TEXT or not text.isprintable():
        raise ValueError(f"{where} has the text {shown(text)}, which is too long or no plain text")
    return text


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it has the number {text[:40]}")
    return number
