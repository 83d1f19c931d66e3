"""Runs a bundle once, to compare with an estimate: `python -m prunevid.runtime.fit.one_run`, in a process of its own.

Its own process, since the largest memory that a process ever had can not be taken back: pruned and unpruned run one
after the other, and each has its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunevid.cost import TokenCounts
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.registry import ON_CPU

__all__ = ["Measurement", "run_once", "synthetic_video"]

QUESTION = "how many objects move ?"
"""In words that every tokenizer has, the demo model's of 62 words included."""

DECODE_STEPS = 8


@dataclass(frozen=True)
class Measurement:
    """What one question took.

    Attributes:
        counts: tokens at each stage.
        stages_s: seconds per stage, by the names that an estimate has.
        read_s: seconds for reading and resizing the video, which an estimate leaves out.
        decode_s: median seconds of a further token.
        answer: tokens that were generated.
        peak_bytes: largest resident memory, less what the process had before it loaded the bundle.
    """

    counts: TokenCounts
    stages_s: dict[str, float]
    read_s: float
    decode_s: float
    answer: int
    peak_bytes: int


def run_once(bundle: Path, frames: int, *, pruned: bool) -> Measurement:
    """Ask a bundle one question about a synthetic video, in a new process.

    Raises:
        PruneVidError: when the run fails, with the runtime's own sentence.
    """
    options = [] if pruned else ["--no-prune"]
    command = [sys.executable, "-m", __name__, *options, "--", str(bundle), str(frames)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"the process ended with status {result.returncode}"]
        raise PruneVidError(f"measuring {bundle} failed: {lines[-1]}")
    found = json.loads(result.stdout)
    return Measurement(**{**found, "counts": TokenCounts(**found["counts"])})


def synthetic_video(frames: int, size: int) -> np.ndarray:
    """Frames uint8 [frames, size, size, 3]: a still background, and on the left of it a strip that always changes."""
    rng = np.random.default_rng(7)
    video = np.repeat(rng.integers(0, 256, (1, size, size, 3), np.uint8), frames, axis=0)
    video[:, :, : size // 3] = rng.integers(0, 256, (frames, size, size // 3, 3), np.uint8)
    return video


def _run(bundle: str, frames: int, pruned: bool) -> Measurement:
    from prunevid.runtime import SamplingConfig, load
    from prunevid.runtime.machine import peak_rss

    before = peak_rss()
    # The estimate is of this backend: another one would be compared with rates that are not its own.
    pipeline = load(bundle, ON_CPU, verify=False)
    video = synthetic_video(frames, pipeline.bundle.manifest.preprocessing.size)
    session = pipeline.session(pipeline.features(video, frames), pruned)
    answer = session.ask(QUESTION, SamplingConfig(max_new_tokens=DECODE_STEPS + 1, ignore_eos=True))
    seconds = answer.timings.stages
    stages = {
        "vision": seconds["vision"],
        "merge": seconds.get("merge", 0.0),
        "llm_pre": seconds["prefix"] + seconds["question"],
        "select": seconds.get("select", 0.0),
        "llm_post": seconds["llm_post"],
    }
    return Measurement(
        counts=answer.token_counts,
        stages_s=stages if pruned else {name: stages[name] for name in ("vision", "llm_pre", "llm_post")},
        read_s=seconds["video"] + seconds["preprocess"],
        decode_s=float(np.median(answer.timings.decode)),
        answer=len(answer.token_ids),
        peak_bytes=peak_rss() - before,
    )


def main() -> int:
    """Measure in this process and print JSON; an error is one line on stderr."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}")
    parser.add_argument("bundle")
    parser.add_argument("frames", type=int)
    parser.add_argument("--no-prune", action="store_true")
    args = parser.parse_args()
    try:
        measurement = _run(args.bundle, args.frames, not args.no_prune)
    except PruneVidError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(measurement)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
