"""Errors that a user can do something about."""

__all__ = ["InvalidValueError", "PruneVidError"]


class PruneVidError(Exception):
    """An error meant for the user: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class InvalidValueError(PruneVidError, ValueError):
    """A setting or an input array that the method cannot work with."""
