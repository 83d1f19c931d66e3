"""Damage to JSON: most of it stays JSON, with one value that nobody expects."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

from benchmarks.fuzz.raw import damage_bytes

__all__ = ["damage_json", "odd_value"]

_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 4096, 100_000, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.5, -0.5, 1e-9, 1e308, -1e308, 5e-324, 1.0000001),
)
_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\nb",
        "\r",
        "\u2028",
        "\ud800",
        "\U0001f600",
        "x" * 5_000,
        "x" * 3_000_000,
        "%s%n",
        "{0}",
        "[/red]",
    ),
    *(
        "../secret",
        "/etc/passwd",
        "/dev/zero",
        ".",
        "a/../../b",
        "con",
        "nan",
        "true",
        "1",
        "float16",
        "null",
        "0" * 5_000,
    ),
)
_CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [None], {"": None}, [0] * 100_000)
# Written as they are, since no JSON library would.
_RAW = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "5000 digits": "9" * 5_000,
    "200000 levels": "[" * 200_000 + "]" * 200_000,
    "20000 objects": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "no value": "",
    "single quotes": "'x'",
    "comment": "1 // one",
    "escape": '"\\x41"',
    "lone surrogate": '"\\udc00"',
}
_MARK = "\u0001raw"


def damage_json(rng: Random, text: str) -> tuple[bytes, str]:
    """One to three damages to a JSON document, once in ten to its text; returns it and what was done."""
    if rng.random() < 0.1:
        return _damage_text(rng, text)
    root = [json.loads(text)]
    raw: dict[str, str] = {}
    done = [_damage(rng, root, raw) for _ in range(rng.choice([1, 1, 1, 1, 2, 3]))]
    written = json.dumps(root[0])
    for mark, value in raw.items():
        written = written.replace(json.dumps(mark), value)
    return written.encode(), "; ".join(done)


def _damage_text(rng: Random, text: str) -> tuple[bytes, str]:
    how = rng.choice(
        ["bytes", "bytes", "bytes", "BOM", "UTF-16", "Latin-1", "empty", "twice", "null", "list", "spaces"]
    )
    data = text.encode()
    if how == "bytes":
        damaged, detail = damage_bytes(rng, data)
        return damaged, f"text: {detail}"
    made = {
        "BOM": b"\xef\xbb\xbf" + data,
        "UTF-16": text.encode("utf-16"),
        "Latin-1": data.replace(b"e", b"\xe9", 1),
        "empty": b"",
        "twice": data + data,
        "null": b"null",
        "list": b"[" + data + b"]",
        "spaces": data + b" " * 10_000_000,
    }
    return made[how], f"text: {how}"


def _damage(rng: Random, root: list[Any], raw: dict[str, str]) -> str:
    """Damage one value below `root`, a list of one; every branch is as likely, however many leaves it has."""
    holder, key, path = _descend(rng, root)
    how = rng.choice(
        ["value", "value", "value", "near", "near", "raw", "delete", "delete", "add", "twice", "swap", "rename"]
    )
    value = holder[key]
    if how == "delete" and path:
        del holder[key]
    elif how == "add":
        _add(rng, value if isinstance(value, (dict, list)) else holder, odd_value(rng))
    elif how == "twice" and isinstance(holder, dict):
        mark = f"{_MARK}{len(raw)}"
        raw[mark] = json.dumps(key)
        holder[mark] = odd_value(rng)
    elif how == "swap":
        other, other_key, other_path = _descend(rng, root)
        if other is not holder and path not in (other_path[: len(path)],) and other_path != path[: len(other_path)]:
            holder[key], other[other_key] = deepcopy(other[other_key]), deepcopy(value)
            return f"swap {'.'.join(path)} and {'.'.join(other_path)}"
    elif how == "rename" and isinstance(holder, dict):
        holder[rng.choice(["", f"{key}s", key.upper(), "__class__", f"{key} "])] = holder.pop(key)
    elif how == "raw":
        mark, name = f"{_MARK}{len(raw)}", rng.choice(list(_RAW))
        raw[mark] = _RAW[name]
        holder[key] = mark
        return f"{'.'.join(path)} is {name}"
    else:
        holder[key] = _near(rng, value) if how == "near" else odd_value(rng)
        return f"{'.'.join(path)} is {str(holder[key])[:40]!r}"
    return f"{how} {'.'.join(path)}"


def _descend(rng: Random, root: list[Any]) -> tuple[Any, Any, tuple[str, ...]]:
    holder: Any = root
    key: Any = 0
    path: tuple[str, ...] = ()
    while isinstance(holder[key], (dict, list)) and holder[key] and (not path or rng.random() < 0.85):
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        path = (*path, str(key)[:40])
    return holder, key, path


def _add(rng: Random, holder: Any, value: Any) -> None:
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), deepcopy(rng.choice(holder)) if holder else value)
    else:
        holder[rng.choice(["", "unknown", "\ud800", "__init__", "type", "x" * 10_000])] = value


def _near(rng: Random, value: Any) -> Any:
    """A value of the same type, not far away: these get past checks of types."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, value * 2, value // 2, -value, float(value), value * 1000])
    if isinstance(value, float):
        return rng.choice([value * 2, value / 2, -value, round(value), value * 1e6, value + 1])
    if isinstance(value, str):
        return rng.choice([value + "x", value[:-1], value.upper(), value[::-1], f" {value}", value * 2, [value]])
    if isinstance(value, list):
        return rng.choice([value[:-1], value * 2, value[::-1], value[:1], value * 2000 if len(value) < 50 else []])
    if isinstance(value, dict):
        return rng.choice([list(value.values()), list(value.items()), {}, {**value, "extra": 1}])
    return odd_value(rng)


def odd_value(rng: Random) -> Any:
    """A value of any type, most often at an edge of something."""
    return deepcopy(
        rng.choice(
            [rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_TEXTS), rng.choice(_CONTAINERS), None, True]
        )
    )
