"""Tuning the pruning of the demo checkpoint: what budgets of tokens and of agreement come to on held-out questions.

    python -m benchmarks.tuning --output benchmarks/results/tuning-demo.json

Videos of the validation split; half of them are searched on, the others are held out. The demo model is exported with
two prune layers, so that this is searched, too.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.calibration import calibration_videos
from benchmarks.machine import describe
from benchmarks.report import save
from prunevid import PruneConfig
from prunevid.calibration.tuning.budget import Budget
from prunevid.calibration.tuning.front_chart import draw_png
from prunevid.calibration.tuning.pareto import interval
from prunevid.calibration.tuning.search import Grid
from prunevid.calibration.tuning.tune import Judged, Tuned, TuneSettings, tune
from prunevid.console.progress import PlainLines
from prunevid.export import export

_LAYERS = (2, 1)
BUDGETS = (Budget(max_tokens=0.10), Budget(min_agreement=0.98))


def figures(judged: Judged) -> dict[str, Any]:
    """A setting on the held-out questions."""
    outcome = judged.outcome
    return {
        "prune": asdict(judged.candidate.prune),
        "questions": outcome.questions,
        "agreement": outcome.agreement,
        "interval": interval(outcome.agreement, outcome.questions),
        "divergence": outcome.divergence,
        "right": judged.accuracy,
        "kept": outcome.kept_share,
        "llm_flops": outcome.mean_flops,
        "ttft_ms": judged.ttft_ms,
    }


def measure(videos: int) -> dict[str, Any]:
    """Tune for every budget."""
    rows: dict[str, Any] = {}
    fronts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        asked = calibration_videos(folder / "videos")[:videos]
        bundles = [
            export("demo", folder / f"m{layer}", prune=replace(PruneConfig(), prune_layer=layer)).path
            for layer in _LAYERS
        ]
        for number, budget in enumerate(BUDGETS):
            settings = TuneSettings(budget, Grid(), force=True, max_new_tokens=6)
            output = folder / f"tuned-{number}"
            made: Tuned = tune(bundles, asked, output, settings, PlainLines(), fronts.append)
            rows[str(budget)] = {what: figures(getattr(made, what)) for what in ("unpruned", "present", "chosen")}
    return {"videos": videos, "budgets": rows, "front": fronts[0]}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| budget | settings | same answer | KL | right | tokens kept | LLM GFLOP | first token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = next(iter(result["budgets"].values()))
    rows = [(name, first[name]) for name in ("unpruned", "present")]
    rows += [(budget, row["chosen"]) for budget, row in result["budgets"].items()]
    for name, row in rows:
        prune, (low, high) = row["prune"], (100 * x for x in row["interval"])
        settings = ", ".join(f"{prune[key]:g}" for key in ("segment_ratio", "static_threshold", "cluster_ratio"))
        settings += f", {prune['keep_ratio']:g}, M = {prune['prune_layer']}"
        cells = [
            name,
            "" if name == "unpruned" else settings,
            f"{row['agreement']:.1%} ({low:.1f} to {high:.1f})",
            f"{row['divergence']:.4f}",
            f"{row['right']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['llm_flops'] / 1e9:.2f}",
            f"{row['ttft_ms']:.0f} ms",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path, help="the first budget's front, as PNG")
    args = parser.parse_args()
    result = measure(args.videos)
    save({"machine": describe(), **result}, args.output, indent=None)
    if args.picture:
        args.picture.write_bytes(draw_png(result["front"]))
    print(table(result))


if __name__ == "__main__":
    main()
