"""From a question to token ids around the video: a model's chat template and tokenizer.

The exporter tries them before it writes anything, the runtime asks with them: the same code, so that what passes the
one works in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunevid.bundle import Bundle
from prunevid.bundle.sections.layout import MOST_BETWEEN
from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.text.process import TextProcess

__all__ = ["ChatPrompt", "PromptIds"]

_MAX_CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True)
class PromptIds:
    """Token ids of a prompt, without the video in it.

    Attributes:
        prefix: What stands before the video, int64 [p].
        suffix: What stands behind it, int64 [q].
        between: What stands between any two of its frames, int64 [b], where each has a placeholder of its own.
    """

    prefix: NDArray[np.int64]
    suffix: NDArray[np.int64]
    between: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class ChatPrompt:
    """A model's chat template and tokenizer: questions in, token ids out.

    Args:
        tokenizer_file: The checkpoint's tokenizer.json.
        chat_template: Its Jinja template, as transformers renders it.
        video_token: The text that stands for the video in a rendered prompt, or for one of its frames.
        eos_ids: Ids that end an answer.
        special_tokens: The tokenizer's named tokens (bos_token, eos_token, ...), which are variables of the template.
            With them, the tokenizer adds what its post-processor adds to a text (a BOS), unless the template has
            written bos_token itself, as transformers' processors do. None (bundles without them): it adds nothing.
        placeholder: What it stands for, `video` or `frame`; frames are images to the template.
        max_question_tokens: The longest question, and the longest system message, that are accepted.

    Attributes:
        tokenizer: The tokenizer, for decoding.
        eos_ids: As given, increasing.
        prefix: Token ids before the video, int64 [p], of any question without a system message.
        between: Token ids between two of its frames, int64 [b].
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
        placeholder: str = "video",
        max_question_tokens: int = 1024,
    ) -> None:
        if not Path(tokenizer_file).is_file():
            raise PruneVidError(f"{tokenizer_file}: the tokenizer is missing; download or export it again")
        self.tokenizer = TextProcess(Path(tokenizer_file), chat_template)
        self.eos_ids = tuple(sorted({int(token) for token in eos_ids}))
        self._video_token = video_token
        self._variables = dict(special_tokens or {})
        self._add_special = special_tokens is not None
        self._placeholder = placeholder
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
        self._check_frames(one)
        self.prefix, self.between, self._suffix = one.prefix, one.between, one.suffix
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
            bundle.file(spec.tokenizer),
            template,
            spec.video_token,
            spec.eos_ids,
            special_tokens=spec.special_tokens,
            placeholder=bundle.manifest.token_layout.placeholder,
        )

    def begins(self, ids: PromptIds) -> bool:
        """Whether a prompt has the same before its question as any without a system message."""
        return np.array_equal(ids.prefix, self.prefix) and np.array_equal(ids.between, self.between)

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
        return self.tokenizer.render(self._given(question, system, 1))

    @property
    def between_text(self) -> str:
        """What the template writes between two frames, as text."""
        if self._placeholder == "video":
            return ""
        return self.tokenizer.render(self._given("a", None, 2)).split(self._video_token)[1]

    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Ids of texts where the video belongs in a prompt, with something else between any two of them.

        They are tokenized with the prompt around them as one text.

        Raises:
            PruneVidError: The first or the last runs together with the prompt, or one has the video token in it.
        """
        before, after = self.tokenizer.render(self._given("a", None, 1)).split(self._video_token)
        whole, bos = before + self._video_token.join(texts) + after, self._variables.get("bos_token")
        special = self._add_special and not (bos and whole.startswith(bos))
        parts = self._split(self.tokenizer.encode(whole, add_special_tokens=special))
        start, end, suffix = len(self.prefix), len(parts[-1]) - len(self._suffix), self._suffix
        if not (
            len(parts) == len(texts)
            and end >= 0
            and np.array_equal(parts[0][:start], self.prefix)
            and np.array_equal(parts[-1][end:], suffix)
        ):
            raise PruneVidError(
                "the texts that this model has beside its frames run together with the prompt around them: its token "
                "layout and its chat template do not go together"
            )
        parts[-1] = parts[-1][:end]
        parts[0] = parts[0][start:]
        return parts

    def _given(self, question: str, system: str | None, placeholders: int) -> dict[str, Any]:
        """The template's variables."""
        shown = {"type": "image" if self._placeholder == "frame" else "video"}
        content = [*[shown] * placeholders, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        return self._variables | given

    def _encode(self, question: str, system: str | None) -> PromptIds:
        if self._placeholder == "video":
            prefix, suffix = self._parts(question, system, 1)
            return PromptIds(prefix, suffix)
        # Two frames are the fewest that something stands between.
        prefix, between, suffix = self._parts(question, system, 2)
        return PromptIds(prefix, suffix, between)

    def _parts(self, question: str, system: str | None, placeholders: int) -> list[NDArray[np.int64]]:
        """Ids of a prompt around its placeholders, one part more than there are of them."""
        given = self._given(question, system, placeholders)
        parts = self._split(self.tokenizer.encode_prompt(given, add_special_tokens=self._add_special))
        if len(parts) != placeholders + 1:
            shown = "one video; it must write it once"
            if self._placeholder == "frame":
                shown = f"{placeholders} frames; it must write it once for each"
            raise PruneVidError(f"the chat template writes {self._video_token!r} {len(parts) - 1} times for {shown}")
        return parts

    def _split(self, ids: list[int]) -> list[NDArray[np.int64]]:
        """Ids around placeholders, one part more than there are of them."""
        array = np.array(ids, np.int64)
        parts = np.split(array, np.flatnonzero(array == self._video_id))
        return [part[1:] if number else part for number, part in enumerate(parts)]

    def _check_frames(self, two: PromptIds) -> None:
        """Raise PruneVidError unless any number of frames has the same around and between them as `two` have."""
        if self._placeholder == "video":
            return
        if len(two.between) > MOST_BETWEEN:
            raise PruneVidError(
                f"the chat template writes {len(two.between)} tokens between two frames; {MOST_BETWEEN} are the most"
            )
        for frames in (1, 3, 4):
            parts = self._parts("a", None, frames)
            if not all(map(np.array_equal, parts, [two.prefix, *[two.between] * (frames - 1), two.suffix])):
                raise PruneVidError(
                    f"the chat template writes something else around or between frames where there are {frames} "
                    "instead of 2: it must write the same for any number"
                )

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
