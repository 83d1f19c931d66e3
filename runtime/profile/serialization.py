"""A profile as files: JSON with everything in it, CSV with a row per variant and measure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prunevid.config import SETTINGS
from prunevid.errors import PruneVidError
from prunevid.files import STDOUT, check_output
from prunevid.runtime.profile.records import ProfileResult, Summary, Variant

__all__ = ["check_outputs", "to_csv", "to_json"]

_STATISTICS = ("n", "median_s", "p90_s", "p99_s")
_OF_STAGES = ("tokens_in", "tokens_out", "flops", "gflops_per_s")
_OF_DECODING = ("tokens_per_s", "flops", "gflops_per_s")
_FIGURES = ("ratio", *_OF_STAGES, "tokens_per_s", "kv_bytes")
_COLUMNS = ("variant", "frames", *SETTINGS, "measure", *_STATISTICS, *_FIGURES)


def check_outputs(paths: Sequence[str], video: str, bundle: str) -> None:
    """See that results can be written, before they are measured, and not over what is measured.

    Raises PruneVidError where one cannot.
    """
    if paths.count(STDOUT) > 1:
        raise PruneVidError("only one output can go to standard output (-)")
    files = [Path(path) for path in paths if path != STDOUT]
    if len({file.resolve() for file in files}) < len(files):
        raise PruneVidError("two outputs have the same file name: give each its own")
    for file in files:
        check_output(file, inputs=(("the video", video), ("the bundle", bundle)))


def to_json(result: ProfileResult) -> str:
    """Everything that was measured."""
    return json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(result: ProfileResult) -> str:
    """A row for every variant and stage, with statistics of its time; cells that mean nothing are empty."""
    ratios = {comparison.pruned: comparison.ratios for comparison in result.comparisons}
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for index, variant in enumerate(result.variants):
        base = {"variant": variant.name, "frames": variant.frames, **(variant.prune or {})}
        for measure, time, figures in _measures(variant):
            row = {**base, "measure": measure, "ratio": ratios.get(index, {}).get(measure), **figures}
            row |= {name: getattr(time, name) for name in _STATISTICS}
            writer.writerow({name: value for name, value in row.items() if value is not None})
    return text.getvalue()


def _measures(variant: Variant) -> Iterator[tuple[str, Summary, dict[str, Any]]]:
    """Name, time and further figures of everything that was timed."""
    for stage in variant.stages:
        yield stage.name, stage.time, {name: getattr(stage, name) for name in _OF_STAGES}
    yield "llm_prefill", variant.llm_prefill, {}
    yield "first_token", variant.first_token, {}
    if variant.decode:
        yield "decode", variant.decode.time, {name: getattr(variant.decode, name) for name in _OF_DECODING}
        for number, step in enumerate(variant.decode.steps, start=1):
            yield f"decode_step_{number}", step, {}
    yield "end_to_end", variant.end_to_end, {"flops": variant.flops, "kv_bytes": variant.kv_bytes}
    yield "unattributed", variant.unattributed, {}
