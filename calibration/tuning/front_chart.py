"""The front of agreement against cost as a picture: one layout, drawn by Pillow or as SVG in a page of its own."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from markupsafe import Markup
from PIL import Image, ImageDraw

from prunevid.runtime.look.style import BACKGROUND, DYNAMIC, MUTED, STATIC, TEXT, TRACK, Colour, font

WIDTH, HEIGHT = 1200, 470
_SCALE = 2
_LEFT, _TOP, _PANEL_WIDTH, _PANEL_HEIGHT, _GAP = 64, 84, 320, 310, 70
_COLOURS: dict[str, Colour] = {
    "ink": TEXT, "soft": MUTED, "grid": TRACK, "faint": (84, 96, 116), "front": STATIC, "chosen": DYNAMIC,
    "budget": (232, 106, 116),
}  # fmt: skip
_GFLOP = 1e9

Point = tuple[float, float]


class Surface(Protocol):
    """What is drawn on: colours by name, positions in layout units."""

    def line(self, points: Sequence[Point], colour: str, width: float) -> None:
        """A line through points."""

    def dot(self, at: Point, colour: str, radius: float) -> None:
        """A filled circle."""

    def text(self, at: Point, text: str, size: int, colour: str, anchor: str = "start") -> None:
        """A line of text on a baseline; anchor: start, middle or end."""


class _Picture:
    """Pixels, by Pillow."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[Point], colour: str, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, _COLOURS[colour], max(1, round(width * _SCALE)), joint="curve")

    def dot(self, at: Point, colour: str, radius: float) -> None:
        self._draw.circle((at[0] * _SCALE, at[1] * _SCALE), radius * _SCALE, _COLOURS[colour])

    def text(self, at: Point, text: str, size: int, colour: str, anchor: str = "start") -> None:
        place = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        self._draw.text((at[0] * _SCALE, at[1] * _SCALE), text, _COLOURS[colour], font(size * _SCALE), place)


class _Svg:
    """SVG elements, coloured by their class."""

    def __init__(self) -> None:
        self.parts: list[Markup] = []

    def line(self, points: Sequence[Point], colour: str, width: float) -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(Markup('<path class="s-{}" d="M{}" stroke-width="{}"/>').format(colour, path, width))

    def dot(self, at: Point, colour: str, radius: float) -> None:
        dot = Markup('<circle class="f-{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>')
        self.parts.append(dot.format(colour, *at, radius))

    def text(self, at: Point, text: str, size: int, colour: str, anchor: str = "start") -> None:
        line = Markup('<text class="f-{}" x="{:.1f}" y="{:.1f}" font-size="{}" text-anchor="{}">{}</text>')
        self.parts.append(line.format(colour, *at, size, anchor, text))


def draw_png(data: Mapping[str, Any]) -> bytes:
    """The picture as PNG, 2400 pixels wide, of what `prunevid.calibration.tuning.tune.to_json` gives."""
    picture, file = _Picture(), io.BytesIO()
    _draw(picture, data)
    picture.image.save(file, "PNG", optimize=True)
    return file.getvalue()


def draw_svg(data: Mapping[str, Any]) -> Markup:
    """The same picture as SVG, for a page that has colours for its classes."""
    svg = _Svg()
    _draw(svg, data)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="agreement over cost">{}</svg>').format(
        WIDTH, HEIGHT, Markup("").join(svg.parts)
    )


