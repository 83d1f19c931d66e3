"""`prunevid demo`: the shipped model, clip and questions, with nothing to export or download."""

from __future__ import annotations

import argparse

from prunevid.runtime.run_options import add_backend_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_backend_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the shipped bundle; exit status 1 where an answer is not the true one."""
    from rich.console import Console

    from prunevid.runtime.demo.asking import BUNDLE, ask
    from prunevid.runtime.pipeline import load

    return ask(load(BUNDLE, args.backend, threads=getattr(args, "threads", None)), Console())
