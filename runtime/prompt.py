"""From a question to token ids around the video, and from generated ids back to text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prunevid.errors import PruneVidError

__all__ = ["ChatPrompt", "PromptIds", "StopMatcher", "StreamDecoder"]

_MAX_CHARACTERS_PER_TOKEN = 256
_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class PromptIds:
    """Token ids before and after the video, which itself is in neither: int64 [p] and int64 [q]."""

    prefix: NDArray[np.int64]
    suffix: NDArray[np.int64]


class ChatPrompt:
    """A model's chat template and tokenizer: questions in, token ids out.

    Args:
        tokenizer_file: The checkpoint's tokenizer.json.
        chat_template: Its Jinja template, as transformers renders it.
        video_token: The text that stands for the video in a rendered prompt.
        eos_ids: Ids that end an answer.
        special_tokens: Values of template variables such as bos_token and eos_token, where a template uses
            them.
        max_question_tokens: The longest question, and the longest system message, that are accepted.

    Attributes:
        tokenizer: The tokenizer, for decoding.
        eos_ids: As given, increasing.

    Raises:
        PruneVidError: The tokenizer or the template cannot be used.
    """

    def __init__(
        self,
        tokenizer_file: str | Path,
        chat_template: str,
        video_token: str = "<video>",
        eos_ids: Iterable[int] = (),
        *,
        special_tokens: Mapping[str, str] | None = None,
        max_question_tokens: int = 1024,
    ) -> None:
        self.tokenizer = _load_tokenizer(Path(tokenizer_file))
        self.eos_ids = tuple(sorted({int(token) for token in eos_ids}))
        self._template = _compile(chat_template)
        self._video_token = video_token
        self._variables = dict(special_tokens or {})
        self._max_question_tokens = max_question_tokens
        video_id = self.tokenizer.token_to_id(video_token)
        if video_id is None or self._ids(video_token) != [video_id]:
            raise PruneVidError(f"{tokenizer_file}: the tokenizer has no special token {video_token!r}")
        self._video_id: int = video_id
        for token in self.eos_ids:
            if self.tokenizer.id_to_token(token) is None:
                raise PruneVidError(f"{tokenizer_file}: the tokenizer has no token {token} to end answers")
        self._special = self._special_tokens()
        if not np.array_equal(self._encode("a", None).prefix, self._encode("b c", None).prefix):
            raise PruneVidError("the chat template puts the question before the video; it must come after it")

    def encode(self, question: str, system: str | None = None) -> PromptIds:
        """Token ids of one question about one video.

        Args:
            question: The user's text.
            system: An optional system message; the prefix depends on it, and on nothing else.

        Raises:
            PruneVidError: The question is empty, too long, no valid text, or contains a special token.
        """
        self._check("question", question)
        if system is not None:
            self._check("system message", system)
        return self._encode(question, system)

    def render(self, question: str, system: str | None = None) -> str:
        """The prompt as text, with the video token in it; nothing is checked.

        Raises:
            PruneVidError: The template fails.
        """
        content = [{"type": "video"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._variables
            )
        # A template is a program: beside Jinja's errors it raises those of the values it handles.
        except (jinja2.TemplateError, *_TEMPLATE_ERRORS) as error:
            raise PruneVidError(f"the chat template of this model cannot be rendered: {error}") from error

    def _encode(self, question: str, system: str | None) -> PromptIds:
        ids = self._ids(self.render(question, system))
        if ids.count(self._video_id) != 1:
            raise PruneVidError(
                f"the chat template writes {self._video_token!r} {ids.count(self._video_id)} times for one "
                "video; it must write it once"
            )
        split = ids.index(self._video_id)
        return PromptIds(np.array(ids[:split], np.int64), np.array(ids[split + 1 :], np.int64))

    def _ids(self, text: str) -> list[int]:
        # The template has written all special tokens there are to be.
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _special_tokens(self) -> dict[int, str]:
        special = {self._video_id: self._video_token}
        for token, added in self.tokenizer.get_added_tokens_decoder().items():
            if added.special or token in self.eos_ids:
                special[token] = added.content
        return special

    def _check(self, what: str, text: str) -> None:
        if not isinstance(text, str):
            raise PruneVidError(f"the {what} must be text, not a {type(text).__name__}")
        if not text.strip():
            raise PruneVidError(f"the {what} is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PruneVidError(
                f"the {what} is not valid Unicode: half of a surrogate pair at character {error.start}"
            ) from error
        limit = self._max_question_tokens
        if len(text) > limit * _MAX_CHARACTERS_PER_TOKEN:  # not worth tokenizing
            raise PruneVidError(f"the {what} is too long: {len(text)} characters; the limit is {limit} tokens")
        for special in self._special.values():
            if special in text:
                raise PruneVidError(
                    f"the {what} contains {special!r}, a control token of this model; write it another way"
                )
        ids = self._ids(text)
        if len(ids) > limit:
            raise PruneVidError(f"the {what} is too long: {len(ids)} tokens; the limit is {limit}")
        # The tokenizer may recognise control tokens in other spellings too.
        for token in ids:
            if token in self._special:
                raise PruneVidError(
                    f"the {what} reads as the control token {self._special[token]!r} of this model; "
                    "write it another way"
                )


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise PruneVidError(f"{path}: the tokenizer is missing; export the bundle again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise PruneVidError(f"{path}: the tokenizer is damaged ({error}); export the bundle again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


# Templates


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training; here its body is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _compile(template: str) -> jinja2.Template:
    """Compiles a chat template in the environment that transformers gives it; templates are untrusted
    code."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise PruneVidError(f"the chat template of this model is not valid: {error}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


# Text


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
        """The text that has become final with this token; often empty within a character of several
        tokens."""
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
        before = self._decode(self._context)
        together = self._decode(self._context + self._pending)
        return together[len(before) :] if together.startswith(before) else None

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

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
        """Adds text; returns what can be shown now, and whether a stop text has been met (then nothing
        follows)."""
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
