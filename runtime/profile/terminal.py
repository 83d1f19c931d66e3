"""A profile as tables on a terminal, and how far the measuring has come."""

from __future__ import annotations

from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prunevid.runtime.look import units
from prunevid.runtime.profile.records import (
    STAGES,
    Comparison,
    Decoding,
    GraphOperators,
    ProfileResult,
    Stage,
    Summary,
    Variant,
)

__all__ = ["print_result"]

NOTHING = "-"
# Types of operators that fit behind a graph's name.
_TYPES = 3


def print_result(result: ProfileResult, file: TextIO) -> None:
    """Tables of times, tokens and work for one comparison; one line per variant for a sweep."""
    console = Console(file=file, highlight=False)
    console.print(f"[bold]{escape(_title(result))}[/bold]")
    if result.is_sweep:
        console.print(_sweep_table(result))
    else:
        comparison = result.comparisons[0]
        _print_table(console, "time", _time_table(result, comparison))
        _print_table(console, "tokens in -> out", _token_table(result, comparison))
        _print_table(console, "arithmetic", _work_table(result, comparison))
    for graph in result.operators:
        title = f"slowest operators of {graph.graph}, {graph.variant}: {units.seconds(graph.total_s)} in all"
        types = ", ".join(f"{kind.type} {units.percent(kind.share)}" for kind in graph.types[:_TYPES])
        _print_table(console, f"{title}; {types}", _operator_table(graph))
    for line in _facts(result):
        console.print(escape(line))


def _title(result: ProfileResult) -> str:
    frames = ", ".join(str(count) for count in dict.fromkeys(variant.frames for variant in result.variants))
    rounds = f"rounds: {result.rounds} after {result.warmup_rounds} to warm up"
    return f"{result.model.name}, {result.model.precision}, {result.backend}; frames: {frames}; {rounds}"


def _time_table(result: ProfileResult, comparison: Comparison) -> Table:
    table = _table("unpruned", "p90", "p99", "pruned", "p90", "p99", "ratio")
    unpruned, pruned = result.variants[comparison.unpruned], result.variants[comparison.pruned]
    times, others = _times(unpruned), _times(pruned)
    for name in [*STAGES, "first token", "decode step", "end to end", "in no stage"]:
        if name in times or name in others:
            key = name.replace(" ", "_").removesuffix("_step")
            ratio = comparison.ratios.get(key)
            style = "bold" if " " in name and name != "in no stage" else None
            cells = [*_summary(times.get(name)), *_summary(others.get(name)), units.ratio(ratio) if ratio else NOTHING]
            table.add_row(name, *cells, style=style, end_section=name == STAGES[-1])
    return table


def _times(variant: Variant) -> dict[str, Summary]:
    times = {stage.name: stage.time for stage in variant.stages}
    times |= {"first token": variant.first_token, "end to end": variant.end_to_end, "in no stage": variant.unattributed}
    return times | ({"decode step": variant.decode.time} if variant.decode else {})


def _summary(time: Summary | None) -> list[str]:
    if time is None:
        return [NOTHING] * 3
    return [units.seconds(time.median_s), units.seconds(time.p90_s), units.seconds(time.p99_s)]


def _token_table(result: ProfileResult, comparison: Comparison) -> Table:
    table = _table("unpruned", "pruned")
    sides = _stages_of(result, comparison)
    for name in STAGES:
        cells = [_tokens(side.get(name)) for side in sides]
        if any(cell != NOTHING for cell in cells):
            table.add_row(name, *cells)
    return table


def _work_table(result: ProfileResult, comparison: Comparison) -> Table:
    table = _table("unpruned", "GFLOP/s", "pruned", "GFLOP/s", "ratio")
    sides: list[dict[str, Stage | Decoding]] = [{**stages} for stages in _stages_of(result, comparison)]
    for side, index in zip(sides, (comparison.unpruned, comparison.pruned), strict=True):
        if decode := result.variants[index].decode:
            side["decode"] = decode
    for name in (*STAGES, "decode"):
        work = [_work(side.get(name)) for side in sides]
        if any(flops != NOTHING for flops, _ in work):
            table.add_row(name, *work[0], *work[1])
    totals = [units.flops(result.variants[index].flops) for index in (comparison.unpruned, comparison.pruned)]
    table.add_row("in all", totals[0], "", totals[1], "", units.ratio(comparison.ratios["flops"]), style="bold")
    return table


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print(f"[italic]{escape(title)}[/italic]")
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _stages_of(result: ProfileResult, comparison: Comparison) -> list[dict[str, Stage]]:
    """Stages by name, unpruned and pruned."""
    indices = (comparison.unpruned, comparison.pruned)
    return [{stage.name: stage for stage in result.variants[index].stages} for index in indices]


