"""What `benchmarks/engines.py` says of a small bundle: figures where an engine was built, and where one stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import onnx
import pytest

from benchmarks import engines
from prunevid.bundle import open_bundle
from prunevid.errors import PruneVidError
from prunevid.export.engine.jobs import EngineJob

needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")

ROOT = Path(__file__).parents[1]


def measured(bundle: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.engines", str(bundle), "--output", str(output), *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=500)
    rows: list[dict[str, Any]] = json.loads(output.read_text())["rows"]
    return rows


def test_rows_of_a_bundle(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    path, output = tiny_bundle("qwen2", "portable"), tmp_path / "engines.json"
    before = sorted(path.iterdir())
    rows = measured(path, output, "--only", "llm_pre", "--only", "select")
    assert [row["graph"] for row in rows] == ["llm_pre", "select"]
    assert sorted(path.iterdir()) == before
    graph = onnx.load(open_bundle(path, verify=False).file("llm_pre.onnx")).graph
    held = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert rows[0]["weights"] == pytest.approx(held, rel=0.01)
    for row in rows:
        assert row["weights"] < row["engine"] <= 1.05 * row["weights"] + 20e6
        assert min(row["parse seconds"], row["build seconds"], row["peak rss"]) > 0
    # Rows of other graphs are kept.
    again = measured(path, output, "--only", "merge")
    assert [row["graph"] for row in again] == ["llm_pre", "select", "merge"]


def test_where_it_stopped(tiny_bundle: Callable[[str, str], Path]) -> None:
    class Refusing:
        version, capabilities = "1.7.1.116", ("8.6",)

        def parse(self, job: EngineJob) -> None:
            raise PruneVidError(f"no memory for {job.graph}")

    bundle = open_bundle(tiny_bundle("qwen2", "portable"), verify=False)
    (row,) = engines.measure(bundle, Refusing(), ["select"])  # type: ignore[arg-type]
    assert row["stopped"] == "no memory for select"
    assert "| no memory for select |" in engines.table([row])
    changed = {**row, "stopped": "later"}
    assert engines.merge([row, {**row, "graph": "merge"}], [changed]) == [changed, {**row, "graph": "merge"}]
