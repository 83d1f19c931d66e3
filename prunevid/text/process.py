"""A tokenizer and a chat template in a worker process, which ends when they take more than they may."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.text.limits import LIMITS

__all__ = ["AddedToken", "TextProcess"]

# By the clock, a loaded machine may take long for little. Where there is no limit on processor time, this is the limit.
_PATIENCE = 5 if sys.platform == "win32" else 60
_START_SECONDS = 60.0
_PROGRAM = "import sys; sys.path[:] = {path!r}; from prunevid.text.worker import main; main()"


class AddedToken(NamedTuple):
    """A token that a tokenizer has beside its vocabulary, and whether it is a control token."""

    content: str
    special: bool


class TextProcess:
    """A tokenizer and a chat template that are asked in a worker process; any thread may ask.

    The worker starts with the object, and again after one that ended. Methods have the names that they have in the
    tokenizers library. All raise PruneVidError where the tokenizer or the template fails, takes too long, or takes too
    much memory (`prunevid.text.limits`).
    """

    def __init__(self, tokenizer: Path, template: str) -> None:
        """`tokenizer`: a tokenizer.json; `template`: a Jinja template. Their faults are told when they are used."""
        self._files = {"tokenizer": os.path.abspath(tokenizer), "template": template}
        self._size = tokenizer.stat().st_size if tokenizer.is_file() else 0
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._added: dict[int, AddedToken] | None = None
        self._tokens: dict[int, str | None] = {}
        self.start()

    def start(self) -> None:
        """Start the worker and let it read its files, without waiting for it."""
        with self._lock:
            self._start()

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        if self._added is None:
            with self._lock:
                self._ready()
        assert self._added is not None
        return self._added

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt that the template makes of its variables."""
        return cast(str, self._ask("render", variables=variables))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text."""
        return cast("list[int]", self._ask("encode", text=text, add_special_tokens=add_special_tokens))

    def encode_prompt(self, variables: dict[str, Any], *, add_special_tokens: bool = False) -> list[int]:
        """Ids of the prompt that the template makes of its variables.

        Special tokens are not added where the template has written the variable bos_token itself, as in transformers'
        processors.
        """
        return cast("list[int]", self._ask("encode_prompt", variables=variables, add_special_tokens=add_special_tokens))

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return self.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    def decode_batch(self, sequences: list[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Texts of several lists of ids, asked for at once."""
        plain = [list(map(int, ids)) for ids in sequences]
        return cast("list[str]", self._ask("decode_batch", sequences=plain, skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        """Id of a token; None where there is none."""
        return cast("int | None", self._ask("token_to_id", token=token))

    def id_to_token(self, token: int) -> str | None:
        """Token of an id; None where there is none."""
        if token not in self._tokens:
            self._tokens[token] = cast("str | None", self._ask("id_to_token", token=int(token)))
        return self._tokens[token]

    def last_token(self) -> tuple[int, str]:
        """The largest id that the tokenizer has, and its token."""
        token, text = self._ask("last_token")
        return int(token), str(text)

    def _ask(self, what: str, **arguments: Any) -> Any:
        with self._lock:
            worker = self._ready()
            with self._kept_in_step(worker):
                worker.send(what, arguments)
                return worker.receive(0)

    def _start(self) -> _Worker:
        self._worker = worker = _Worker()
        with self._kept_in_step(worker):
            worker.send("load", self._files)
        return worker

    def _ready(self) -> _Worker:
        """The worker, with its files read."""
        worker = self._worker
        if worker is None or not worker.is_ours:
            worker = self._start()
        if not worker.loaded:
            with reading(self._files["tokenizer"]), open(self._files["tokenizer"], "rb"):
                pass  # what cannot be read is told here, where it can be told best
            with self._kept_in_step(worker):
                added = worker.receive(self._size)
                self._added = {token: AddedToken(content, special) for token, content, special in added}
                worker.loaded = True
        return worker

    @contextlib.contextmanager
    def _kept_in_step(self, worker: _Worker) -> Iterator[None]:
        """End the worker where a request is cut short: the next answer might be that of this request."""
        try:
            yield
        except BaseException as error:
            if worker.failed or not isinstance(error, PruneVidError):
                worker.stop()
                self._worker = None
            raise


class _Worker:
    """A running worker, and the pipes to it."""

    def __init__(self) -> None:
        if not sys.executable:
            raise PruneVidError("cannot start a process for the chat template and tokenizer: sys.executable is empty")
        root = str(Path(__file__).resolve().parents[2])
        program = _PROGRAM.format(path=[*filter(None, sys.path), root])
        try:
            # Isolated and without site: what it imports is what this process imports.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except (OSError, ValueError) as error:
            raise PruneVidError(f"cannot start a process for the chat template and tokenizer: {error}") from error
        self.loaded = self.failed = False
        self._owner = os.getpid()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        self.stop = weakref.finalize(self, _stop, self._process, self._owner)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that started the worker, and no fork of it, which shares its pipes."""
        return os.getpid() == self._owner

    def send(self, what: str, arguments: dict[str, Any]) -> None:
        """Ask for something; the answer is `receive`'s."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: receive() tells of it
            self._process.stdin.write(json.dumps({"do": what, "with": arguments}).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, file_size: int) -> Any:
        """The answer to what was asked. Raises PruneVidError; `failed` says whether the worker is of no more use."""
        seconds = (0 if self.loaded else _START_SECONDS) + _PATIENCE * LIMITS.seconds(file_size)
        self.failed = True
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise PruneVidError(self._excess(f"takes longer than {seconds:.0f} s")) from None
        if not line.endswith(b"\n"):
            raise PruneVidError(self._end(file_size))
        reply = json.loads(line)
        self.failed = False
        if "error" in reply:
            # One that could not read its files cannot be asked anything.
            self.failed = not self.loaded
            raise PruneVidError(reply["error"])
        return reply["result"]

    def _end(self, file_size: int) -> str:
        """Why the worker ended."""
        status = self._process.wait()
        if sys.platform != "win32" and status == -signal.SIGPROF:
            return self._excess(f"takes more than {LIMITS.seconds(file_size):.0f} s of computing")
        if status == 1 and not self.loaded:
            return "the process for chat template and tokenizer does not start: are jinja2 and tokenizers installed?"
        return self._excess(f"takes more than {LIMITS.memory_text}, or makes its library fail")

    @staticmethod
    def _excess(what: str) -> str:
        return f"the chat template or tokenizer of this model {what}: do not use it"


def _read(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on lines until there are none; what is too long for an answer is none either."""
    with contextlib.suppress(OSError, ValueError):
        while (line := pipe.readline(LIMITS.reply)).endswith(b"\n"):
            lines.put(line)
    lines.put(b"")


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
