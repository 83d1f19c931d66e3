"""Damaged videos, bundles, checkpoints and command lines: how many are answered, refused, or end in anything else.

    python -m benchmarks.fuzz --output benchmarks/results/fuzz.json
    python -m benchmarks.fuzz --case video:17 --case bundle:3

The first is the long run; with `--kind`, what the file has of other kinds is kept. The second makes single cases of
the same seed again and shows what they print.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fuzz.bases import prepare
from benchmarks.fuzz.pool import Lane, lanes
from benchmarks.fuzz.suite import KINDS, Result, Tally, controls_of, run_cases, run_one
from benchmarks.machine import describe
from benchmarks.report import save

COUNTS = {"video": 1000, "bundle": 1000, "checkpoint": 400, "command": 500}
_SAVED_EVERY = 50


def main() -> int:
    """Run the cases; exit status 1 where one ended in anything else."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS, help="this one alone; may be given several times")
    parser.add_argument("--count", type=int, help="cases of every kind (default: those of the committed result)")
    parser.add_argument("--lanes", type=int, default=2, help="cases that run at the same time")
    parser.add_argument(
        "--case", action="append", help="run this one again, such as video:17; may be given several times"
    )
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, lanes(args.lanes) as ready:
        bases = prepare(Path(folder) / "bases", ready[0])
        if args.case:
            return _show(args.case, args.seed, bases, ready[0])
        report: dict[str, Any] = {
            "machine": describe(("onnxruntime", "av", "tokenizers", "jinja2", "torch")),
            "seed": args.seed,
            "kinds": {},
        }
        if args.kind and args.output and args.output.exists():
            report["kinds"] = json.loads(args.output.read_text())["kinds"]
        for kind in args.kind or KINDS:
            begin = time.monotonic()
            count = args.count if args.count is not None else COUNTS[kind]
            controls = run_cases(controls_of(kind, bases), args.seed, bases, ready, _tell).to_dict()
            tally = Tally()
            # A run that is broken off leaves what it has found.
            for first in range(0, count, _SAVED_EVERY):
                cases = [f"{kind}:{number}" for number in range(first, min(first + _SAVED_EVERY, count))]
                run_cases(cases, args.seed, bases, ready, _tell, tally)
                seconds = round(time.monotonic() - begin)
                report["kinds"][kind] = {"controls": controls, **tally.to_dict(), "seconds": seconds}
                save(report, args.output)
            for sentence, times in tally.sentences()[:12]:
                print(f"  {times:5} {sentence}")
    print(table(report))
    return int(any(found["else"] or found["controls"]["else"] for found in report["kinds"].values()))


def table(report: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    lines = [
        "| cases | answered | refused in one sentence | anything else | different sentences | peak memory | slowest |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, found in report["kinds"].items():
        lines.append(
            f"| {found['cases']} {kind}s | {found['answered']} | {found['refused']} | {found['else']} | "
            f"{found['different sentences']} | {found['peak memory, bytes'] / 2**20:.0f} MiB | "
            f"{found['slowest case, seconds']:.0f} s |"
        )
    return "\n".join(lines)


def _tell(result: Result) -> None:
    if result.reasons:
        print(f"{result.case} ({result.job.mutation}): {'; '.join(result.reasons)}", flush=True)


def _show(cases: list[str], seed: int, bases: Any, lane: Lane) -> int:
    """Run single cases and print everything about them."""
    failed = 0
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            (Path(folder) / "case").mkdir()
            result = run_one(case, seed, bases, lane, Path(folder) / "case")
        outcome = result.outcome
        print(f"{case}: {result.job.mutation}: {result.job.detail}")
        print(f"$ prunevid {shlex.join(result.job.arguments)[:2000]}".encode(errors="replace").decode())
        print(f"{outcome.stdout}{outcome.stderr}".encode(errors="replace").decode())
        print(
            f"exit status {outcome.status}, signal {outcome.signal}, {outcome.seconds:.1f} s, "
            f"{outcome.peak >> 20} MiB: {result.verdict} {'; '.join(result.reasons)}\n"
        )
        failed += bool(result.reasons)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
