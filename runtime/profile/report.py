"""A profile as a page: one HTML file that needs nothing else, in any browser, on paper-wide screens and on phones.

Every figure on the page is looked up in the JSON by its place there and carries that place and its exact value
(`<data value="..." data-at="/variants/0/...">`), so the page cannot say anything else than the JSON does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prunevid.runtime.look import units
from prunevid.runtime.look.charts import Axis, Band, Series, line_chart, ticks
from prunevid.runtime.profile.records import STAGES, Comparison, ProfileResult, Variant

__all__ = ["to_html"]

# What a page shows of a timeline; the JSON has all of it.
_TIMELINE_POINTS = 400
_STAGE_NAMES = {
    "video": "video decode",
    "preprocess": "preprocessing",
    "vision": "vision",
    "merge": "merge",
    "llm_pre": "llm_pre",
    "select": "select",
    "llm_post": "llm_post",
}
_OTHER_NAMES = {
    "llm_prefill": "LLM prefill",
    "first_token": "first token",
    "decode": "decode step",
    "end_to_end": "end to end",
    "unattributed": "in no stage",
}
# Where the JSON has nothing: what stands there is shown as a dash.
_NOWHERE = "/nowhere"
# Pruning leaves these as they are: what differs in them is the machine's noise.
_SAME_WORK = ("video", "preprocess", "vision")


def to_html(result: ProfileResult) -> str:
    """The whole page."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figure = _Figures(result.to_dict())
    return environment.get_template("report.html").render(
        result=result,
        figure=figure,
        units=units,
        video=Path(result.video).name,
        comparisons=[_comparison(result, index, figure) for index in range(len(result.comparisons))],
        curves=_curves(result) if result.is_sweep else [],
        sweep=_sweep_rows(result, figure) if result.is_sweep else [],
        swept=[name for name in result.swept if name != "frames"],
        timeline=_timeline_charts(result),
        operators=[_operators(result, index, figure) for index in range(len(result.operators))],
    )


