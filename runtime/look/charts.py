"""Line charts as inline SVG that stretches, with labels in HTML that do not: readable on a phone, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Axis", "Series", "Band", "line_chart", "ticks"]

# The plot is drawn on a square of this side and stretched to whatever room there is.
_SIDE = 1000
_WANTED_TICKS = 4
# A scale for every kind of figure: the largest unit that is not above the axis' end.
_SCALES = {
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "watts": ((1.0, "W"),),
    "share": ((0.01, "%"),),
    "count": ((1.0, ""),),
}


@dataclass(frozen=True)
class Series:
    """A line: its name, the class that gives its colour, its points (x, y) from left to right."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a background of its own."""

    style: str
    start: float
    stop: float


@dataclass(frozen=True)
class Axis:
    """The x axis: from, to, and labels at some of its values."""

    start: float
    stop: float
    labels: Sequence[tuple[float, str]]


def ticks(stop: float, unit: str) -> list[tuple[float, str]]:
    """Round values from 0 to at least `stop`, with their labels; unit: seconds, bytes, watts, share or count."""
    stop = stop if stop > 0 else 1.0
    scale, suffix = next((s for s in _SCALES[unit] if s[0] <= stop), _SCALES[unit][-1])
    step = _round_step(stop / scale / _WANTED_TICKS)
    values = [step * number for number in range(math.ceil(stop / scale / step - 1e-9) + 1)]
    return [(value * scale, f"{value:,.10g} {suffix}".strip()) for value in values]


def line_chart(title: str, series: Sequence[Series], x: Axis, unit: str, *, bands: Sequence[Band] = ()) -> Markup:
    """A chart of one or more lines over a y axis that starts at 0.

    title: what the y axis shows; unit: of the y axis, see `ticks`. Few points are marked as such.
    """
    top = ticks(max((y for line in series for _, y in line.points), default=0.0), unit)
    height = top[-1][0]

    def place(point: tuple[float, float]) -> str:
        return f"{_share(point[0], x) * _SIDE:.1f} {(1 - point[1] / height) * _SIDE:.1f}"

    drawn = [
        Markup('<rect class="{}" x="{:.1f}" width="{:.1f}" y="0" height="{}"/>').format(
            band.style, _share(band.start, x) * _SIDE, (_share(band.stop, x) - _share(band.start, x)) * _SIDE, _SIDE
        )
        for band in bands
    ]
    drawn += [
        Markup('<path class="grid" d="M0 {0:.1f}H{1}"/>').format((1 - value / height) * _SIDE, _SIDE)
        for value, _ in top
    ]
    for line in series:
        places = [place(point) for point in line.points]
        drawn.append(Markup('<path class="line {}" d="M{}"/>').format(line.style, "L".join(places)))
        if len(places) <= 2 * _SIDE // 50:
            dots = "".join(f"M{spot}h0" for spot in places)
            drawn.append(Markup('<path class="dots {}" d="{}"/>').format(line.style, dots))
    y_labels = _labels("bottom", [(value / height, text) for value, text in top])
    x_labels = _labels("left", [(_share(value, x), text) for value, text in x.labels])
    return Markup(
        '<figure class="chart"><figcaption>{}{}</figcaption><div class="plot"><div class="y">{}</div>'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        '<div class="x">{}</div></div></figure>'
    ).format(title, _legend(series), y_labels, _SIDE, _SIDE, title, Markup("").join(drawn), x_labels)


def _legend(series: Sequence[Series]) -> Markup:
    if len(series) < 2:
        return Markup("")
    return Markup("").join(Markup('<span class="key {}">{}</span>').format(line.style, line.name) for line in series)


def _labels(side: str, labels: Sequence[tuple[float, str]]) -> Markup:
    return Markup("").join(
        Markup('<span style="{}:{:.2f}%">{}</span>').format(side, 100 * share, text) for share, text in labels
    )


def _share(value: float, axis: Axis) -> float:
    width = axis.stop - axis.start
    return (value - axis.start) / width if width else 0.5


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