def _work(stage: Stage | Decoding | None) -> tuple[str, str]:
    if stage is None or not stage.flops or stage.gflops_per_s is None:
        return NOTHING, NOTHING
    return units.flops(stage.flops), units.rate(stage.gflops_per_s)


def _tokens(stage: Stage | None) -> str:
    if stage is None or stage.tokens_in is None or stage.tokens_out is None:
        return NOTHING
    return f"{units.count(stage.tokens_in)} -> {units.count(stage.tokens_out)}"


def _sweep_table(result: ProfileResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = [name for name in result.swept if name != "frames"]
    columns = ("frames", *names, "tokens kept", "first token", "", "LLM prefill", "", "decode step", "")
    for name in columns:
        # One word a line, so that all columns fit on a narrow terminal.
        table.add_column(name.replace("_", " ").replace(" ", "\n"), justify="right", no_wrap=True)
    ratios = {comparison.pruned: comparison.ratios for comparison in result.comparisons}
    for index, variant in enumerate(result.variants):
        found = ratios.get(index, {})
        settings = [str(variant.prune[name]) if variant.prune else "unpruned" for name in names]
        table.add_row(
            str(variant.frames) if names or variant.prune else f"{variant.frames} unpruned",
            *settings,
            f"{variant.tokens.kept}/{variant.tokens.visual}",
            *_with_ratio(variant.first_token, found.get("first_token")),
            *_with_ratio(variant.llm_prefill, found.get("llm_prefill")),
            *_with_ratio(variant.decode.time if variant.decode else None, found.get("decode")),
            end_section=variant.prune is None,
        )
    return table


def _with_ratio(time: Summary | None, ratio: float | None) -> tuple[str, str]:
    return units.seconds(time.median_s) if time else NOTHING, units.ratio(ratio) if ratio else ""


def _operator_table(graph: GraphOperators) -> Table:
    table = _table("calls", "time", "share")
    table.columns[0].overflow = "fold"
    for operator in graph.slowest:
        share = units.percent(operator.share)
        table.add_row(escape(operator.name), str(operator.calls), units.seconds(operator.total_s), share)
    return table


def _facts(result: ProfileResult) -> list[str]:
    """What fits no table: rates, memory, loading, notes."""
    lines = []
    for variant in () if result.is_sweep else result.variants:
        speed = f", {units.rate(variant.decode.tokens_per_s)} tokens/s" if variant.decode else ""
        lines.append(
            f"{variant.name}: {units.flops(variant.flops)} in all, KV cache {units.data(variant.kv_bytes)}{speed}, "
            f"{units.percent(variant.unattributed_share)} of the time in no stage"
        )
        use = variant.device
        if use and use.power_mean_w is not None and use.energy_j is not None:
            lines.append(
                f"  power {units.watts(use.power_mean_w)} on average, {units.joules(use.energy_j)} per question"
            )
        if use and use.gpu_load is not None:
            lines.append(f"  GPU busy {units.percent(use.gpu_load)} of the time")
    if not result.is_sweep:
        pruned, unpruned = (units.data(variant.peak_rss_bytes) for variant in result.variants)
        loading = units.data(result.memory.loaded_bytes)
        lines.append(f"peak memory: {loading} loading, {pruned} pruned, {unpruned} unpruned")
    else:
        lines.append(f"peak memory: {units.data(result.memory.peak_bytes)}")
    if result.memory.device_peak_bytes is not None and result.memory.device_total_bytes is not None:
        lines.append(
            f"device memory: {units.data(result.memory.device_peak_bytes)} in use at the peak, "
            f"of {units.data(result.memory.device_total_bytes)}"
        )
    if result.load:
        lines.append(
            f"loading: {units.seconds(result.load.verify_s)} to check the files, "
            f"{units.seconds(result.load.graphs_s)} for the graphs"
        )
    return [*lines, *(f"note: {note}" for note in result.notes)]
