"""`prunevid profile`: the command line of the profiler."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from prunevid.config import SETTINGS, PruneConfig
from prunevid.console.progress import on_stderr
from prunevid.console.values import path, whole
from prunevid.errors import PruneVidError
from prunevid.files import STDOUT, write_output
from prunevid.options import add_prune_options, prune_settings, reader_of
from prunevid.runtime.backends.registry import BACKENDS
from prunevid.runtime.profile.defaults import MAX_NEW_TOKENS, QUESTION, RUNS, WARMUP
from prunevid.runtime.run_options import add_backend_options

if TYPE_CHECKING:
    from prunevid.bundle import Bundle
    from prunevid.runtime.profile.measure import ProfileSettings
    from prunevid.runtime.profile.records import ProfileResult

_OUTPUTS = ("json", "csv", "html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", type=path, metavar="BUNDLE", help="folder made by `prunevid export`")
    parser.add_argument("--video", type=path, required=True, metavar="FILE", help="video file, or folder of images")
    parser.add_argument("--question", default=QUESTION, metavar="TEXT", help="what is asked in every run")
    parser.add_argument("--runs", type=whole, default=RUNS, metavar="N", help="measured rounds")
    parser.add_argument("--warmup", type=whole, default=WARMUP, metavar="N", help="rounds before those")
    parser.add_argument(
        "--max-new-tokens",
        type=whole,
        default=MAX_NEW_TOKENS,
        metavar="N",
        help="tokens of every answer, the first included; end tokens do not stop it",
    )
    parser.add_argument(
        "--frames",
        type=_frame_counts,
        default=argparse.SUPPRESS,
        metavar="N[,N...]",
        help="frames to sample; several make a table and a curve (default: the bundle's)",
    )
    parser.add_argument(
        "--sweep",
        default=argparse.SUPPRESS,
        metavar="SETTING=X,Y,...",
        help="measure several values of one pruning setting, such as keep_ratio=0.2,0.4,0.6",
    )
    parser.add_argument("--ops", action="store_true", help="add the ten slowest operators of every graph")
    add_backend_options(parser)
    outputs = parser.add_argument_group("output", "Tables are printed anyway. FILE may be - for standard output.")
    for name in _OUTPUTS:
        outputs.add_argument(
            f"--{name}", type=path, default=argparse.SUPPRESS, metavar="FILE", help=f"write {name.upper()}"
        )
    add_prune_options(parser, "those of the bundle")


def run(args: argparse.Namespace) -> int:
    """Measure, print tables, write files."""
    from prunevid.runtime.profile.report import to_html
    from prunevid.runtime.profile.serialization import check_outputs, to_csv, to_json
    from prunevid.runtime.profile.terminal import print_result

    outputs = {name: getattr(args, name) for name in _OUTPUTS if hasattr(args, name)}
    check_outputs(list(outputs.values()), args.video, args.bundle)
    if not Path(args.video).exists():
        raise PruneVidError(f"{args.video}: there is no such file or folder; check the path of the video")
    result = _measure(args)
    try:
        # Files first: whoever reads the tables may close the pipe before their end.
        for name, convert in (("json", to_json), ("csv", to_csv), ("html", to_html)):
            if name in outputs:
                write_output(outputs[name], convert(result))
    finally:
        # What took minutes to measure is shown even if a disk was full.
        print_result(result, sys.stderr if STDOUT in outputs.values() else sys.stdout)
    return 0


def _measure(args: argparse.Namespace) -> ProfileResult:
    from prunevid.bundle import open_bundle
    from prunevid.runtime.pipeline import load
    from prunevid.runtime.profile.measure import profile
    from prunevid.runtime.profile.records import Load

    threads = getattr(args, "threads", None)
    begin = perf_counter()
    bundle = open_bundle(args.bundle)
    verified = perf_counter()
    settings = _settings(args, bundle)
    begin_graphs = perf_counter()
    pipeline = load(bundle, args.backend, threads=threads)
    loaded = Load(threads, verified - begin, perf_counter() - begin_graphs)
    if args.ops and not BACKENDS[pipeline.chain.backend].times_operators:
        able = " or ".join(backend.name for backend in BACKENDS.values() if backend.times_operators)
        raise PruneVidError(f"--ops reads the profile of {able}, not of {pipeline.chain.backend}: add --backend {able}")
    with on_stderr() as progress:
        result = profile(pipeline, args.video, args.question, settings, load=loaded, progress=progress)
    del pipeline
    return _with_operators(result, args, bundle, settings) if args.ops else result


def _with_operators(
    result: ProfileResult, args: argparse.Namespace, bundle: Bundle, settings: ProfileSettings
) -> ProfileResult:
    """Operators of the first number of frames and the first settings."""
    from prunevid.runtime.profile.operator_times import measure_operators

    print("measuring operators", file=sys.stderr, flush=True)
    operators = measure_operators(
        bundle,
        args.video,
        args.question,
        frames=settings.frames[0],
        prune=settings.prune[0],
        max_new_tokens=args.max_new_tokens,
        threads=getattr(args, "threads", None),
    )
    return replace(result, operators=operators)


def _settings(args: argparse.Namespace, bundle: Bundle) -> ProfileSettings:
    from prunevid.runtime.profile.measure import ProfileSettings

    exported = bundle.manifest.prune
    base = prune_settings(args, exported)
    prune = _swept(args.sweep, base) if hasattr(args, "sweep") else (base,)
    settings = ProfileSettings(
        frames=getattr(args, "frames", (bundle.manifest.frames,)),
        prune=prune,
        runs=args.runs,
        warmup=args.warmup,
        max_new_tokens=args.max_new_tokens,
    )
    # Before the graphs are loaded: that can take minutes.
    settings.check(exported)
    return settings


def _swept(sweep: str, base: PruneConfig) -> tuple[PruneConfig, ...]:
    """`base` with every value of a sweep such as `keep_ratio=0.2,0.4`."""
    name, _, values = sweep.partition("=")
    name = name.strip().replace("-", "_")
    if name not in SETTINGS or not values:
        known = ", ".join(name for name in base.own_settings if not SETTINGS[name].fixed)
        raise PruneVidError(f"--sweep {sweep}: write SETTING=X,Y,... with one of {known}")
    try:
        read = reader_of(name)
        parsed = [read(value.strip()) for value in values.split(",")]
    except argparse.ArgumentTypeError as error:
        raise PruneVidError(f"--sweep {sweep}: {error}") from error
    return tuple(replace(base, **{name: value}) for value in dict.fromkeys(parsed))


def _frame_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(whole(count.strip()) for count in text.split(",")))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"give whole numbers with commas between them, not {text!r}") from error
