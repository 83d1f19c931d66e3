"""Errors that a user can do something about."""

__all__ = ["InvalidValueError", "PruneVidError"]


class PruneVidError(Exception):
    """An error meant for the user: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with status 2. Whatever a file, a library or a
    user put into it, it is one line, and does nothing to a terminal: other characters are escaped.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class InvalidValueError(PruneVidError, ValueError):
    """A setting or an input array that the method cannot work with."""
