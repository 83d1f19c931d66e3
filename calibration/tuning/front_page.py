"""The front of agreement against cost as a page: one HTML file that needs nothing else.

Every figure carries its exact value and its place in the JSON (`<data value="..." data-at="/settings/0/kept">`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from prunevid.calibration.tuning.front_chart import draw_svg
from prunevid.config import SETTINGS
from prunevid.runtime.look import units

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("agreement", "same answer", units.percent),
    ("divergence", "KL, nats", units.rate),
    ("merged", "merged", units.percent),
    ("kept", "kept", units.percent),
    ("llm_flops", "language model", units.flops),
    ("ttft_ms", "first token", lambda value: units.seconds(value / 1000)),
)
_SEARCHED = tuple(name for name, setting in SETTINGS.items() if setting.search)


def draw_page(data: Mapping[str, Any]) -> str:
    """The page, of what `calibration.tuning.tune.to_json` gives: the picture, and a table of the front."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("front.html").read_text(encoding="utf-8"))
    settings = data["settings"]
    shown = [
        number
        for number, entry in enumerate(settings)
        if entry["on_front_of_tokens"] or entry["on_front_of_flops"] or entry["present"] or entry["chosen"]
    ]
    shown.sort(key=lambda number: settings[number]["kept"])
    return template.render(
        chart=draw_svg(data),
        budget={name: value for name, value in data["budget"].items() if value is not None},
        machine=data["machine"],
        tried=len(settings),
        names=_SEARCHED,
        columns=[title for _, title, _ in _COLUMNS],
        rows=[
            {
                "entry": settings[number],
                "cells": [
                    _figure(settings[number][key], f"/settings/{number}/{key}", unit) for key, _, unit in _COLUMNS
                ],
            }
            for number in shown
        ],
    )


def _figure(value: float | None, at: str, unit: Callable[[float], str]) -> Markup:
    if value is None:
        return Markup("–")
    return Markup('<data value="{}" data-at="{}">{}</data>').format(repr(value), at, unit(value))
