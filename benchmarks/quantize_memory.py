"""Memory and time that quantizing a large bundle takes, without judging it: by every recipe that needs no videos.

    python -m prunevid.cli export --model llava-ov --random-weights --output bundles/llava-ov
    python -m benchmarks.quantize_memory bundles/llava-ov --output benchmarks/results/quantize-memory.json

Each recipe runs in a process of its own, whose largest resident memory is stated; it counts the interpreter and its
libraries, and pages of files that are mapped. What is written is removed again: it takes about half of the bundle's
size, beside the bundle.
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

from benchmarks.machine import describe, peak_rss
from prunevid.bundle import open_bundle
from prunevid.calibration.calibrate import Settings, quantize
from prunevid.calibration.progress import PlainLines
from prunevid.calibration.questions import Split
from prunevid.calibration.workspace import Workspace

_RECIPES = ("cpu-int8", "cpu-int4")


def measure(bundle: Path, recipe: str) -> dict[str, Any]:
    """Quantize and write the bundle in this process: bytes before and after, the process's peak, seconds."""
    source = open_bundle(bundle, verify=False)
    before = peak_rss()
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        begin = perf_counter()
        workspace = Workspace(Path(folder) / "out", recipe)
        made = quantize(source, Split((), ()), Settings(recipe), workspace, PlainLines())
        seconds = perf_counter() - begin
        return {
            "model": source.manifest.model.name,
            "recipe": recipe,
            "bytes": source.size,
            "quantized bytes": made.size,
            "peak rss before": before,
            "peak rss": peak_rss(),
            "seconds": seconds,
        }


def _in_own_process(bundle: Path, recipe: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quantize_memory", str(bundle), "--recipe", recipe]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| model | recipe | fp32 | quantized | peak memory | time |", "|---|---|---|---|---|---|"]
    for row in rows:
        sizes = f"{row['bytes'] / 1e9:.1f} GB | {row['quantized bytes'] / 1e9:.1f} GB"
        peak = f"{row['peak rss'] / 2**30:.2f} GiB | {row['seconds'] / 60:.1f} min"
        lines.append(f"| {row['model']} | {row['recipe']} | {sizes} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recipe", choices=_RECIPES, help="this one only, in this process; prints JSON")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.recipe:
        print(json.dumps(measure(args.bundle, args.recipe)))
        return
    rows = [_in_own_process(args.bundle, recipe) for recipe in _RECIPES]
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"machine": describe(), "runs": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
