"""`prunevid export`: the command line of the exporter."""

from __future__ import annotations

import argparse

from prunevid.config import PruneConfig
from prunevid.console.progress import on_stderr
from prunevid.console.values import path, whole
from prunevid.dialects import DIALECTS
from prunevid.export.settings import PRECISIONS
from prunevid.models import KNOWN, known_model
from prunevid.options import add_prune_options, prune_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--model", required=True, metavar="NAME", help=f"one of {', '.join(KNOWN)}")
    parser.add_argument(
        "--output", type=path, required=True, metavar="DIR", help="folder of the bundle, made when it is whole"
    )
    parser.add_argument(
        "--checkpoint",
        type=path,
        metavar="DIR|HUB_ID",
        default=argparse.SUPPRESS,
        help="checkpoint folder or hub repository (default: the model's own)",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="no checkpoint: the real architecture, for measuring latency",
    )
    parser.add_argument("--dialect", choices=tuple(DIALECTS), default="ort", help="fused operators, or plain ones")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of weights, activations and KV")
    parser.add_argument(
        "--frames",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="frames that a run samples by default",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there already")
    add_prune_options(parser, "the paper's, with prune_layer scaled to the model's depth")


def run(args: argparse.Namespace) -> int:
    """Export, with progress on stderr; prints the bundle's folder and size."""
    # Refused before the imports below take their seconds.
    known_model(args.model)
    from prunevid.export.exporter import export

    with on_stderr(in_bytes=True) as progress:
        bundle = export(
            args.model,
            args.output,
            checkpoint=getattr(args, "checkpoint", None),
            random_weights=args.random_weights,
            dialect=args.dialect,
            precision=args.precision,
            frames=getattr(args, "frames", None),
            prune=lambda layers: prune_settings(args, PruneConfig.for_depth(layers)),
            overwrite=args.force,
            progress=progress,
        )
    print(f"{bundle.path}: {bundle.size / 1e6:,.1f} MB")
    return 0
