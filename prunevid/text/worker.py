"""The worker: one tokenizer and one chat template, asked over standard input and output, a line of JSON each way.

Both come from strangers and can ask for any time and memory: they get what `LIMITS` says, and a worker that takes
more is ended by the system. Where the system can do neither (Windows), whoever asks ends it instead.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import jinja2

from prunevid.errors import PruneVidError
from prunevid.text.limits import LIMITS
from prunevid.text.templates import compile_template
from prunevid.text.tokenizer import load_tokenizer, refusal

_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Worker:
    """What can be asked: every method is a request, its arguments and its result are JSON."""

    def load(self, tokenizer: str, template: str) -> list[Any]:
        """Read both; the added tokens as [id, content, special]."""
        path = Path(tokenizer)
        self._tokenizer = load_tokenizer(path)
        try:
            self._template = compile_template(template)
        except (jinja2.TemplateError, *_TEMPLATE_ERRORS) as error:
            raise PruneVidError(f"the chat template of this model is not valid: {error}") from error
        added = self._tokenizer.get_added_tokens_decoder()
        return [[token, entry.content, entry.special] for token, entry in added.items()]

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt as text."""
        try:
            text: str = self._template.render(variables)
        # A template is a program: beside Jinja's errors it raises those of the values it handles.
        except (jinja2.TemplateError, *_TEMPLATE_ERRORS) as error:
            raise PruneVidError(f"the chat template of this model cannot be rendered: {error}") from error
        if len(text) > LIMITS.characters:
            raise PruneVidError(f"the chat template of this model writes more than {LIMITS.characters} characters")
        return text

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except BaseException as error:
            raise refusal(error, "the tokenizer of this model cannot read this text") from error

    def encode_prompt(self, variables: dict[str, Any], add_special_tokens: bool) -> list[int]:
        """Ids of the prompt; special tokens are not added where the template has written bos_token itself."""
        text, bos = self.render(variables), variables.get("bos_token")
        return self.encode(text, add_special_tokens and not (bos and text.startswith(bos)))

    def decode_batch(self, sequences: list[list[int]], skip_special_tokens: bool) -> list[str]:
        """Texts of several lists of ids, one by one: the library's own batch starts threads, which take memory."""
        return [self._decode(ids, skip_special_tokens) for ids in sequences]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        try:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            raise refusal(error, "the tokenizer of this model cannot read its answer back") from error
        if len(text) > LIMITS.characters:
            raise PruneVidError(f"the tokenizer of this model writes more than {LIMITS.characters} characters at once")
        return text

    def token_to_id(self, token: str) -> int | None:
        """Id of a token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def id_to_token(self, token: int) -> str | None:
        """Token of an id."""
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    def last_token(self) -> tuple[int, str]:
        """The largest id there is, and its token."""
        return max(((token, text) for text, token in self._tokenizer.get_vocab().items()), default=(-1, ""))


def main() -> None:
    """Answer requests until there are no more."""
    # Ctrl-C goes to all processes of a terminal: whoever asks decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer every line of `requests` with one of `replies`: {"result": ...} or {"error": SENTENCE}."""
    worker = _Worker()
    for line in requests:
        request = json.loads(line)
        what, arguments = request["do"], request["with"]
        file_size = os.path.getsize(arguments["tokenizer"]) if what == "load" else 0
        _bound(file_size)
        try:
            reply = {"result": getattr(worker, what)(**arguments)}
        except PruneVidError as error:
            reply = {"error": str(error)}
        except MemoryError:
            reply = {"error": f"the chat template or tokenizer of this model takes more than {LIMITS.memory_text}"}
        answer = json.dumps(reply).encode() + b"\n"
        _unbound()
        replies.write(answer)
        replies.flush()


def _bound(file_size: int) -> None:
    """From here on, so much processor time and so much more memory than now; then the system ends this process."""
    if sys.platform == "linux":
        import resource

        pages = int(os.pread(_own_pages(), 64, 0).split()[0])
        limit = pages * resource.getpagesize() + LIMITS.memory(file_size)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, LIMITS.seconds(file_size))


@cache
def _own_pages() -> int:
    """Linux's account of this process's memory, open: it is read at every request."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def _unbound() -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, 0)
