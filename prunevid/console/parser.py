"""The parser of all commands: options are written out, and what is wrong is one sentence."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from prunevid.errors import PruneVidError

__all__ = ["CommandParser", "UsageError"]


class UsageError(PruneVidError):
    """Arguments that the parser cannot take."""


class CommandParser(argparse.ArgumentParser):
    """Arguments of one command. Options cannot be abbreviated: a new one would make old scripts fail."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which says how to learn more."""
        raise UsageError(f"{message}; `{self.prog} --help` tells more")
