"""``prunevid calibrate``: the command line of quantization."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prunevid.calibration.recipes import RECIPES
from prunevid.runtime.options import add_threads_option

if TYPE_CHECKING:
    from prunevid.calibration.calibrate import Calibrated

_MIN_AGREEMENT = 0.9
_MAX_NEW_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    recipes = "; ".join(f"{recipe.name}: {recipe.summary}" for recipe in RECIPES.values())
    parser.add_argument("bundle", metavar="BUNDLE", help="folder made by `prunevid export`")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the quantized bundle")
    parser.add_argument("--recipe", required=True, choices=tuple(RECIPES), help=recipes)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--questions",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help='JSON lines {"video": path, "question": text, "answer": text}; the answer may be missing',
    )
    asked.add_argument(
        "--videos",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder of videos, about which general questions are asked",
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=_MIN_AGREEMENT,
        metavar="X",
        help="share of held-out questions to be answered as before; else nothing is written",
    )
    stay = parser.add_mutually_exclusive_group()
    stay.add_argument(
        "--float-layers",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="leave the N most sensitive layers in float, as measured one by one",
    )
    stay.add_argument(
        "--max-kl",
        type=float,
        default=argparse.SUPPRESS,
        metavar="NATS",
        help="leave as many in float as it takes for the others' sensitivities to add up to this",
    )
    parser.add_argument("--force", action="store_true", help="write the bundle even if it agrees less")
    parser.add_argument(
        "--max-new-tokens", type=int, default=_MAX_NEW_TOKENS, metavar="N", help="length of the answers compared"
    )
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, with progress on stderr; prints what changed."""
    from prunevid.calibration.calibrate import Settings, calibrate
    from prunevid.calibration.progress import on_stderr
    from prunevid.calibration.questions import find_videos, read_questions
    from prunevid.calibration.sensitivity import FloatChoice

    videos = read_questions(Path(args.questions)) if hasattr(args, "questions") else find_videos(Path(args.videos))
    settings = Settings(
        recipe=args.recipe,
        min_agreement=args.min_agreement,
        force=args.force,
        float_choice=FloatChoice(getattr(args, "float_layers", None), getattr(args, "max_kl", None)),
        max_new_tokens=args.max_new_tokens,
        threads=getattr(args, "threads", None),
    )
    with on_stderr() as progress:
        made = calibrate(Path(args.bundle), videos, Path(args.output), settings, progress)
    print(report(made))
    if made.judgement.agreement < settings.min_agreement:
        print("note: it agrees less than --min-agreement, and was written since --force says so", file=sys.stderr)
    return 0


def report(made: Calibrated) -> str:
    """Size, agreement and accuracy before and after, and what was done to each graph, in a few lines."""
    judgement = made.judgement
    assert made.bundle.manifest.quantization is not None  # it was calibrated
    lines = [f"{made.bundle.path}: {made.size_before / 1e6:,.1f} MB -> {made.size_after / 1e6:,.1f} MB"]
    for name, graph in made.bundle.manifest.quantization.graphs.items():
        stay = f", {len(graph.float_layers)} in float" if graph.float_layers else ""
        lines.append(f"  {name}: {graph.quantized} layers in {graph.treatment}{stay}")
    lines.append(f"  held-out questions: {judgement.questions}, same answer: {judgement.agreement:.1%}")
    lines.append(
        f"  KL of the first token: mean {judgement.divergence:.4f}, largest {judgement.largest_divergence:.4f} nats"
    )
    if judgement.accuracy_before is not None and judgement.accuracy_after is not None:
        lines.append(
            f"  right of {judgement.answered} with a known answer: {judgement.accuracy_before:.1%} before, "
            f"{judgement.accuracy_after:.1%} after"
        )
    return "\n".join(lines)
