"""What engines of TensorRT for RTX cost: seconds to parse and build, memory of the builder, bytes beside the weights'.

    python -m prunevid.cli export --model demo --dialect portable --output bundles/demo
    python -m benchmarks.engines bundles/demo --recipe int8-qdq --output benchmarks/results/engines.json

Builds what `prunevid build --device rtx` builds, by the same builder: every graph in a process of its own, for all
compute capabilities that the bundle's precision allows, without a GPU. An engine is deleted once it is measured, so
that a large bundle needs room for one. `--recipe`: measures the bundle quantized by it as well, in a folder beside it
that is removed again; activations, which some recipes look at, are drawn at random, since no engine's size hangs on a
value.

Memory is the largest that the building process had resident, with the pages of the weights' file that it mapped.
`--memory`: how much the builder may allocate; a graph that needs more is said to have stopped there. Where
`--output` exists, other rows in it are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from benchmarks.machine import describe
from benchmarks.quantize_memory import drawn
from benchmarks.report import save
from prunevid.bundle import Bundle, open_bundle
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.quantize.recipes import RECIPES
from prunevid.calibration.questions import Split
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import PlainLines, Silent
from prunevid.errors import PruneVidError
from prunevid.export.engine.builder import job_of
from prunevid.export.engine.destinations import RtxGpus
from prunevid.export.engine.jobs import BuildSettings
from prunevid.export.engine.profiles import limits_of
from prunevid.export.engine.rtx import RtxToolkit

PACKAGES = ("tensorrt-rtx-cu13", "onnx", "torch")
# An engine may have this share of its graph's weights, and so much beside them.
_SHARE, _BESIDE = 1.05, 20e6
# Rows of activations that are drawn: few, since they change codes and scales and nothing else.
_ROWS = 8
# Largest bytes that an engine may need on the disk, as a share of the weights.
_ROOM = 1.1


def measure(bundle: Bundle, toolkit: RtxToolkit, only: list[str]) -> Iterator[dict[str, Any]]:
    """Build the engines of a bundle one by one: a row for each, with figures or with where it stopped."""
    manifest = bundle.manifest
    destination = RtxGpus(toolkit, manifest.precision, BuildSettings())
    limits = limits_of(manifest)
    for graph, spec in manifest.graphs.items():
        if only and graph not in only:
            continue
        weights = weight_bytes(bundle.file(spec.file))
        row: dict[str, Any] = {
            "model": manifest.model.name,
            "precision": manifest.quantization.recipe if manifest.quantization else manifest.precision,
            "graph": graph,
            "weights": weights,
            "load": os.getloadavg()[0],
        }
        try:
            with tempfile.TemporaryDirectory(prefix=".engines-", dir=bundle.path.parent) as folder:
                if shutil.disk_usage(folder).free < _ROOM * weights + _BESIDE:
                    raise PruneVidError("the disk has no room for the engine")
                output = Path(folder) / "engine"
                job = job_of(bundle, graph, limits, destination)
                built = destination.build(job, output, manifest, Silent())
                parsed = built.parse_seconds or 0.0
                row |= {
                    "parse seconds": parsed,
                    "build seconds": built.seconds - parsed,
                    "peak rss": built.memory,
                    "engine": output.stat().st_size,
                }
        except (PruneVidError, OSError) as error:
            row["stopped"] = str(error)
        yield row


def weight_bytes(file: Path) -> int:
    """Bytes of a graph's weights, each counted once however many names it has; a tied head is one of them."""
    graph = onnx.load(file, load_external_data=False).graph
    stored: dict[tuple[str, int], int] = {}
    inside = 0
    for tensor in graph.initializer:
        if uses_external_data(tensor):
            at = ExternalDataInfo(tensor)
            stored[at.location, at.offset or 0] = at.length or 0
        else:
            inside += len(tensor.raw_data) or tensor.ByteSize()
    return inside + sum(stored.values())


def within(row: dict[str, Any]) -> bool:
    """Whether an engine is as large as its weights and a little more."""
    return bool(row["engine"] <= _SHARE * row["weights"] + _BESIDE)


@contextmanager
def quantized(bundle: Bundle, recipe: str) -> Iterator[Bundle]:
    """The bundle as a recipe writes it, in a folder beside it that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=".engines-", dir=bundle.path.parent) as folder:
        workspace = Workspace(Path(folder) / "out", recipe)
        few = patch("benchmarks.quantize_memory._ROWS", _ROWS)
        with few, patch("prunevid.calibration.quantize.calibrate.observe", drawn):
            yield quantize(bundle, Split((), ()), Settings(recipe), workspace, PlainLines())


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| model | precision | graph | weights | engine | ratio | 1.05 x + 20 MB | parse | build | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"| {row['model']} | {row['precision']} | {row['graph']} | {row['weights'] / 1e6:,.1f} MB"
        if "stopped" in row:
            lines.append(f"{name} | {row['stopped']} | | | | | |")
            continue
        ratio = f"{row['engine'] / row['weights']:.2f}" if row["weights"] > _BESIDE else "-"
        ratio += f" | {'yes' if within(row) else 'no'}"
        seconds = f"{row['parse seconds']:.1f} s | {row['build seconds']:.1f} s"
        lines.append(
            f"{name} | {row['engine'] / 1e6:,.1f} MB | {ratio} | {seconds} | {row['peak rss'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def merge(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier rows, each replaced by a new one of the same model, precision and graph, and the new."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("model", "precision", "graph"))

    return list(({key(row): row for row in before} | {key(row): row for row in rows}).values())


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recipe", action="append", default=[], choices=RECIPES, help="quantized by it as well")
    parser.add_argument(
        "--only", action="append", default=[], metavar="GRAPH", help="this graph alone; may be repeated"
    )
    parser.add_argument("--quantized-only", action="store_true", help="leave out the bundle as it is")
    parser.add_argument("--memory", type=float, metavar="GIB", help="most that the builder may allocate")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.memory:
        most = int(args.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    toolkit, source = RtxToolkit(), open_bundle(args.bundle, verify=False)
    rows: list[dict[str, Any]] = []

    def keep(made: Bundle) -> None:
        for row in measure(made, toolkit, args.only):
            rows.append({**row, "release": toolkit.version, "machine": describe(PACKAGES)})
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            if args.output:
                before = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
                save({"rows": merge(before, rows)}, args.output)

    if not args.quantized_only:
        keep(source)
    for recipe in args.recipe:
        with quantized(source, recipe) as made:
            keep(made)
    print(table(rows))


if __name__ == "__main__":
    main()
