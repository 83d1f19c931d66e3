"""What profiling costs: the same question with and without `prunevid profile` around it, in turns.

    python -m benchmarks.profile_overhead --bundle bundles/demo --output benchmarks/results/profile-overhead.json

A round asks once pruned and once unpruned, plainly and within a profile; every other round begins with the profile.
Beside the times to the last token stands the processor time that the profile's sampling thread took, a measure that
a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.machine import describe
from benchmarks.report import save
from prunevid.runtime import Pipeline, SamplingConfig, load
from prunevid.runtime.profile import ProfileSettings, profile
from prunevid.runtime.profile.defaults import QUESTION

CLIP = Path(__file__).parents[1] / "demo" / "clip.mp4"


def plain(pipeline: Pipeline, video: str, frames: int, tokens: int) -> dict[str, float]:
    """Seconds of a pruned and an unpruned question together."""

    def ask(prune: bool) -> float:
        begin = perf_counter()
        session = pipeline.open(video, frames=frames, prune=prune)
        session.ask(QUESTION, SamplingConfig(max_new_tokens=tokens, ignore_eos=True))
        return perf_counter() - begin

    return {"wall_s": ask(True) + ask(False)}


def profiled(pipeline: Pipeline, video: str, frames: int, tokens: int) -> dict[str, float]:
    """The same within a profile, and what its sampling took."""
    settings = ProfileSettings(frames=(frames,), runs=1, warmup=0, max_new_tokens=tokens)
    result = profile(pipeline, video, QUESTION, settings)
    return {"wall_s": sum(run.end_to_end_s for run in result.runs), "sampling_s": result.timeline.sampling_s}


def measure(bundle: str, video: str, frames: int, rounds: int, tokens: int, threads: int) -> dict[str, Any]:
    """All rounds, after one to warm up; times by way of asking, and what profiling adds to each."""
    pipeline = load(bundle, threads=threads, verify=False)
    ways = {"plain": plain, "profiled": profiled}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in ways if number % 2 else reversed(ways):
            times = ways[name](pipeline, video, frames, tokens)
            print(f"round {number} of {rounds}, {name}: {times}", file=sys.stderr, flush=True)
            if number:
                results[name].append(times)
    return {"times": results, **_added(results)}


def _added(results: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """The share that profiling adds to the time: by medians, and the quartiles of the rounds' own shares."""
    without, within = ([times["wall_s"] for times in results[way]] for way in ("plain", "profiled"))
    shares = [b / a - 1 for a, b in zip(without, within, strict=True)]
    low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else (shares[0],) * 3
    return {
        "of_medians": statistics.median(within) / statistics.median(without) - 1,
        "lower_quartile": low,
        "upper_quartile": high,
        "sampling": sum(times["sampling_s"] for times in results["profiled"]) / sum(within),
    }


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", help="by default the demo bundle, exported for this")
    parser.add_argument("--video", default=str(CLIP))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            from prunevid.export import export

            bundle = str(export("demo", Path(folder) / "bundle").path)
        result = measure(bundle, args.video, args.frames, args.rounds, args.tokens, args.threads)
    save({"machine": describe(), "frames": args.frames, "rounds": args.rounds, **result}, args.output)
    print(
        f"time to the last token: profiling adds {result['of_medians']:+.2%} "
        f"(rounds: quartiles {result['lower_quartile']:+.2%} and {result['upper_quartile']:+.2%})"
    )
    print(f"sampling takes {result['sampling']:.2%} of one core")


if __name__ == "__main__":
    main()
