"""`prunevid show`: the command line of the pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunevid.console.values import path
from prunevid.options import add_prune_options, prune_settings
from prunevid.runtime.run_options import add_backend_options, add_frames_option
from prunevid.runtime.show.output import check_picture, save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", type=path, metavar="BUNDLE", help="folder made by `prunevid export`")
    for name, kind, metavar, text in (
        ("--video", path, "FILE", "video file, or folder of images"),
        ("--question", str, "TEXT", "decides what is kept"),
        ("--output", path, "FILE", "picture (.png), animation (.gif) or page to explore (.html)"),
    ):
        parser.add_argument(name, type=kind, required=True, default=argparse.SUPPRESS, metavar=metavar, help=text)
    add_frames_option(parser)
    add_backend_options(parser)
    add_prune_options(parser, "those of the bundle")


def run(args: argparse.Namespace) -> int:
    """Ask the question, draw what it kept, and say what was written."""
    output = Path(args.output)
    check_picture(output, args.video, args.bundle)
    from prunevid.runtime.look.style import drawable
    from prunevid.runtime.pipeline import load
    from prunevid.runtime.show.maps import observe

    pipeline = load(args.bundle, args.backend, threads=getattr(args, "threads", None))
    settings = prune_settings(args, pipeline.bundle.manifest.prune)
    maps = observe(pipeline, args.video, args.question, frames=getattr(args, "frames", None), prune=settings)
    save(maps, output)
    counts = " -> ".join(str(sum(stage)) for stage in maps.counts)
    print(f"{output}: {counts} visual tokens ({maps.retained:.1%}), answer: {maps.answer}")
    if output.suffix.lower() != ".html" and "?" in drawable(f"{maps.question}{maps.answer}".replace("?", "")):
        print("note: the picture's font has only Latin letters, others are drawn as ?: try .html", file=sys.stderr)
    return 0
