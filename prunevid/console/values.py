"""Values of options: what a number and a path may look like. Each raises ArgumentTypeError, which the parser names."""

from __future__ import annotations

import errno
import os
import re
from argparse import ArgumentTypeError

__all__ = ["number", "path", "whole"]

# As people write numbers; Python also takes underscores, spaces and the digits of other scripts.
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Not there: whoever needs it to be says what is missing.
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def whole(text: str, largest: int = 2**31 - 1) -> int:
    """A whole number of `largest` at most, negative or not; libraries count in 32 bits."""
    if not _WHOLE.fullmatch(text):
        raise ArgumentTypeError(f"give a whole number, not {text!r}")
    # Python refuses to read thousands of digits.
    if len(text.lstrip("+-0")) > len(str(largest)) or abs(int(text)) > largest:
        raise ArgumentTypeError(f"{text} is too large: {largest} is the largest number")
    return int(text)


def number(text: str) -> float:
    """A number that is finite."""
    if not _NUMBER.fullmatch(text):
        raise ArgumentTypeError(f"give a number such as 0.5, not {text!r}")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ArgumentTypeError(f"{text} is too large a number")
    return value


def path(text: str) -> str:
    """A path that a file could have, whether there is one or not.

    A `~` that the shell left as it was, as in `--output=~/x`, is the home folder: nobody means a folder `~`.
    """
    if not text:
        raise ArgumentTypeError("the path is empty")
    try:
        if text.startswith("~") and not os.path.lexists(text):
            home = os.path.expanduser(text)
            if home == text:
                raise ArgumentTypeError(f"{text!r}: there is no such user")
            text = home
        os.stat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} cannot be a path: {error}") from error
    except OSError as error:
        if error.errno not in _ABSENT:
            raise ArgumentTypeError(f"{text!r} cannot be reached: {error.strerror}") from error
    return text
