"""Speed and memory of the exported chain and of its peers on the same random weights and shapes, in one run.

    python -m benchmarks.latency --output benchmarks/results/latency-cpu.json

LLaVA-OneVision-0.5B's real shape, two threads, fp32 where nothing else is said. Peers: transformers (sdpa), the
method in eager PyTorch, and for the language model alone onnxruntime-genai's own decoder in fp32 and in int4
(`pip install onnxruntime-genai`, or leave it out with --systems). The systems take turns within every round, so that a
drifting machine slows all of them alike; the chain has a process for each of its rows, since ONNX Runtime keeps the
memory it once had. Vision is timed once per process: it is the same work in all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import genai
from benchmarks.machine import describe, peak_rss
from benchmarks.report import save
from benchmarks.systems import QUESTION, Chain, System, Transformers
from prunevid.bundle import open_bundle
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.questions import Split
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import PlainLines


@dataclass(frozen=True)
class Row:
    """A system of the table: its process, whether it prunes or is a decoder alone, and what quantized its bundle.

    The last word of a chain's process names its bundle: a recipe, with `-kv` where its KV cache is in int8.
    """

    process: str
    pruned: bool = False
    decoder_only: bool = False
    settings: Settings | None = None


ROWS = {
    "transformers": Row("transformers"),
    "transformers, method in eager PyTorch": Row("transformers", pruned=True),
    "onnxruntime-genai fp32": Row("genai fp32", decoder_only=True),
    "onnxruntime-genai int4": Row("genai int4", decoder_only=True),
    "chain unpruned": Row("chain unpruned"),
    "chain pruned": Row("chain pruned", pruned=True),
    "chain pruned, cpu-int8": Row("chain pruned cpu-int8", pruned=True, settings=Settings("cpu-int8")),
    "chain pruned, cpu-int4": Row("chain pruned cpu-int4", pruned=True, settings=Settings("cpu-int4")),
    "chain unpruned, cpu-int8": Row("chain unpruned cpu-int8", settings=Settings("cpu-int8")),
    "chain unpruned, cpu-int8, KV in int8": Row(
        "chain unpruned cpu-int8-kv", settings=Settings("cpu-int8", kv_cache="int8")
    ),
}


@dataclass(frozen=True)
class Plan:
    """What to measure: the rows, a bundle, frames, rounds, decode steps a round, threads, a folder for builds.

    quantized: the bundles made from `bundle`, by the last word of the processes that run them.
    """

    systems: tuple[str, ...]
    bundle: str
    frames: int
    rounds: int
    steps: int
    threads: int
    folder: str
    quantized: dict[str, str]


def _make(process: str, plan: Plan) -> System:
    if process == "transformers":
        return Transformers(plan.bundle, plan.frames, plan.threads)
    if process.startswith("chain"):
        return Chain(plan.quantized.get(process.split()[-1], plan.bundle), plan.frames, plan.threads)
    model = genai.build(plan.bundle, Path(plan.folder), process.removeprefix("genai "))
    return genai.GenAi(model, _prompt_rows(plan), _vocabulary(plan.bundle), plan.threads)


def quantized_bundles(systems: Sequence[str], bundle: str, folder: Path) -> dict[str, str]:
    """The bundle, quantized for every system that wants it so; those in the folder from before stay.

    No videos are needed: no such recipe looks at activations, and the scales of an int8 KV cache, on which speed does
    not depend, are then all 1.
    """
    made = {}
    source = open_bundle(bundle, verify=False)
    for system in systems:
        row = ROWS[system]
        name = row.process.split()[-1]
        if row.settings is not None and name not in made:
            workspace = Workspace(folder / name, f"{bundle} {name}")
            made[name] = str(quantize(source, Split((), ()), row.settings, workspace, PlainLines()).path)
    return made


def _prompt_rows(plan: Plan) -> int:
    """Rows of the whole prompt with nothing pruned."""
    from prunevid.text.chat import ChatPrompt

    bundle = open_bundle(plan.bundle, verify=False)
    ids = ChatPrompt.of(bundle).encode(QUESTION)
    layout = bundle.manifest.token_layout
    return len(ids.prefix) + layout.visual(plan.frames) + len(layout.after_video) + len(ids.suffix)


def _vocabulary(bundle: str) -> int:
    return open_bundle(bundle, verify=False).manifest.model.decoder.vocab_size


def _reset_peak() -> None:
    """Begin the peak of resident memory anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _work(process: str, plan: Plan, pipe: Connection) -> None:
    """A worker process: load, then do what the parent says."""
    begin = perf_counter()
    system = _make(process, plan)
    pipe.send({"load": perf_counter() - begin})
    while (order := pipe.recv()) is not None:
        name, *arguments = order
        _reset_peak()
        result = getattr(system, name)(*arguments)
        pipe.send({**result, "peak rss": peak_rss()})


