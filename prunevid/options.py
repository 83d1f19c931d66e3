"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from prunevid.config import SETTINGS, PruneConfig
from prunevid.console.values import number, whole

_READERS: dict[type, Callable[[str], Any]] = {int: whole, float: number, str: str}


def add_prune_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add one option for every setting; `default` says what applies where none is given."""
    group = parser.add_argument_group("pruning", f"Settings of the method; by default {default}.")
    for name, setting in SETTINGS.items():
        choices = setting.choices and tuple(setting.choices)
        if choices and len(choices) == 1:
            continue  # there is nothing to choose
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            type=reader_of(name),
            choices=choices,
            default=argparse.SUPPRESS,
            metavar=None if choices else "X",
            help=f"{setting.symbol}: {setting.help}" if setting.symbol else setting.help,
        )


def reader_of(name: str) -> Callable[[str], Any]:
    """What reads a value of the setting of that name from text; raises ArgumentTypeError where it is none."""
    return _READERS[type(SETTINGS[name].default)]


def prune_settings(args: argparse.Namespace, base: PruneConfig) -> PruneConfig:
    """`base` with the pruning options that were given. Raises PruneVidError where one is out of range."""
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    return dataclasses.replace(base, **given)
