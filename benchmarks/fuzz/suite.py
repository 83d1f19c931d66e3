"""All cases of a kind, run and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median
from threading import Lock
from typing import Any

from benchmarks.fuzz import bundles, checkpoints, commands, videos
from benchmarks.fuzz.bases import Bases
from benchmarks.fuzz.job import Job, Outcome
from benchmarks.fuzz.pool import Lane, run_all
from benchmarks.fuzz.verdict import ANSWERED, ELSE, INTERRUPTED, REFUSED, answer, judge, sentence

__all__ = ["KINDS", "Kind", "Tally", "controls_of", "job_of", "run_cases", "run_one"]


@dataclass(frozen=True)
class Kind:
    """One kind of cases: the names of the whole inputs, one of them as a job, and a damaged input as a job."""

    controls: Callable[[Bases], list[str]]
    control: Callable[[str, Bases, Path], Job]
    make: Callable[[Random, Bases, Path], Job]


KINDS = {
    "video": Kind(videos.controls, videos.control, videos.make),
    "bundle": Kind(bundles.controls, bundles.control, bundles.make),
    "checkpoint": Kind(checkpoints.controls, checkpoints.control, checkpoints.make),
    "command": Kind(commands.controls, commands.control, commands.make),
}


@dataclass(frozen=True)
class Result:
    """What became of one case."""

    case: str
    job: Job
    outcome: Outcome
    verdict: str
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"case": self.case, "mutation": self.job.mutation, "detail": self.job.detail, "reasons": self.reasons}


@dataclass
class Tally:
    """Counts over the cases of one kind."""

    results: list[Result] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def add(self, result: Result) -> None:
        """Count a case; from any thread."""
        with self._lock:
            self.results.append(result)

    @property
    def elses(self) -> list[Result]:
        """Cases that were neither answered nor refused in one sentence."""
        return sorted((result for result in self.results if result.verdict == ELSE), key=lambda result: result.case)

    def to_dict(self) -> dict[str, Any]:
        """The counts, in all and by mutation; how many different sentences refused; memory and time."""
        refused = Counter(sentence(r.outcome.stderr) for r in self.results if r.verdict == REFUSED)
        by_mutation: dict[str, Counter[str]] = {}
        for result in self.results:
            by_mutation.setdefault(result.job.mutation, Counter())[result.verdict] += 1
        return {
            "cases": len(self.results),
            **_counts(Counter(result.verdict for result in self.results)),
            "different sentences": len(refused),
            "most frequent sentence": max(refused.values(), default=0),
            "peak memory, bytes": max((result.outcome.peak for result in self.results), default=0),
            "slowest case, seconds": round(max((result.outcome.seconds for result in self.results), default=0.0), 2),
            "median case, seconds": round(median(result.outcome.seconds for result in self.results), 2),
            "mutations": {name: _counts(by_mutation[name]) for name in sorted(by_mutation)},
            "anything else": [result.to_dict() for result in self.elses],
        }

    def sentences(self) -> list[tuple[str, int]]:
        """Sentences that refused, most frequent first."""
        return Counter(sentence(r.outcome.stderr) for r in self.results if r.verdict == REFUSED).most_common()


def _counts(found: Counter[str]) -> dict[str, int]:
    return {verdict: found[verdict] for verdict in (ANSWERED, REFUSED, INTERRUPTED, ELSE)}


def job_of(kind: str, seed: int, name: str, bases: Bases, folder: Path) -> Job:
    """The job of a case by its number, or of a control by its name, with its input written into `folder`."""
    if name.isdecimal():
        return KINDS[kind].make(Random(f"{kind}:{seed}:{name}"), bases, folder)
    return KINDS[kind].control(name, bases, folder)


def run_one(case: str, seed: int, bases: Bases, lane: Lane, folder: Path) -> Result:
    """Make, run and judge the case `KIND:NUMBER` or the control `KIND:NAME`."""
    kind, _, name = case.partition(":")
    job = job_of(kind, seed, name, bases, folder)
    outcome = lane.run(job, folder)
    verdict, reasons = judge(job, outcome)
    if job.mutation == "control" and verdict != ANSWERED:
        verdict, reasons = ELSE, [*reasons, f"a whole input was not answered: {outcome.stderr[-300:]}"]
    return Result(case, job, outcome, verdict, reasons)


def run_cases(
    cases: Iterable[str],
    seed: int,
    bases: Bases,
    lanes: list[Lane],
    done: Callable[[Result], None] | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Run cases on all lanes and count them, with those in `tally`; `done` is told of each."""
    tally = tally or Tally()

    def run(case: str, lane: Lane, folder: Path) -> None:
        result = run_one(case, seed, bases, lane, folder)
        tally.add(result)
        if done:
            done(result)

    run_all(cases, lanes, run)
    return tally


def controls_of(kind: str, bases: Bases) -> list[str]:
    """The controls of a kind, by the names of their cases."""
    return [f"{kind}:{name}" for name in KINDS[kind].controls(bases)]


def plain_answer(case: str, bases: Bases, lane: Lane, folders: tuple[Path, Path]) -> tuple[Any, Any]:
    """What a control answers in a fork of the server, and in an interpreter of its own, as users start it."""
    kind, _, name = case.partition(":")
    found = []
    for folder, fresh in zip(folders, (False, True), strict=True):
        job = replace(KINDS[kind].control(name, bases, folder), fresh=fresh)
        found.append(answer(lane.run(job, folder).stdout, folder, job.outputs))
    return found[0], found[1]