def measure(plan: Plan) -> dict[str, dict[str, Any]]:
    """Run all systems in turns; per system the medians over rounds, in seconds and bytes."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for process in dict.fromkeys(ROWS[system].process for system in plan.systems):
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(process, plan, theirs), daemon=True)
        worker.start()
        print(f"{process}: loaded in {ours.recv()['load']:.1f} s", file=sys.stderr, flush=True)
        workers[process] = (worker, ours)

    def order(process: str, *command: Any) -> dict[str, Any]:
        workers[process][1].send(command)
        answer: dict[str, Any] = workers[process][1].recv()
        print(f"{process}: {command} {answer}", file=sys.stderr, flush=True)
        return answer

    vision = {process: order(process, "vision") for process in workers}
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in plan.systems}
    for _ in range(plan.rounds):
        for system in plan.systems:
            row = ROWS[system]
            results[system].append(order(row.process, "round", plan.steps, row.pruned))
    for worker, pipe in workers.values():
        pipe.send(None)
        worker.join()
    return {system: _summary(vision[ROWS[system].process], results[system]) for system in plan.systems}


def _summary(vision: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    timed = ("merge", "select", "llm prefill", "decode")
    summary: dict[str, Any] = {name: statistics.median(r[name] for r in rounds) for name in timed}
    summary["rounds"] = [{name: r[name] for name in timed} for r in rounds]
    summary["peak rss"] = max(vision["peak rss"], *(r["peak rss"] for r in rounds))
    if "vision" in vision:
        summary["vision"] = vision["vision"]
        summary["first token"] = summary["vision"] + summary["merge"] + summary["llm prefill"]
    if "merge in vain" in vision:
        summary["merge in vain"] = vision["merge in vain"]
    for name in ("visual tokens", "first token id"):
        if name in rounds[-1]:
            summary[name] = rounds[-1][name]
    return summary


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table, and the ratios that matter."""
    lines = [
        "| | vision s | merge ms | LLM prefill s | of it select ms | first token s | decode ms/token | peak RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system, row in results.items():
        whole = "vision" in row
        lines.append(
            f"| {system} | {_cell(row.get('vision'), 1)} | {_cell(1000 * row['merge'] if whole else None)} "
            f"| {row['llm prefill']:.2f} | {_cell(1000 * row['select'] if system.startswith('chain') else None)} "
            f"| {_cell(row.get('first token'), 1)} | {1000 * row['decode']:.0f} | {row['peak rss'] / 1e6:.0f} |"
        )
    return "\n".join(lines + ["", *_tokens(results), *_ratios(results)])


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _tokens(results: dict[str, dict[str, Any]]) -> list[str]:
    if "chain pruned" not in results:
        return []
    pruned = results["chain pruned"]
    visual, merged, kept = pruned["visual tokens"]
    return [
        f"Visual tokens {visual}, merged {merged} ({merged / visual:.1%}), kept {kept} ({kept / visual:.1%}). "
        f"Merging every four frames in vain costs {1000 * pruned['merge in vain']:.0f} ms of the chain's vision "
        f"({pruned['merge in vain'] / pruned['vision']:.2%}).",
        "",
    ]


def _ratios(results: dict[str, dict[str, Any]]) -> list[str]:
    """How many times as long every other system takes as the rows of the chain that matter most."""
    lines = []
    for ours in ("chain unpruned", "chain pruned", "chain pruned, cpu-int8"):
        if ours not in results:
            continue
        lines += [f"| time over {ours} | LLM prefill | decode | first token |", "|---|---|---|---|"]
        for system, row in results.items():
            if system != ours:
                ratios = (
                    f"{row[name] / results[ours][name]:.2f}x" if name in row else "-"
                    for name in ("llm prefill", "decode", "first token")
                )
                lines.append(f"| {system} | " + " | ".join(ratios) + " |")
        lines.append("")
    return lines


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llava-ov-0.5b")
    parser.add_argument("--bundle", help="reuse a random-weights fp32 bundle instead of exporting one")
    parser.add_argument("--systems", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), metavar="NAME")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="decode steps per round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", help="folder in which the bundle and the peers' models stay for the next run")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with nullcontext(args.work) if args.work else tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            from prunevid.export import export

            path = Path(folder) / "bundle"
            bundle = str(path if path.exists() else export(args.model, path, random_weights=True).path)
        made = quantized_bundles(args.systems, bundle, Path(folder))
        plan = Plan(tuple(args.systems), bundle, args.frames, args.rounds, args.steps, args.threads, folder, made)
        results = measure(plan)
    report = {
        "model": args.model,
        "frames": args.frames,
        "rounds": args.rounds,
        "threads": args.threads,
        "machine": describe(),
        "results": results,
    }
    save(report, args.output)
    print(table(results))


if __name__ == "__main__":
    main()
