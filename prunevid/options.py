"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from prunevid.config import SELECTIONS, PruneConfig
from prunevid.console.values import number, whole

_HELP = {
    "segment_ratio": "gamma: T frames fall into at most int(T * gamma) segments",
    "static_threshold": "tau: mean cosine similarity above which a position is static",
    "cluster_ratio": "beta: a group of n tokens is merged into int(n * beta)",
    "keep_ratio": "alpha: int(n * alpha) of a group's merged tokens are kept in the language model",
    "prune_layer": "M: last layer (from 0) that sees all merged tokens",
    "neighbours": "k: neighbours that make a token's density",
    "min_cluster_tokens": "groups of so many tokens or fewer are not clustered",
    "selection": "keep the best of every group, or the best of all",
}
_TYPES: dict[type, Callable[[str], Any]] = {int: whole, float: number, str: str}


def add_prune_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add one option for every field of :class:`PruneConfig`; ``default`` says what applies where none is given."""
    group = parser.add_argument_group("pruning", f"Settings of the method; by default {default}.")
    for field in dataclasses.fields(PruneConfig):
        choices = SELECTIONS if field.name == "selection" else None
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            type=_TYPES[type(field.default)],
            choices=choices,
            default=argparse.SUPPRESS,
            metavar=None if choices else "X",
            help=_HELP[field.name],
        )


def prune_settings(args: argparse.Namespace, base: PruneConfig) -> PruneConfig:
    """``base`` with the pruning options that were given. Raises PruneVidError where one is out of range."""
    given: dict[str, Any] = {
        field.name: getattr(args, field.name) for field in dataclasses.fields(PruneConfig) if hasattr(args, field.name)
    }
    return dataclasses.replace(base, **given)
