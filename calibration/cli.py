"""`prunevid calibrate`: the command line of quantization, and of the search for pruning settings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunevid.calibration.quantize.recipes import KV_CACHES, RECIPES
from prunevid.config import SETTINGS
from prunevid.console.values import number, path, whole
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.files import check_output, write_whole
from prunevid.runtime.machine import has_exact_int8
from prunevid.runtime.run_options import add_threads_option

if TYPE_CHECKING:
    from prunevid.calibration.quantize.calibrate import Calibrated
    from prunevid.calibration.questions import AskedVideo
    from prunevid.calibration.tuning.search import Grid
    from prunevid.calibration.tuning.tune import Tuned

_MIN_AGREEMENT = 0.9
_MAX_NEW_TOKENS = 16
# Options of one half of the command, which the other half refuses.
_OF_TUNING = ("max_tokens", "max_ttft_ms", "search", "json", "png", "html")
_OF_RECIPES = ("float_layers", "max_kl", "kv_cache")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    recipes = "; ".join(f"{recipe.name}: {recipe.summary}" for recipe in RECIPES.values())
    parser.add_argument(
        "bundles",
        type=path,
        metavar="BUNDLE",
        nargs="+",
        help="folder made by `prunevid export`; to tune, several of one model with different prune layers",
    )
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="folder of the new bundle")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", choices=tuple(RECIPES), default=argparse.SUPPRESS, help=recipes)
    what.add_argument("--tune-pruning", action="store_true", help="search pruning settings within a budget instead")
    parser.add_argument(
        "--kv-cache",
        choices=KV_CACHES,
        default=argparse.SUPPRESS,
        help="keep keys and values in int8, a quarter of the memory; ort dialect, ONNX Runtime 1.27 or newer",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--questions",
        type=path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help='JSON lines {"video": path, "question": text, "answer": text}; the answer may be missing',
    )
    asked.add_argument(
        "--videos",
        type=path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder of videos, about which general questions are asked",
    )
    parser.add_argument(
        "--min-agreement",
        type=number,
        default=argparse.SUPPRESS,
        metavar="X",
        help="share of held-out questions to be answered as before (tuning: as without pruning); else nothing is "
        f"written (default: {_MIN_AGREEMENT})",
    )
    tuning = parser.add_argument_group("tuning", "A budget, of which --min-agreement may be part; see --tune-pruning.")
    for name, metavar, text in (
        ("--max-tokens", "X", "largest share of the visual tokens to keep, on average"),
        ("--max-ttft-ms", "MS", "longest time to the first token on this machine, vision included (median)"),
    ):
        tuning.add_argument(name, type=number, default=argparse.SUPPRESS, metavar=metavar, help=text)
    tuning.add_argument(
        "--search",
        action="append",
        default=argparse.SUPPRESS,
        metavar="SETTING=X,Y,...",
        help="values to try of one setting, such as keep_ratio=0.2,0.4; may be given for several",
    )
    for name, text in (
        ("json", "write all that was tried, with the front"),
        ("png", "draw agreement over cost"),
        ("html", "the same as a page"),
    ):
        tuning.add_argument(f"--{name}", type=path, default=argparse.SUPPRESS, metavar="FILE", help=text)
    stay = parser.add_mutually_exclusive_group()
    stay.add_argument(
        "--float-layers",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="leave the N most sensitive layers in float, as measured one by one",
    )
    stay.add_argument(
        "--max-kl",
        type=number,
        default=argparse.SUPPRESS,
        metavar="NATS",
        help="leave as many in float as it takes for the others' sensitivities to add up to this",
    )
    parser.add_argument("--force", action="store_true", help="write the bundle even if it agrees less")
    parser.add_argument(
        "--max-new-tokens", type=whole, default=_MAX_NEW_TOKENS, metavar="N", help="length of the answers compared"
    )
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate or tune, with progress on stderr; prints what changed."""
    _check_options(args)
    return _tune(args) if args.tune_pruning else _quantize(args)


def _check_options(args: argparse.Namespace) -> None:
    """Raise PruneVidError for an option that belongs to the other half of the command."""
    others, mode = (_OF_RECIPES, "--tune-pruning") if args.tune_pruning else (_OF_TUNING, "--recipe")
    for name in others:
        if hasattr(args, name):
            raise PruneVidError(f"--{name.replace('_', '-')} does not go with {mode}: leave it out")
    if len(args.bundles) > 1 and not args.tune_pruning:
        raise PruneVidError("a recipe is for one BUNDLE: calibrate one after the other")


def _quantize(args: argparse.Namespace) -> int:
    from prunevid.calibration.quantize.calibrate import Settings, calibrate
    from prunevid.calibration.quantize.sensitivity import FloatChoice
    from prunevid.console.progress import on_stderr

    settings = Settings(
        recipe=args.recipe,
        min_agreement=getattr(args, "min_agreement", _MIN_AGREEMENT),
        force=args.force,
        float_choice=FloatChoice(getattr(args, "float_layers", None), getattr(args, "max_kl", None)),
        max_new_tokens=args.max_new_tokens,
        threads=getattr(args, "threads", None),
        kv_cache=getattr(args, "kv_cache", KV_CACHES[0]),
    )
    with on_stderr() as progress:
        made = calibrate(Path(args.bundles[0]), _videos(args), Path(args.output), settings, progress)
    print(report(made))
    if made.judgement.agreement < settings.min_agreement:
        print("note: it agrees less than --min-agreement, and was written since --force says so", file=sys.stderr)
    return 0


