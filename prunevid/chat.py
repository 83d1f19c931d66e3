"""From a question to token ids around the video: a model's chat template and tokenizer.

The exporter tries them before it writes anything, the runtime asks with them: the same code, so that what passes the
one works in the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prunevid.bundle import Bundle
from prunevid.errors import PruneVidError

__all__ = ["ChatPrompt", "PromptIds", "load_tokenizer", "tokenizer_refusal"]

_MAX_CHARACTERS_PER_TOKEN = 256
_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


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
        special_tokens: The tokenizer's named tokens (bos_token, eos_token, ...), which are variables of the template.
            With them, the tokenizer adds what its post-processor adds to a text (a BOS), unless the template has
            written bos_token itself, as transformers' processors do. None (bundles without them): it adds nothing.
        max_question_tokens: The longest question, and the longest system message, that are accepted.

    Attributes:
        tokenizer: The tokenizer, for decoding.
        eos_ids: As given, increasing.
        least_tokens: Tokens around a video with the shortest of questions.

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
        self.tokenizer = load_tokenizer(Path(tokenizer_file))
        self.eos_ids = tuple(sorted({int(token) for token in eos_ids}))
        self._template = _compile(chat_template)
        self._video_token = video_token
        self._variables = dict(special_tokens or {})
        self._add_special = special_tokens is not None
        self._max_question_tokens = max_question_tokens
        video_id = self.tokenizer.token_to_id(video_token)
        if video_id is None or self._ids(video_token) != [video_id]:
            raise PruneVidError(f"{tokenizer_file}: the tokenizer has no special token {video_token!r}")
        self._video_id: int = video_id
        for token in self.eos_ids:
            if self.tokenizer.id_to_token(token) is None:
                raise PruneVidError(f"{tokenizer_file}: the tokenizer has no token {token} to end answers")
        self._special = self._special_tokens()
        one, other = self._encode("a", None), self._encode("b c", None)
        if not np.array_equal(one.prefix, other.prefix):
            raise PruneVidError("the chat template puts the question before the video; it must come after it")
        if np.array_equal(one.suffix, other.suffix):
            raise PruneVidError("the chat template leaves the question out; it must write the message's text")
        self.least_tokens = len(one.prefix) + len(one.suffix)

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ChatPrompt:
        """The chat template and tokenizer of a bundle. Raises PruneVidError where they cannot be used."""
        spec = bundle.manifest.prompt
        path = bundle.file(spec.chat_template)
        try:
            template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PruneVidError(f"{path}: the chat template is damaged ({error}); export the bundle again") from error
        return cls(
            bundle.file(spec.tokenizer), template, spec.video_token, spec.eos_ids, special_tokens=spec.special_tokens
        )

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
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render(self._variables | given)
        # A template is a program: beside Jinja's errors it raises those of the values it handles.
        except (jinja2.TemplateError, *_TEMPLATE_ERRORS) as error:
            raise PruneVidError(f"the chat template of this model cannot be rendered: {error}") from error

    def _encode(self, question: str, system: str | None) -> PromptIds:
        text = self.render(question, system)
        bos = self._variables.get("bos_token")
        ids = self._ids(text, add_special=self._add_special and not (bos and text.startswith(bos)))
        if ids.count(self._video_id) != 1:
            raise PruneVidError(
                f"the chat template writes {self._video_token!r} {ids.count(self._video_id)} times for one "
                "video; it must write it once"
            )
        split = ids.index(self._video_id)
        return PromptIds(np.array(ids[:split], np.int64), np.array(ids[split + 1 :], np.int64))

    def _ids(self, text: str, add_special: bool = False) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=add_special).ids)
        except BaseException as error:
            raise tokenizer_refusal(error, "the tokenizer of this model cannot read this text") from error

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


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json as it is, but that it neither pads nor cuts. Raises PruneVidError where it cannot be used."""
    if not path.is_file():
        raise PruneVidError(f"{path}: the tokenizer is missing; download or export it again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        raise tokenizer_refusal(error, f"{path}: the tokenizer is damaged", "; download or export it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenizer_refusal(error: BaseException, what: str, remedy: str = "") -> BaseException:
    """What to raise for an error out of the tokenizers library, whose panics are no Exception."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        said = " ".join(str(error).split())
        return PruneVidError(f"{what} ({said[:200]}){remedy}")
    return error


# Templates


class _Undefined(jinja2.Undefined):
    """A variable that nobody defines cannot be written out.

    Jinja renders it as nothing, so that a template's `{{ bos_token }}` would lose its token without a word. Asking
    whether it is defined or true is no mistake, and neither is writing a key that a message does not have: there,
    transformers renders nothing, too.
    """

    def _nothing(self) -> None:
        # Undefined names have no object that they are looked up in.
        if self._undefined_obj is jinja2.utils.missing:
            self._fail_with_undefined_error()

    def __str__(self) -> str:
        self._nothing()
        return super().__str__()

    def __iter__(self) -> Iterator[Any]:
        self._nothing()
        return super().__iter__()

    def __len__(self) -> int:
        self._nothing()
        return super().__len__()


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
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Undefined,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
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
