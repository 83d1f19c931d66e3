"""Options of the commands that run a bundle. Nothing heavy is imported: help lists them."""

from __future__ import annotations

import argparse

from prunevid.console.values import whole
from prunevid.runtime.backends.registry import BACKENDS


def add_frames_option(parser: argparse.ArgumentParser) -> None:
    """Add `--frames`; without it, the namespace has no `frames`."""
    parser.add_argument(
        "--frames",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="frames to sample (default: the bundle's)",
    )


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add `--backend` and `--threads`; without the latter, the namespace has no `threads`."""
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="what runs the graphs")
    add_threads_option(parser)


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add `--threads`; without it, the namespace has no `threads`."""
    parser.add_argument(
        "--threads",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="CPU threads (default: one per core)",
    )
