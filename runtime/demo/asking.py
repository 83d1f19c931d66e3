"""Ask the sample clip its questions, pruned beside unpruned, and say whether every answer is the true one."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prunevid.bundle import Bundle
from prunevid.runtime.answer import Answer
from prunevid.runtime.pipeline import Pipeline

HERE = Path(__file__).parent
CLIP = HERE / "clip.mp4"
# The demo model as `prunevid.export.export("demo", ..., precision="fp16")` writes it; demo/ship.py replaces it.
BUNDLE = HERE / "bundle"


def questions() -> list[dict[str, str]]:
    """The clip's questions: `question`, `answer` (what is true) and `kind` of each."""
    listed: list[dict[str, str]] = json.loads((HERE / "clip.json").read_text(encoding="utf-8"))["questions"]
    return listed


def ask(pipeline: Pipeline, console: Console) -> int:
    """Ask a demo bundle about the clip and print two tables; 0, or 1 where an answer with pruning is not true."""
    bundle: Bundle = pipeline.bundle
    console.print(f"Asking about {CLIP.name}, {bundle.manifest.frames} frames")
    pruned, unpruned = (pipeline.open(CLIP, prune=prune) for prune in (True, False))
    asked = [(entry, pipeline.prompt.encode(entry["question"])) for entry in questions()]
    answers = [(entry, pruned.ask(ids), unpruned.ask(ids)) for entry, ids in asked]
    table = Table("question", "truth", "pruned", "unpruned")
    for entry, with_pruning, without in answers:
        table.add_row(entry["question"], entry["answer"], with_pruning.text, without.text)
    console.print(table)
    console.print(_costs(answers[-1][1], answers[-1][2]))
    return int(any(answer.text != entry["answer"] for entry, answer, _ in answers))


def _costs(pruned: Answer, unpruned: Answer) -> Table:
    """Where tokens, memory and time went, for a question about a video that is already open."""
    table = Table("last question", "pruned", "unpruned")
    both = (pruned, unpruned)
    table.add_row("visual tokens in", *(str(a.token_counts.visual) for a in both))
    table.add_row("after merging", *(str(a.token_counts.merged) for a in both))
    table.add_row("kept behind layer M", *(f"{a.token_counts.kept} ({a.token_counts.retained:.0%})" for a in both))
    table.add_row("KV cache", *(f"{a.kv_bytes / 1e3:.0f} kB" for a in both))
    table.add_row("to first token", *(f"{1000 * a.timings.first_token:.1f} ms" for a in both))
    steps = (a.timings.decode_per_token for a in both)
    table.add_row("per further token", *("-" if step is None else f"{1000 * step:.1f} ms" for step in steps))
    return table
