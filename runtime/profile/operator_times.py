"""The slowest operators of every graph, from a backend's own profiler.

The question is asked twice in a pipeline that is loaded for this alone, since a profiler slows graphs down: the first
time warms up, the second counts. What a profiler leaves behind becomes `GraphOperators`, plain records, so
that another backend's profiler needs a reader of its own and nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prunevid.bundle import Bundle
from prunevid.config import PruneConfig
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.profile.records import GraphOperators, Operator, OperatorType
from prunevid.runtime.text.sampling import SamplingConfig

__all__ = ["SLOWEST", "measure_operators", "read_ort_profile"]

SLOWEST = 10
"""Operators, and types of them, that are reported of each graph."""


def measure_operators(
    bundle: Bundle,
    video: str | os.PathLike[str],
    question: str,
    *,
    frames: int,
    prune: PruneConfig,
    max_new_tokens: int,
    threads: int | None = None,
) -> tuple[GraphOperators, ...]:
    """The slowest operators of every graph on ONNX Runtime, pruned and unpruned.

    Loads the bundle once for each: another pipeline of it should be gone from memory by then. Raises PruneVidError
    where the question cannot be answered.
    """
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, ignore_eos=True)
    found: list[GraphOperators] = []
    settings: Mapping[Literal["pruned", "unpruned"], PruneConfig | Literal[False]] = {
        "pruned": prune,
        "unpruned": False,
    }
    for variant, setting in settings.items():
        with tempfile.TemporaryDirectory() as folder:
            _ask_twice(bundle, Path(folder), threads, video, question, frames, setting, sampling)
            for graph in bundle.manifest.graphs.values():
                stem = Path(graph.file).stem
                profiles = list(Path(folder).glob(f"{stem}_*.json"))
                if len(profiles) != 1:
                    raise PruneVidError(f"ONNX Runtime wrote no profile of {graph.file}: run without --ops")
                operators = read_ort_profile(json.loads(profiles[0].read_text(encoding="utf-8")))
                if operators:
                    found.append(_slowest(stem, variant, operators))
    return tuple(found)


def _ask_twice(
    bundle: Bundle,
    folder: Path,
    threads: int | None,
    video: str | os.PathLike[str],
    question: str,
    frames: int,
    prune: PruneConfig | Literal[False],
    sampling: SamplingConfig,
) -> None:
    """Answer the question twice; when this returns, the graphs are gone and their profiles complete."""
    pipeline = Pipeline(bundle, Chain(bundle, OrtCpuBackend(threads, profile_to=folder)))
    for _ in range(2):
        pipeline.open(video, frames=frames, prune=prune).ask(question, sampling)
    del pipeline
    gc.collect()


def read_ort_profile(events: Sequence[Mapping[str, Any]]) -> list[Operator]:
    """The operators of the later half of a graph's runs, slowest first; none where the graph did not run.

    events: what ONNX Runtime's profiler wrote, Chrome trace events in microseconds.
    """
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    if not runs:
        return []
    begin = runs[len(runs) // 2][0]
    total: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time") and event["ts"] >= begin:
            key = name.removesuffix("_kernel_time"), str(event["args"]["op_name"])
            total[key] += event["dur"] / 1e6
            calls[key] += 1
    whole = sum(total.values())
    operators = [
        Operator(name, kind, calls[name, kind], seconds, seconds / whole if whole else 0.0)
        for (name, kind), seconds in total.items()
    ]
    return sorted(operators, key=lambda operator: -operator.total_s)


def _slowest(graph: str, variant: Literal["pruned", "unpruned"], operators: list[Operator]) -> GraphOperators:
    whole = sum(operator.total_s for operator in operators)
    kinds: dict[str, list[Operator]] = defaultdict(list)
    for operator in operators:
        kinds[operator.type].append(operator)
    types = [
        OperatorType(
            kind,
            sum(operator.calls for operator in nodes),
            sum(operator.total_s for operator in nodes),
            sum(operator.share for operator in nodes),
        )
        for kind, nodes in kinds.items()
    ]
    types.sort(key=lambda kind: -kind.total_s)
    return GraphOperators(graph, variant, whole, tuple(operators[:SLOWEST]), tuple(types[:SLOWEST]))
