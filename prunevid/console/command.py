"""The frame of every command: whatever goes wrong within becomes one sentence and an exit status."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from prunevid.console.parser import UsageError
from prunevid.console.standard_streams import guarded
from prunevid.errors import PruneVidError

__all__ = ["USER_ERROR", "run_framed"]

USER_ERROR = 2
_LONGEST_WORD = 300


def run_framed(prog: str, work: Callable[[], int], missing: Callable[[ImportError], str | None]) -> int:
    """Run a command's `work`, and return its exit status.

    prog: its name in sentences. missing: the sentence about a module that cannot be imported, None where that is a
    fault of ours. Raises what no user can mend, what came of a signal, and, as argparse does, SystemExit where only
    help was wanted or the arguments are wrong.
    """
    with guarded() as has_output:
        try:
            if not has_output:
                raise PruneVidError("standard output is closed: give it somewhere to go, such as > /dev/null")
            try:
                return work()
            finally:
                # Also help may have nowhere to go.
                sys.stdout.flush()
        except SystemExit as exit_:
            if isinstance(exit_.__context__, BrokenPipeError):  # rich ends the process for that
                return 0
            raise
        except BrokenPipeError:
            # The reader of our output went away, as `head` does; there is nobody left to tell.
            return 0
        except Exception as error:
            sentence = _sentence(error, missing)
            if sentence is None:
                raise
            print(_in_one_line(f"{prog}: error: {sentence}"), file=sys.stderr, flush=True)
            if isinstance(error, UsageError):
                raise SystemExit(USER_ERROR) from error
            return USER_ERROR


def _sentence(error: Exception, missing: Callable[[ImportError], str | None]) -> str | None:
    """What to tell the user about an error; None where it is a fault of ours, whose traceback is needed."""
    if isinstance(error, PruneVidError):
        return str(error)
    if isinstance(error, ImportError):
        return missing(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    return None


def _in_one_line(text: str) -> str:
    """Without what would make it several lines, or do things to a terminal, or fill it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda found: f"{found[0][:100]}...{found[0][-50:]}", shown)