def _videos(args: argparse.Namespace) -> list[AskedVideo]:
    from prunevid.calibration.questions import find_videos, read_questions

    return read_questions(Path(args.questions)) if hasattr(args, "questions") else find_videos(Path(args.videos))


def _tune(args: argparse.Namespace) -> int:
    from prunevid.calibration.tuning.budget import Budget
    from prunevid.calibration.tuning.tune import TuneSettings, tune
    from prunevid.console.progress import on_stderr

    least = getattr(args, "min_agreement", None)
    budget = Budget(getattr(args, "max_tokens", None), getattr(args, "max_ttft_ms", None), least)
    settings = TuneSettings(
        budget=budget,
        grid=_grid(getattr(args, "search", [])),
        least_held_out=_MIN_AGREEMENT if least is None else least,
        force=args.force,
        max_new_tokens=args.max_new_tokens,
        threads=getattr(args, "threads", None),
    )
    files = {name: Path(getattr(args, name)) for name in ("json", "png", "html") if hasattr(args, name)}
    if len({file.resolve() for file in files.values()}) < len(files):
        raise PruneVidError("two outputs have the same file name: give each its own")
    inputs = [("the bundle", bundle) for bundle in args.bundles]
    inputs += [(f"the {name}", getattr(args, name)) for name in ("questions", "videos") if hasattr(args, name)]
    for file in files.values():
        check_output(file, inputs=inputs)
    videos = _videos(args)
    for file in files.values():
        check_output(file, inputs=[("a video", video.path) for video in videos])

    def write_front(data: dict[str, Any]) -> None:
        from prunevid.calibration.tuning.front_chart import draw_png
        from prunevid.calibration.tuning.front_page import draw_page

        if "json" in files:
            write_whole(files["json"], f"{json.dumps(data, indent=1, allow_nan=False)}\n".encode())
        if "png" in files:
            write_whole(files["png"], draw_png(data))
        if "html" in files:
            write_whole(files["html"], draw_page(data).encode())

    with on_stderr() as progress:
        made = tune([Path(b) for b in args.bundles], videos, Path(args.output), settings, progress, write_front)
    print(report_tuned(made))
    if made.chosen.outcome.agreement < settings.least_held_out:
        print("note: it agrees less than --min-agreement, and was written since --force says so", file=sys.stderr)
    return 0


def _grid(searched: list[str]) -> Grid:
    """The values to try, of `SETTING=X,Y,...`."""
    from prunevid.calibration.tuning.search import Grid

    known = [name for name, setting in SETTINGS.items() if isinstance(setting.search, tuple)]
    values: dict[str, tuple[float, ...]] = {}
    for text in searched:
        name, _, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known or not listed:
            raise PruneVidError(f"--search {text}: write SETTING=X,Y,... with one of {', '.join(known)}")
        try:
            values[name] = tuple(dict.fromkeys(number(value.strip()) for value in listed.split(",")))
        except argparse.ArgumentTypeError as error:
            raise PruneVidError(f"--search {text}: {error}") from error
    return Grid(values)


def report_tuned(made: Tuned) -> str:
    """The chosen settings, and how no pruning, the present and the chosen settings do on held-out questions."""
    from prunevid.calibration.tuning.budget import describe, figures

    lines = [f"{made.bundle.path}: {describe(made.chosen.candidate)}", "held-out questions:"]
    for name in ("unpruned", "present", "chosen"):
        judged = getattr(made, name)
        right = "" if judged.accuracy is None else f"; {judged.accuracy:.1%} right"
        lines.append(f"  {name}: {figures(judged.outcome, judged.ttft_ms)}{right}")
    return "\n".join(lines)


def report(made: Calibrated) -> str:
    """Size, agreement and accuracy before and after, and what was done to each graph, in a few lines."""
    judgement = made.judgement
    manifest = made.bundle.manifest
    assert manifest.quantization is not None  # it was calibrated
    lines = [f"{made.bundle.path}: {made.size_before / 1e6:,.1f} MB -> {made.size_after / 1e6:,.1f} MB"]
    for name, graph in manifest.quantization.graphs.items():
        stay = f", {len(graph.float_layers)} in float" if graph.float_layers else ""
        lines.append(f"  {name}: {graph.quantized} layers in {graph.treatment}{stay}")
    if manifest.cache.dtype != manifest.embeddings.dtype:
        lines.append(f"  KV cache: {manifest.cache.dtype}")
    simulated = RECIPES[manifest.quantization.recipe].simulated.get(manifest.float_type)
    if not DIALECTS[manifest.dialect].has_fused_quantization and not has_exact_int8():
        simulated = manifest.precision
    if simulated:
        lines.append(f"  judged on this CPU with {simulated} simulated in float")
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
