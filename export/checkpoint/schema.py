"""What a JSON file may say, declared as data, and the one place that holds a file against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunevid.errors import PruneVidError
from prunevid.validation import Rule, is_integer, is_number

_SHOWN = 60


@dataclass(frozen=True)
class Section:
    """An object of a JSON file: the rules of its keys.

    Keys without a rule are left out of what is read; with `closed` they are refused, unless they are null.
    `required` must be there.
    """

    fields: Mapping[str, Rule | Section]
    required: tuple[str, ...] = ()
    closed: bool = False
    null: bool = field(default=False, kw_only=True)


def show(value: Any) -> str:
    """A JSON value as a message shows it: as JSON has it, on one line, and not all of a long one."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds."""
    return Rule(f"a whole number from {low} to {high}", lambda value: is_integer(value) and low <= value <= high)


def number(low: float, high: float) -> Rule:
    """A number within bounds."""
    return Rule(f"a number from {low:g} to {high:g}", lambda value: is_number(value) and low <= value <= high)


def exactly(value: int | float) -> Rule:
    """One number."""
    return Rule(f"{value:g}", lambda given: is_number(given) and given == value)


def positive(high: float) -> Rule:
    """A number above 0, up to a bound."""
    return Rule(f"a number above 0, up to {high:g}", lambda value: is_number(value) and 0 < value <= high)


def one_of(*values: str | bool | None) -> Rule:
    """One of some texts, or true, false or null."""
    words = [show(value) for value in values]
    allowed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    # Types are compared as well: to Python, 1 and 1.0 equal True.
    return Rule(allowed, lambda value: any(type(value) is type(known) and value == known for known in values))


def text(longest: int) -> Rule:
    """A text that is not empty."""
    return Rule(
        f"a text of 1 to {longest} characters", lambda value: isinstance(value, str) and 0 < len(value) <= longest
    )


def list_of(rule: Rule, least: int, most: int) -> Rule:
    """A list whose entries all fit one rule."""
    size = f"{least}" if least == most else f"{least} to {most}"
    return Rule(
        f"a list of {size} entries, each {rule.allowed}",
        lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(rule.fits, value)),
    )


def either(*rules: Rule) -> Rule:
    """What fits any of some rules."""
    allowed = ", or ".join(rule.allowed for rule in rules)
    return Rule(allowed, lambda value: any(rule.fits(value) for rule in rules))


def only(rule: Rule, why: str) -> Rule:
    """A rule with the reason why nothing else will do."""
    return Rule(f"{rule.allowed} ({why})", rule.fits)


FLAG = one_of(True, False)
NULL = one_of(None)


def optional(rule: Rule) -> Rule:
    """What fits a rule, or null."""
    return either(rule, NULL)


def anything() -> Rule:
    """Any value: the key is known to change nothing here."""
    return Rule("anything", lambda value: True)


def conform(data: Any, section: Section, file: str, where: str = "") -> dict[str, Any]:
    """The keys of `data` that the section knows, once all are found to be what they may be.

    Raises PruneVidError that names file, key, value and what is allowed.
    """
    if not isinstance(data, dict):
        raise refuse(file, where or "its content", data, "an object")
    for key in section.required:
        if key not in data:
            raise PruneVidError(f"{file}: {_join(where, key)} is missing: this file must have it")
    known: dict[str, Any] = {}
    for key, rule in section.fields.items():
        if key not in data:
            continue
        value, name = data[key], _join(where, key)
        if isinstance(rule, Section):
            known[key] = None if rule.null and value is None else conform(value, rule, file, name)
        elif rule.fits(value):
            known[key] = value
        else:
            raise refuse(file, name, value, rule.allowed)
    if section.closed:
        for key, value in data.items():
            if key not in section.fields and value is not None:
                raise PruneVidError(
                    f"{file}: {_join(where, key)[:_SHOWN]!r} is {show(value)}, and what that asks for is not known: "
                    "remove it if it changes nothing"
                )
    return known


def refuse(file: str, key: str, value: Any, allowed: str) -> PruneVidError:
    """The error for a value that is not allowed."""
    return PruneVidError(f"{file}: {key} must be {allowed}, not {show(value)}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
