"""From a question to token ids around the video: a model's chat template and tokenizer.

The exporter tries them before it writes anything, the runtime asks with them: the same code, so that what passes the
one works in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunevid.bundle import Bundle
from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.text.process import TextProcess

__all__ = ["ChatPrompt", "PromptIds"]

_MAX_CHARACTERS_PER_TOKEN = 256


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
        prefix: Token ids before the video, int64 [p], of any question without a system message.
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
        if not Path(tokenizer_file).is_file():
            raise PruneVidError(f"{tokenizer_file}: the tokenizer is missing; download or export it again")
        self.tokenizer = TextProcess(Path(tokenizer_file), chat_template)
        self.eos_ids = tuple(sorted({int(token) for token in eos_ids}))
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
        self.prefix = one.prefix
        self.least_tokens = len(one.prefix) + len(one.suffix)

    @classmethod
    def of(cls, bundle: Bundle) -> ChatPrompt:
        """The chat template and tokenizer of a bundle. Raises PruneVidError where they cannot be used."""
        spec = bundle.manifest.prompt
        path = bundle.file(spec.chat_template)
        try:
            with reading(path):
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
        return self.tokenizer.render(self._given(question, system))

    def _given(self, question: str, system: str | None) -> dict[str, Any]:
        """The template's variables."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        return self._variables | given

    def _encode(self, question: str, system: str | None) -> PromptIds:
        given = self._given(question, system)
        ids = self.tokenizer.encode_prompt(given, add_special_tokens=self._add_special)
        if ids.count(self._video_id) != 1:
            raise PruneVidError(
                f"the chat template writes {self._video_token!r} {ids.count(self._video_id)} times for one "
                "video; it must write it once"
            )
        split = ids.index(self._video_id)
        return PromptIds(np.array(ids[:split], np.int64), np.array(ids[split + 1 :], np.int64))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

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
                unknown = [word for word in text.split() if token in self._ids(word)]
                where = f" at {unknown[0]!r}" if unknown else ""
                if where and "unk" in self._special[token].lower():
                    where += ", a word that it does not know"
                raise PruneVidError(
                    f"the {what} reads as the control token {self._special[token]!r} of this model{where}; "
                    "write it another way"
                )
