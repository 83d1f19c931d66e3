"""`prunevid build`: the command line of the engine builder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunevid.console.progress import on_stderr
from prunevid.console.values import path, whole
from prunevid.errors import PruneVidError
from prunevid.files import check_output

if TYPE_CHECKING:
    from prunevid.bundle import Bundle
    from prunevid.bundle.sections.engine_sets import EngineSpec
    from prunevid.export.engine.jobs import BuiltEngine

# As in targets.py and profiles.py, which need modules that help should not wait for.
_DEVICES = ("local", "orin", "thor")
_RTX = "rtx"
_TEXT = 1024
_MISMATCH = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "bundle", type=path, metavar="BUNDLE", help="folder made by `prunevid export --dialect portable`"
    )
    parser.add_argument(
        "--device",
        choices=(*_DEVICES, _RTX),
        default="local",
        help="what this machine must be; rtx: built here by TensorRT for RTX, with or without a GPU, for RTX GPUs",
    )
    parser.add_argument(
        "--capability",
        action="append",
        default=argparse.SUPPRESS,
        metavar="X.Y",
        help="with --device rtx: a compute capability to build for (repeat; default: all that the bundle runs on)",
    )
    parser.add_argument("--fp16", action="store_true", help="insist on a bundle exported with --precision fp16")
    parser.add_argument(
        "--frames",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="most frames of a video (default: the bundle's)",
    )
    parser.add_argument("--text", type=whole, default=_TEXT, metavar="N", help="most tokens of prompt and answer")
    parser.add_argument(
        "--workspace",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="MIB",
        help="GPU memory that TensorRT may work in (default: all)",
    )
    parser.add_argument(
        "--timing-cache",
        type=path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="kept between builds: later ones are faster",
    )
    parser.add_argument("--check", action="store_true", help="compare the engines with ONNX Runtime afterwards")
    parser.add_argument("--force", action="store_true", help="build also what is there already")


def run(args: argparse.Namespace) -> int:
    """Build, with progress on stderr; prints the engines. With --check, exits with 1 where they differ too much."""
    workspace, cache = getattr(args, "workspace", None), getattr(args, "timing_cache", None)
    capabilities = tuple(getattr(args, "capability", ()))
    if workspace is not None and workspace < 1:
        raise PruneVidError(f"--workspace must be 1 MiB or more, not {workspace}")
    if args.device == _RTX:
        _refuse_for_rtx(args)
    elif capabilities:
        raise PruneVidError("--capability goes with --device rtx: TensorRT builds for the GPU that is there")
    if cache is not None:
        check_output(Path(cache), "the timing cache ", inputs=[("the bundle", args.bundle)])
    if args.device == _RTX:
        _require_onnx()
    from prunevid.export.engine.builder import build
    from prunevid.export.engine.jobs import BuildSettings

    built: dict[str, BuiltEngine] = {}
    with on_stderr() as progress:
        bundle = build(
            args.bundle,
            device=args.device,
            fp16=args.fp16,
            frames=getattr(args, "frames", None),
            text=args.text,
            settings=BuildSettings(workspace, Path(cache) if cache else None, capabilities),
            force=args.force,
            progress=progress,
            done=built.__setitem__,
        )
    engines = bundle.manifest.engine_sets[-1]
    if args.device == _RTX:
        print(f"TensorRT-RTX {engines.release}, for compute capability {', '.join(engines.capabilities)}")
    _print(bundle, engines.graphs, built)
    return _check(bundle) if args.check else 0


def _refuse_for_rtx(args: argparse.Namespace) -> None:
    """Raise PruneVidError for options that mean nothing where no GPU is asked."""
    for option in ("workspace", "timing_cache"):
        if getattr(args, option, None) is not None:
            name = option.replace("_", "-")
            raise PruneVidError(f"--{name} does not go with --device rtx: TensorRT-RTX chooses kernels where they run")
    if args.check:
        raise PruneVidError(
            "--check does not go with --device rtx: it runs engines on this machine's GPU; where there is one, ask the "
            "bundle with `prunevid run --backend tensorrt-rtx`"
        )


def _require_onnx() -> None:
    """Raise PruneVidError where onnx is missing: the command's own extra, `tensorrt`, is not what is wanted here."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise PruneVidError(f"onnx cannot be loaded ({error}): pip install 'prunevid[rtx]'") from error


def _print(bundle: Bundle, engines: Mapping[str, EngineSpec], built: Mapping[str, BuiltEngine]) -> None:
    for graph, engine in engines.items():
        size = bundle.manifest.files[engine.file].size
        took = f"built in {built[graph].seconds:.1f} s" if graph in built else "kept"
        profiles = ", ".join(profile.name for profile in engine.profiles)
        print(f"{bundle.path / engine.file}: {size / 1e6:,.1f} MB, {profiles}, {took}")


def _check(bundle: Bundle) -> int:
    from prunevid.export.engine.check import check_engines
    from prunevid.export.engine.toolkit import Toolkit

    failed = 0
    for found in check_engines(bundle, Toolkit()):
        apart = "another shape" if found.difference is None else f"{found.difference:.1e} apart"
        print(f"{'ok  ' if found.passed else 'FAIL'} {found.graph} {found.profile} {found.output}: {apart}")
        failed += not found.passed
    print(f"{failed} outputs differ too much" if failed else "all outputs agree with ONNX Runtime")
    return _MISMATCH if failed else 0
