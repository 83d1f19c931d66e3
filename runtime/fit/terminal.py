"""Whether a model fits, in the terminal: the verdict first, then the tables, then what they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunevid.runtime.fit.devices.device import Device
from prunevid.runtime.fit.estimate import ANSWER, ESTIMATED_STAGES, TEXT_BEFORE, Estimate, text_after
from prunevid.runtime.fit.measured import MeasuredEstimate, Row
from prunevid.runtime.fit.result import FitResult, Pair

__all__ = ["print_result", "print_comparisons"]


def print_result(result: FitResult, console: Console) -> None:
    """Print verdict, tables and assumptions."""
    how = "rates measured here" if result.device.is_measured else "nothing was measured on this device"
    fits = result.verdict.startswith("FITS")
    console.print(Text(result.verdict, style="bold green" if fits else "bold red"))
    console.print(Text(f"An estimate: {how}."))
    for line in result.details:
        console.print(Text(f"  {line}"))
    console.print()
    console.print(_overview(result))
    shown = _usual_frames(result)
    _heading(f"Memory at {shown} frames, GB", console)
    console.print(_memory(result, shown))
    _heading(f"Time to the first token at {shown} frames, s", console)
    console.print(_time(result, shown))
    console.print()
    for line in _assumptions(result):
        console.print(Text(line, style="dim"))


def print_comparisons(comparisons: Sequence[MeasuredEstimate], console: Console) -> None:
    """Print estimate, measurement and error of a run on this machine, unpruned and pruned."""
    _heading(f"Estimate and measurement at {comparisons[0].estimate.workload.frames} frames", console)
    table = _table("")
    for comparison in comparisons:
        for column in (f"{_name(comparison)}\nestimate", "\nmeasured", "\nerror"):
            table.add_column(column, justify="right")
    found = [{row.name: row for row in comparison.rows} for comparison in comparisons]
    for name in max(found, key=len):
        table.add_row(_label(name), *(cell for rows in found for cell in _cells(rows.get(name))))
    console.print(table)
    for comparison in comparisons:
        counts, seconds = comparison.measurement.counts, comparison.measurement.read_s
        line = (
            f"{_name(comparison)}: {counts.visual} visual tokens, {counts.merged} merged, {counts.kept} kept, "
            f"{counts.text} text; reading and resizing the video took {seconds:.2f} s, which is not estimated."
        )
        console.print(Text(line, style="dim"))


def _overview(result: FitResult) -> Table:
    table = _table("", "frames")
    for name in ("memory\nGB", "left\nGB", "first\ntoken s", "decode\nms/token"):
        table.add_column(f"{name}\nunpruned", justify="right")
        table.add_column("\n\npruned", justify="right")
    for precision in result.precisions:
        for pair in result.of(precision):
            both = (pair.unpruned, pair.pruned)
            table.add_row(
                precision,
                str(pair.frames),
                *(f"{made.memory.total / 1e9:.2f}" for made in both),
                *(_left(made) for made in both),
                *(_number(made.first_token_s) for made in both),
                *(_number(1000 * made.decode_s) for made in both),
            )
        table.add_section()
    return table


def _memory(result: FitResult, frames: int) -> Table:
    table = _table("")
    table.add_column("weights", justify="right")
    for name in ("KV cache", "activations"):
        table.add_column(f"{name}\nunpruned", justify="right")
        table.add_column("\npruned", justify="right")
    for pair in _at(result, frames):
        both = (pair.unpruned.memory, pair.pruned.memory)
        table.add_row(
            pair.precision,
            f"{both[0].weights / 1e9:.2f}",
            *(f"{memory.kv / 1e9:.2f}" for memory in both),
            *(f"{memory.activations / 1e9:.2f}" for memory in both),
        )
    return table


def _time(result: FitResult, frames: int) -> Table:
    table = _table("")
    pairs = _at(result, frames)
    for pair in pairs:
        table.add_column(f"{pair.precision}\nunpruned", justify="right")
        table.add_column("\npruned", justify="right")
    for stage in ESTIMATED_STAGES:
        cells = [
            _number(made.stages_s[stage]) if stage in made.stages_s else ""
            for pair in pairs
            for made in (pair.unpruned, pair.pruned)
        ]
        table.add_row(stage, *cells)
    return table


def _assumptions(result: FitResult) -> list[str]:
    device, shares, text = result.device, result.shares, TEXT_BEFORE + text_after(result.model.layout)
    return [
        f"Assumed: merging leaves {shares.merged:.1%} of the visual tokens and {shares.kept:.1%} are kept; "
        f"{text} tokens of text, an answer of {ANSWER}; a video of 1920 x 1080 pixels.",
        f"Usable memory: {device.usable_bytes / 1e9:.1f} of {device.memory_bytes / 1e9:.1f} GB. Reserved: "
        f"{device.reserved_for}",
        f"Counted on: {device.compute_efficiency:.0%} of the dense peak rates ({_rates(device)}) and "
        f"{device.bandwidth_efficiency:.0%} of {device.bandwidth / 1e9:.0f} GB/s. Reading and resizing the video is "
        "not estimated.",
        *_engines(device),
        f"Source: {device.source}",
    ]


def _engines(device: Device) -> list[str]:
    """Which engines it takes: nothing where TensorRT is not for it."""
    if not device.has_tensorrt:
        return []
    how = "of TensorRT, built there"
    if device.has_tensorrt_rtx:
        how = (
            f"of TensorRT-RTX, built on any machine (`prunevid build --device rtx --capability "
            f"{device.compute_capability}`), or {how}"
        )
    return [f"Engines: {how}; each holds its weights once."]


def _rates(device: Device) -> str:
    rates = {"fp32": device.fp32, "fp16": device.fp16, "int8": device.int8}
    at_least = dict.fromkeys(device.at_least, "at least ")
    known = (f"{name} {at_least.get(name, '')}{rate / 1e12:.3g}" for name, rate in rates.items() if rate is not None)
    return ", ".join(known) + " TFLOP/s"


def _usual_frames(result: FitResult) -> int:
    """The model's usual number of frames where it was asked for, else the largest that was."""
    counts = {pair.frames for pair in result.pairs}
    return result.model.frames if result.model.frames in counts else max(counts)


def _at(result: FitResult, frames: int) -> list[Pair]:
    return [pair for pair in result.pairs if pair.frames == frames]


def _left(made: Estimate) -> Text:
    if made.is_too_long:
        return Text("too long", style="red")
    return Text(f"{made.left_bytes / 1e9:.2f}", style="green" if made.fits else "red")


def _heading(text: str, console: Console) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _table(*columns: str) -> Table:
    # As narrow as it gets, so that the first table fits into a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _name(comparison: MeasuredEstimate) -> str:
    return "pruned" if comparison.pruned else "unpruned"


def _label(name: str) -> str:
    """A figure's name with the unit it is shown in."""
    special = {"memory_bytes": "memory MB", "first_token_s": "first token s", "decode_s": "decode ms/token"}
    return special.get(name, f"{name.removesuffix('_s')} s")


def _cells(row: Row | None) -> tuple[str, str, str]:
    """Estimate, measurement and error; a stage that does not run has none."""
    if row is None:
        return "", "", ""
    scale = {"memory_bytes": 1e-6, "decode_s": 1e3}.get(row.name, 1.0)
    return _number(scale * row.estimated), _number(scale * row.measured), f"{row.error:+.0%}"


def _number(value: float) -> str:
    """Two or three digits that mean something, and never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 0.1:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.{1 - math.floor(math.log10(value))}f}"