def _draw(on: Surface, data: Mapping[str, Any]) -> None:
    settings, budget = data["settings"], data["budget"]
    asked = max(entry["questions"] for entry in settings)
    on.text((_LEFT - 40, 32), "Agreement with the unpruned chain over cost", 19, "ink")
    note = f"{len(settings)} settings, {asked} calibration questions for those on the front; bars are 95 % intervals"
    on.text((_LEFT - 40, 52), note, 12, "soft")
    low = min(entry["agreement"] for entry in settings)
    shown = [e["interval"][0] for e in settings if e["on_front_of_tokens"] and e["agreement"] > 0.5]
    bottom = max(0.0, min([low, *shown]) // 0.1 * 0.1)
    tokens = 100 * budget["max_tokens"] if budget["max_tokens"] else None
    timed = [entry for entry in settings if entry["ttft_ms"] is not None]
    panels: list[tuple[str, Sequence[Mapping[str, Any]], str, Callable[[Mapping[str, Any]], float], float | None]] = [
        ("visual tokens kept, %", settings, "on_front_of_tokens", lambda entry: 100 * entry["kept"], tokens),
        ("GFLOP in the language model", settings, "on_front_of_flops", lambda e: e["llm_flops"] / _GFLOP, None),
        ("ms to the first token, measured", timed, "on_front_of_ttft", lambda e: e["ttft_ms"], budget["max_ttft_ms"]),
    ]
    for number, (title, entries, front, cost, most) in enumerate(panels):
        left = _LEFT + number * (_PANEL_WIDTH + _GAP)
        _panel(on, left, title, entries, front, cost, bottom, most, budget["min_agreement"])
    x = _LEFT - 40.0
    for colour, name, width in (
        ("faint", "tried", 50), ("front", "front", 55), ("ink", "present", 68), ("chosen", "chosen", 66),
        ("budget", "budget", 60),
    ):  # fmt: skip
        on.dot((x + 5, HEIGHT - 22), colour, 4)
        on.text((x + 14, HEIGHT - 18), name, 12, "soft")
        x += width + 16


def _panel(
    on: Surface,
    left: float,
    title: str,
    settings: Sequence[Mapping[str, Any]],
    front: str,
    cost: Callable[[Mapping[str, Any]], float],
    bottom: float,
    most: float | None,
    least: float | None,
) -> None:
    """Agreement over one cost; most and least: the budget's limits."""
    marks = _round_values([cost(entry) for entry in settings])
    begin, end = marks[0], marks[-1]

    def place(x: float, y: float) -> Point:
        up = (max(y, bottom) - bottom) / (1 - bottom)
        along = math.log(max(x, begin) / begin) / math.log(end / begin)
        return left + along * _PANEL_WIDTH, _TOP + (1 - up) * _PANEL_HEIGHT

    for number in range(6):
        y = bottom + (1 - bottom) * number / 5
        on.line([place(begin, y), place(end, y)], "grid", 1)
        on.text((left - 8, place(begin, y)[1] + 4), f"{100 * y:.0f} %", 11, "soft", "end")
    for value in marks:
        on.text((place(value, bottom)[0], _TOP + _PANEL_HEIGHT + 18), f"{value:g}", 11, "soft", "middle")
    on.text((left + _PANEL_WIDTH, _TOP + _PANEL_HEIGHT + 38), title, 12, "ink", "end")
    if most is not None and begin <= most <= end:
        on.line([place(most, bottom), place(most, 1)], "budget", 1.5)
    if least is not None and least >= bottom:
        on.line([place(begin, least), place(end, least)], "budget", 1.5)
    for entry in settings:
        on.dot(place(cost(entry), entry["agreement"]), "faint", 2)
    best = sorted((entry for entry in settings if entry[front]), key=cost)
    for entry in best:
        x = cost(entry)
        on.line([place(x, entry["interval"][0]), place(x, entry["interval"][1])], "front", 0.75)
    # What a cost buys is the best up to it: a staircase.
    stairs: list[Point] = []
    for entry in best:
        if stairs:
            stairs.append((place(cost(entry), 1)[0], stairs[-1][1]))
        stairs.append(place(cost(entry), entry["agreement"]))
    on.line(stairs, "front", 2)
    for entry in best:
        on.dot(place(cost(entry), entry["agreement"]), "front", 3.5)
    for name, colour, dy in (("present", "ink", 20), ("chosen", "chosen", -12)):
        for entry in settings:
            if entry[name]:
                at = place(cost(entry), entry["agreement"])
                on.dot(at, colour, 6)
                on.text((at[0] + 8, at[1] + dy), name, 12, colour)


def _round_values(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten around the values that are above 0: marks of a logarithmic axis."""
    above = [value for value in values if value > 0] or [1.0]
    powers = range(math.floor(math.log10(min(above))) - 1, math.ceil(math.log10(max(above))) + 1)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    low = max(number for number, mark in enumerate(marks) if mark <= min(above))
    high = min(number for number, mark in enumerate(marks) if number > low and mark >= max(above) * (1 - 1e-9))
    return marks[low : high + 1]
