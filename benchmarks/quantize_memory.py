"""Memory and time that quantizing a large bundle takes, without judging it: by every recipe of its dialect.

    python -m prunevid.cli export --model llava-ov --random-weights --output bundles/llava-ov
    python -m benchmarks.quantize_memory bundles/llava-ov --output benchmarks/results/quantize-memory.json

Where `--output` exists, runs of other models, precisions or recipes in it are kept. Activations, which some recipes
look at, are drawn at random and held as observed ones are; observing itself is not measured here. Each recipe
runs in a process of its own, whose largest resident memory is stated; it counts the interpreter and its libraries, and
pages of files that are mapped. What is written is removed again: it takes about half of the bundle's size, beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.machine import describe, peak_rss
from benchmarks.report import save
from prunevid.bundle import Bundle, open_bundle
from prunevid.calibration.quantize.activations import Activations, input_groups
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.quantize.linears import load_graph
from prunevid.calibration.quantize.recipes import RECIPES
from prunevid.calibration.quantize.rounding.compensate import in_blocks
from prunevid.calibration.questions import Split
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import PlainLines

_ROWS = 128


def drawn(bundle: Bundle, name: str, *_: object) -> dict[str, Activations]:
    """What `calibration.quantize.activations.observe` returns, of random rows with a few large channels."""
    rng = np.random.default_rng(0)
    seen = {}
    for source, linears in input_groups(load_graph(bundle.file(bundle.manifest.graphs[name].file))).items():
        inputs = linears[0].weight.shape[0]
        rows = rng.standard_normal((_ROWS, inputs), np.float32) * rng.lognormal(size=inputs).astype(np.float32)
        units = in_blocks((rows / np.linalg.norm(rows, axis=1, keepdims=True)).T)
        moments = units @ units.transpose(0, 2, 1) / _ROWS
        magnitude = np.abs(rows)
        seen[source] = Activations(magnitude.mean(axis=0), rows, magnitude.max(axis=0), moments)
    return seen


def measure(bundle: Path, recipe: str) -> dict[str, Any]:
    """Quantize and write the bundle in this process: bytes before and after, the process's peak, seconds."""
    source = open_bundle(bundle, verify=False)
    before = peak_rss()
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        begin = perf_counter()
        workspace = Workspace(Path(folder) / "out", recipe)
        with patch("prunevid.calibration.quantize.calibrate.observe", drawn):
            made = quantize(source, Split((), ()), Settings(recipe), workspace, PlainLines())
        seconds = perf_counter() - begin
        return {
            "model": source.manifest.model.name,
            "dialect": source.manifest.dialect,
            "precision": source.manifest.precision,
            "recipe": recipe,
            "bytes": source.size,
            "quantized bytes": made.size,
            "peak rss before": before,
            "peak rss": peak_rss(),
            "seconds": seconds,
        }


def _in_own_process(bundle: Path, recipe: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quantize_memory", str(bundle), "--here", "--recipe", recipe]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| model | bundle | recipe | before | quantized | peak memory | time |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        sizes = f"{row['bytes'] / 1e9:.1f} GB | {row['quantized bytes'] / 1e9:.1f} GB"
        peak = f"{row['peak rss'] / 2**30:.2f} GiB | {row['seconds'] / 60:.1f} min"
        bundle = f"{row['dialect']}, {row['precision']}"
        lines.append(f"| {row['model']} | {bundle} | {row['recipe']} | {sizes} | {peak} |")
    return "\n".join(lines)


def merge(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier runs, each replaced by a new one of the same model, dialect, precision and recipe, and the new."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("model", "dialect", "precision", "recipe"))

    return list(({key(row): row for row in before} | {key(row): row for row in rows}).values())


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="this one alone; may be given several times")
    parser.add_argument("--here", action="store_true", help="in this process, one recipe; prints JSON")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.here:
        (recipe,) = args.recipe
        print(json.dumps(measure(args.bundle, recipe)))
        return
    dialect = open_bundle(args.bundle, verify=False).manifest.dialect
    recipes = args.recipe or [name for name, recipe in RECIPES.items() if dialect in recipe.dialects]
    rows = []
    for recipe in recipes:
        rows.append({**_in_own_process(args.bundle, recipe), "machine": describe()})
        if args.output:
            before = json.loads(args.output.read_text())["runs"] if args.output.exists() else []
            save({"runs": merge(before, rows)}, args.output)
    print(table(rows))


if __name__ == "__main__":
    main()
