"""From generated ids back to text, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from prunevid.errors import PruneVidError

__all__ = ["StopMatcher", "StreamDecoder"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What is needed of a tokenizer, as the tokenizers library has it."""

    def decode_batch(self, sequences: list[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Texts of several lists of ids."""
        ...

    def id_to_token(self, token: int) -> str | None:
        """Token of an id."""
        ...

    def get_added_tokens_decoder(self) -> Mapping[int, Any]:
        """The added tokens by id; `special` of each says whether it is a control token."""
        ...


class StreamDecoder:
    """Turns ids into text as they come; what it has given out never changes.

    The texts of all push() and of the final flush() are together what decoding all ids at once gives, special
    tokens left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        self._context: list[int] = []  # given out last: how a token reads may depend on its neighbours
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that has become final with this token; often empty within a character of several tokens."""
        if token in self._special:
            return ""
        self._pending.append(token)
        text = self._new_text()
        # An unfinished character reads as a replacement character. Byte tokens (<0x0A>) next to each other
        # are decoded together, and all of them fail if one does: they are final when another kind of token
        # follows.
        if text is None or not text or text.endswith(_REPLACEMENT) or self._is_byte(token):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        text = self._new_text() or ""
        self._context, self._pending = self._pending, []
        return text

    def _new_text(self) -> str | None:
        """What the pending tokens add to the text; None while they change what comes before them."""
        if not self._pending:
            return ""
        both = [self._context, self._context + self._pending]
        # At once: a tokenizer in another process is asked for every token.
        before, together = self._tokenizer.decode_batch(both, skip_special_tokens=True)
        return together[len(before) :] if together.startswith(before) else None

    def _is_byte(self, token: int) -> bool:
        piece = self._tokenizer.id_to_token(token)
        return piece is not None and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


class StopMatcher:
    """Cuts streamed text before the first stop text, holding back what may be the start of one.

    The first is the one complete first; of two complete at the same character, the one that starts first. So
    the result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        if not all(self._stops):
            raise PruneVidError("a stop text must not be empty")
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Adds text; returns what can be shown now, and whether a stop text has been met (then nothing follows)."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)[1]], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is a proper start of the stop text."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
