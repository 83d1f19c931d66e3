"""`prunevid fit`: the command line of the estimates."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prunevid.config import PruneConfig
from prunevid.console.values import number, path, whole
from prunevid.errors import PruneVidError
from prunevid.files import STDOUT, check_output, write_output
from prunevid.models import KNOWN, ModelShape, known_model
from prunevid.runtime.fit.devices.cards import DEVICES, LOCAL, device_named

if TYPE_CHECKING:
    from prunevid.runtime.fit.measured import MeasuredEstimate
    from prunevid.runtime.fit.result import FitResult

# The share of tokens that PruneVid's paper keeps of LLaVA-OneVision-7B's, 17.0 %, is 0.4 of what merging leaves.
_MERGED_SHARE = 0.425
_FRAMES = (8, 16, 32, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", type=path, metavar="BUNDLE", nargs="?", help="folder made by `prunevid export`")
    parser.add_argument("--model", metavar="NAME", help=f"instead of a bundle: {', '.join(KNOWN)}")
    parser.add_argument(
        "--device",
        required=True,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"{', '.join(DEVICES)}; or {LOCAL}: this machine, which also runs the bundle and states the error",
    )
    parser.add_argument(
        "--frames",
        default=argparse.SUPPRESS,
        metavar="N,N,...",
        help=f"frames of the video; {LOCAL} measures with the fewest (default: {_listed(_FRAMES)}; of a model that has "
        "no positions for all of these, those that it takes and its own)",
    )
    parser.add_argument(
        "--merged-share",
        type=number,
        default=_MERGED_SHARE,
        metavar="X",
        help="share of the visual tokens that merging leaves, which depends on the video",
    )
    parser.add_argument(
        "--kept-share",
        type=number,
        default=argparse.SUPPRESS,
        metavar="X",
        help="share of them that is kept in the end (default: the merged share times keep_ratio)",
    )
    parser.add_argument(
        "--json", type=path, metavar="FILE", help="write everything as JSON, too; - is standard output, alone"
    )


def run(args: argparse.Namespace) -> int:
    """Estimate, compare with a measurement where the device is this machine, and print."""
    given = _frames(args.frames) if hasattr(args, "frames") else None
    if (args.bundle is None) == (args.model is None):
        raise PruneVidError("give either a BUNDLE or --model NAME")
    if args.device == LOCAL and args.bundle is None:
        raise PruneVidError(f"--device {LOCAL} measures: it needs a BUNDLE, which `prunevid export` makes")
    device = None if args.device == LOCAL else device_named(args.device)
    if args.json not in (None, STDOUT):
        check_output(Path(args.json), inputs=[("the bundle", args.bundle)])
    model, prune = _model(args)

    from prunevid.runtime.fit.result import Shares, estimate_all, frames_taken

    shares = Shares(args.merged_share, getattr(args, "kept_share", args.merged_share * prune.keep_ratio))
    frames = given or frames_taken(model, prune.prune_layer, _FRAMES, shares)
    comparisons: list[MeasuredEstimate] = []
    if device is None:
        from prunevid.runtime.fit.devices.local import local_device
        from prunevid.runtime.fit.measured import measure_estimates

        device = local_device()
        result = estimate_all(model, prune.prune_layer, device, frames, shares)
        comparisons = measure_estimates(Path(args.bundle), model, prune.prune_layer, min(frames), device)
    else:
        result = estimate_all(model, prune.prune_layer, device, frames, shares)
    _write(result, comparisons, args.json)
    return 0


def _frames(text: str) -> list[int]:
    try:
        frames = list(dict.fromkeys(whole(part.strip()) for part in text.split(",")))
    except argparse.ArgumentTypeError:
        frames = [0]
    if min(frames) < 1:
        raise PruneVidError(f"--frames must be whole numbers of 1 or more, such as {_listed(_FRAMES)}, not {text!r}")
    return frames


def _listed(frames: tuple[int, ...]) -> str:
    return ",".join(map(str, frames))


def _model(args: argparse.Namespace) -> tuple[ModelShape, PruneConfig]:
    """Shapes and pruning settings of the bundle, or of the known model."""
    if args.model is not None:
        model = known_model(args.model).shape
        return model, PruneConfig.for_depth(model.decoder.layers)
    from prunevid.bundle import open_bundle
    from prunevid.runtime.fit.bundle_shape import shape_of

    # An estimate reads no weights, so there is no need to hash gigabytes.
    bundle = open_bundle(args.bundle, verify=False)
    return shape_of(bundle), bundle.manifest.prune


def _write(result: FitResult, comparisons: list[MeasuredEstimate], file: str | None) -> None:
    """Print the report, and write the JSON where it was asked for."""
    if file is not None:
        data = {**result.to_dict(), "comparisons": [comparison.to_dict() for comparison in comparisons]}
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_output(file, text)
        if file == STDOUT:
            return
    from rich.console import Console

    from prunevid.runtime.fit.terminal import print_comparisons, print_result

    console = Console(highlight=False)
    print_result(result, console)
    if comparisons:
        print_comparisons(comparisons, console)
