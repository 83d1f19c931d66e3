"""Checks of values that come from files and users, and how such values are shown in a sentence."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunevid.errors import InvalidValueError

__all__ = [
    "LARGEST",
    "Rule",
    "is_integer",
    "is_number",
    "require",
    "require_integer",
    "require_number",
    "require_text",
    "shown",
    "without_doubles",
]

LARGEST = 2**31 - 1
"""No count, size or number of a setting is larger."""

_MOST_DIGITS = 40


@dataclass(frozen=True)
class Rule:
    """What one value may be: in words, for the sentence that refuses another, and as a test."""

    allowed: str
    fits: Callable[[Any], bool]


def is_integer(value: object) -> bool:
    """Whether a value is an int, and no bool, which is one to isinstance()."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_integer(value)


def shown(value: object) -> str:
    """A value for a sentence: short whatever it is, and without characters that do something to a terminal."""
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return f"a number of more than {_MOST_DIGITS} digits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlevel = 2
    return short.repr(value)


def require(name: str, value: object, holds: bool, wanted: str) -> None:
    """Raise InvalidValueError unless `holds`: the setting `name` must be `wanted`, and is `value`."""
    if not holds:
        raise InvalidValueError(f"{name} must be {wanted}, not {shown(value)}.")


def require_integer(name: str, value: Any, least: int, most: int = LARGEST) -> None:
    """Raise InvalidValueError unless a value is an integer from `least` to `most`."""
    require(name, value, is_integer(value) and least <= value <= most, f"an integer from {least} to {most}")


def require_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise InvalidValueError unless a value is a number from `least` to `most`."""
    require(name, value, is_number(value) and least <= value <= most, f"a number from {least:g} to {most:g}")


def require_text(name: str, value: Any, longest: int) -> None:
    """Raise InvalidValueError unless a value is a text of 1 to `longest` characters."""
    require(name, value, isinstance(value, str) and 1 <= len(value) <= longest, f"a text of 1 to {longest} characters")


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object whose keys are all different. Raises ValueError for one that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found