class _Figures:
    """Figures of a profile's JSON as HTML, by the place (JSON pointer) where they are."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def value(self, at: str) -> Any:
        """What stands at a place; None where there is nothing."""
        found: Any = self._data
        for key in at.split("/")[1:]:
            if found is None or (isinstance(found, Mapping) and key not in found):
                return None
            found = found[int(key)] if isinstance(found, (list, tuple)) else found[key]
        return found

    def __call__(self, at: str, unit: Callable[[float], str]) -> Markup:
        """The figure at a place, in words, or a dash."""
        value = self.value(at)
        if value is None:
            return Markup('<span class="nothing">–</span>')
        text = unit(value).replace(" ", "\N{NO-BREAK SPACE}")
        return Markup('<data value="{}" data-at="{}">{}</data>').format(repr(value), at, text)


def _comparison(result: ProfileResult, index: int, figure: _Figures) -> dict[str, Any]:
    """Everything about one pruned variant beside its unpruned one."""
    comparison = result.comparisons[index]
    pruned, unpruned = result.variants[comparison.pruned], result.variants[comparison.unpruned]
    return {
        "title": _label(result, pruned),
        "frames": pruned.frames,
        "pruned": f"/variants/{comparison.pruned}",
        "unpruned": f"/variants/{comparison.unpruned}",
        "ratios": f"/comparisons/{index}/ratios",
        "bars": _bars(result, index, figure),
        "times": _times(result, index, figure),
        "work": _work(result, index, figure),
        "funnel": _funnel(comparison, pruned, figure),
        "steps": _step_chart(pruned, unpruned),
        "settings": pruned.prune or {},
        "device": bool(pruned.device and unpruned.device),
        "rails": sorted(pruned.device.rails_w) if pruned.device else [],
    }


def _label(result: ProfileResult, variant: Variant) -> str:
    """What tells a pruned variant from the others."""
    settings = {"frames": variant.frames, **(variant.prune or {})}
    return ", ".join(f"{name} {settings[name]}" for name in result.swept or ("frames",))


def _bars(result: ProfileResult, index: int, figure: _Figures) -> list[dict[str, Any]]:
    """A pair of bars for every stage, on one scale."""
    comparison = result.comparisons[index]
    sides = {
        name: {stage.name: (number, stage) for number, stage in enumerate(result.variants[variant].stages)}
        for name, variant in (("unpruned", comparison.unpruned), ("pruned", comparison.pruned))
    }
    longest = max(stage.time.median_s for side in sides.values() for _, stage in side.values())
    bars = []
    for stage in STAGES:
        pair = []
        for name, side in sides.items():
            if stage in side:
                number, found = side[stage]
                at = f"/variants/{getattr(comparison, name)}/stages/{number}/time/median_s"
                pair.append((name, 100 * found.time.median_s / longest, figure(at, units.seconds)))
        ratio = figure(f"/comparisons/{index}/ratios/{stage}", units.ratio)
        bars.append({"name": _STAGE_NAMES[stage], "pair": pair, "ratio": ratio, "same": stage in _SAME_WORK})
    return bars


def _times(result: ProfileResult, index: int, figure: _Figures) -> list[dict[str, Any]]:
    """The table of all times: stages, and what they add up to."""
    comparison = result.comparisons[index]
    sides = [_time_places(result.variants[side], side) for side in (comparison.unpruned, comparison.pruned)]
    return [
        {
            "name": text,
            "is_sum": name not in STAGES,
            "same": name in _SAME_WORK,
            "cells": [
                figure(f"{side.get(name, _NOWHERE)}/{statistic}", units.seconds)
                for side in sides
                for statistic in ("median_s", "p90_s", "p99_s")
            ],
            "ratio": figure(f"/comparisons/{index}/ratios/{name}", units.ratio),
        }
        for name, text in {**_STAGE_NAMES, **_OTHER_NAMES}.items()
        if any(name in side for side in sides)
    ]


def _work(result: ProfileResult, index: int, figure: _Figures) -> list[dict[str, Any]]:
    """The table of tokens and arithmetic by stage."""
    comparison = result.comparisons[index]
    sides = [_work_places(result.variants[side], side) for side in (comparison.unpruned, comparison.pruned)]
    rows = []
    for name, text in {**_STAGE_NAMES, "decode": "decode, all steps"}.items():
        cells = []
        for side in sides:
            at = side.get(name, _NOWHERE)
            cells += [_tokens(at, figure), figure(f"{at}/flops", units.flops)]
            cells.append(figure(f"{at}/gflops_per_s", units.rate))
        if any("<data" in cell for cell in cells):
            rows.append({"name": text, "cells": cells})
    return rows


def _work_places(variant: Variant, index: int) -> dict[str, str]:
    """Where the stages of a variant are in the JSON, by name; decoding is one of them here."""
    places = {stage.name: f"/variants/{index}/stages/{number}" for number, stage in enumerate(variant.stages)}
    return places | ({"decode": f"/variants/{index}/decode"} if variant.decode else {})


def _time_places(variant: Variant, index: int) -> dict[str, str]:
    """Where the times of a variant are in the JSON, by name."""
    places = {name: f"{at}/time" for name, at in _work_places(variant, index).items()}
    return places | {name: f"/variants/{index}/{name}" for name in _OTHER_NAMES if name != "decode"}


def _tokens(at: str, figure: _Figures) -> Markup:
    if figure.value(f"{at}/tokens_in") is None:
        return figure(_NOWHERE, units.count)
    return Markup("{} → {}").format(figure(f"{at}/tokens_in", units.count), figure(f"{at}/tokens_out", units.count))


def _funnel(comparison: Comparison, pruned: Variant, figure: _Figures) -> list[dict[str, Any]]:
    """From the patches of all frames to the tokens that are kept."""
    steps = (
        ("patches", "patches in the vision tower"),
        ("visual", "visual tokens after pooling"),
        ("merged", "merged: what llm_pre sees"),
        ("kept", "kept: what llm_post and decoding see"),
    )
    return [
        {
            "text": text,
            "width": 100 * getattr(pruned.tokens, name) / pruned.tokens.patches,
            "figure": figure(f"/variants/{comparison.pruned}/tokens/{name}", units.count),
        }
        for name, text in steps
    ]


def _step_chart(pruned: Variant, unpruned: Variant) -> Markup:
    """Median time of every decode step."""
    sides = (("unpruned", unpruned.decode), ("pruned", pruned.decode))
    series = [
        Series(name, name, [(number, step.median_s) for number, step in enumerate(decode.steps, start=2)])
        for name, decode in sides
        if decode
    ]
    if not series:
        return Markup("")
    last = len(series[0].points) + 1
    labels = [(value, text) for value, text in ticks(last, "count") if 2 <= value <= last and value == int(value)]
    return line_chart("time per token, from the second on (median)", series, Axis(2, last, labels), "seconds")


def _curves(result: ProfileResult) -> list[dict[str, Any]]:
    """Small charts over what was swept: the setting for every number of frames, or else the frames."""
    names = [name for name in result.swept if name != "frames"]
    if not names:
        return [{"title": "over frames", "charts": _curve_charts(result, list(result.comparisons), "frames")}]
    curves = []
    for frames in dict.fromkeys(variant.frames for variant in result.variants):
        chosen = [c for c in result.comparisons if result.variants[c.pruned].frames == frames]
        curves.append({"title": f"over {names[0]}, {frames} frames", "charts": _curve_charts(result, chosen, names[0])})
    return curves


_CURVES: tuple[tuple[str, str, Callable[[Variant], float | None]], ...] = (
    ("first token", "seconds", lambda variant: variant.first_token.median_s),
    ("LLM prefill", "seconds", lambda variant: variant.llm_prefill.median_s),
    ("decode step", "seconds", lambda variant: variant.decode.time.median_s if variant.decode else None),
    ("visual tokens kept", "count", lambda variant: variant.tokens.kept),
    ("KV cache", "bytes", lambda variant: variant.kv_bytes),
)


def _curve_charts(result: ProfileResult, comparisons: Sequence[Comparison], name: str) -> list[Markup]:
    settings = [{"frames": v.frames, **(v.prune or {})} for v in (result.variants[c.pruned] for c in comparisons)]
    values = [setting[name] for setting in settings]
    is_number = all(isinstance(value, (int, float)) for value in values)
    places = [float(value) if is_number else float(number) for number, value in enumerate(values)]
    axis = Axis(min(places), max(places), [(place, str(value)) for place, value in zip(places, values, strict=True)])
    charts = []
    for title, unit, measure in _CURVES:
        series = []
        for side in ("unpruned", "pruned"):
            found = [measure(result.variants[getattr(comparison, side)]) for comparison in comparisons]
            points = [(place, value) for place, value in zip(places, found, strict=True) if value is not None]
            series.append(Series(side, side, sorted(points)))
        if series[0].points:
            charts.append(line_chart(title, series, axis, unit))
    return charts


def _sweep_rows(result: ProfileResult, figure: _Figures) -> list[dict[str, Any]]:
    """One row per variant: settings, tokens, times and what they gain."""
    ratios = {comparison.pruned: number for number, comparison in enumerate(result.comparisons)}
    names = [name for name in result.swept if name != "frames"]
    rows = []
    for index, variant in enumerate(result.variants):
        at = f"/variants/{index}"
        gains = f"/comparisons/{ratios[index]}/ratios" if index in ratios else _NOWHERE
        times = [
            (figure(f"{at}/{place}/median_s", units.seconds), figure(f"{gains}/{name}", units.ratio))
            for name, place in (
                ("first_token", "first_token"),
                ("llm_prefill", "llm_prefill"),
                ("decode", "decode/time"),
                ("end_to_end", "end_to_end"),
            )
        ]
        rows.append(
            {
                "name": variant.name,
                "frames": figure(f"{at}/frames", units.count),
                "settings": [variant.prune[name] if variant.prune else "–" for name in names],
                "kept": figure(f"{at}/tokens/kept", units.count),
                "times": times,
                "kv": figure(f"{at}/kv_bytes", units.data),
            }
        )
    return rows


def _timeline_charts(result: ProfileResult) -> list[Markup]:
    """Memory, and where there are sensors power and GPU load, over the time of all runs."""
    timeline = result.timeline
    end = max(run.begin_s + run.end_to_end_s for run in result.runs)
    labels = [(value, text) for value, text in ticks(end, "seconds") if value <= end]
    axis = Axis(0.0, end, labels)
    spans = [
        Band(f"span-{result.variants[run.variant].name}", run.begin_s, run.begin_s + run.end_to_end_s)
        for run in result.runs
    ]
    samples = timeline.device
    lines: list[tuple[str, str, list[tuple[float, float]]]] = [
        ("memory of this process", "bytes", [*zip(timeline.rss_time_s, timeline.rss_bytes, strict=True)]),
        (
            "memory of the device in use",
            "bytes",
            [(s.time_s, s.memory_bytes) for s in samples if s.memory_bytes is not None],
        ),
        ("power", "watts", [(s.time_s, s.power_w) for s in samples if s.power_w is not None]),
        ("GPU load", "share", [(s.time_s, s.gpu_load) for s in samples if s.gpu_load is not None]),
    ]
    return [
        line_chart(title, [Series(title, "total", _thinned(points, end))], axis, unit, bands=spans)
        for title, unit, points in lines
        if points
    ]


def _thinned(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """The highest point of every stretch of time, so that no peak is lost."""
    highest: dict[int, tuple[float, float]] = {}
    for point in points:
        stretch = int(point[0] / end * _TIMELINE_POINTS)
        if stretch not in highest or point[1] > highest[stretch][1]:
            highest[stretch] = point
    return [point for point in highest.values() if point[0] <= end]


def _operators(result: ProfileResult, index: int, figure: _Figures) -> dict[str, Any]:
    graph = result.operators[index]
    longest = graph.slowest[0].total_s
    return {
        "graph": graph.graph,
        "variant": graph.variant,
        "total": figure(f"/operators/{index}/total_s", units.seconds),
        "types": [
            (kind.type, figure(f"/operators/{index}/types/{number}/share", units.percent))
            for number, kind in enumerate(graph.types)
        ],
        "rows": [
            {
                "name": operator.name,
                "type": operator.type,
                "width": 100 * operator.total_s / longest if longest else 0.0,
                "calls": figure(f"/operators/{index}/slowest/{number}/calls", units.count),
                "time": figure(f"/operators/{index}/slowest/{number}/total_s", units.seconds),
                "share": figure(f"/operators/{index}/slowest/{number}/share", units.percent),
            }
            for number, operator in enumerate(graph.slowest)
        ],
    }
