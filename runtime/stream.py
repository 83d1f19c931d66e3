"""Decoding an answer, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from prunevid.cost import TokenCounts, kv_bytes
from prunevid.errors import PruneVidError
from prunevid.runtime.answer import Answer, FinishReason
from prunevid.runtime.chain import Chain
from prunevid.runtime.kv_cache import KvCache
from prunevid.runtime.text.detokenizer import StopMatcher, StreamDecoder
from prunevid.runtime.text.sampling import Sampler, SamplingConfig
from prunevid.runtime.timings import Stopwatch
from prunevid.text.chat import ChatPrompt


@dataclass(frozen=True)
class Prefilled:
    """Where decoding begins.

    Attributes:
        logits: Of the first token, [vocab].
        position: That the first token will have.
        pre_cache: The KV cache of the layers up to M.
        post_cache: The KV cache of the layers behind M.
        counts: Tokens at every step.
        turn: To be held while a step runs, since others may want the same caches.
    """

    logits: np.ndarray
    position: int
    pre_cache: KvCache
    post_cache: KvCache
    counts: TokenCounts
    pruned: bool
    turn: Callable[[], AbstractContextManager[None]] = nullcontext


class AnswerStream:
    """An answer as it is decoded: iterate over its pieces of text, then read `answer`.

    One thread at a time may read it. An answer that is not read to its end holds up nobody.
    """

    def __init__(
        self,
        *,
        chain: Chain,
        prompt: ChatPrompt,
        prefill: Callable[[], Prefilled],
        is_current: Callable[[], bool],
        sampling: SamplingConfig,
        stopwatch: Stopwatch,
        skipped_frames: int,
    ) -> None:
        """`prefill` runs when the first piece is asked for; `is_current` turns false when the answer is ended."""
        self._chain, self._prompt, self._sampling = chain, prompt, sampling
        self._is_current, self._stopwatch, self._skipped_frames = is_current, stopwatch, skipped_frames
        self._answer: Answer | None = None
        # perf_counter() when the first token was known; it may be no text yet, so the first piece may come later.
        self.first_token_at: float | None = None
        # Logits [vocab] that the first token was chosen by: how two bundles are compared.
        self.first_logits: np.ndarray | None = None
        self._pieces = self._decode(prefill)

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises PruneVidError before the last piece of text was taken."""
        if self._answer is None:
            raise PruneVidError("the answer is not finished: iterate over its text first")
        return self._answer

    def __iter__(self) -> Iterator[str]:
        """Iterate over the pieces of text, decoding as they are asked for."""
        return self._pieces

    def _decode(self, prefill: Callable[[], Prefilled]) -> Iterator[str]:
        self._check_current()
        begun = prefill()
        cached = begun.pre_cache.nbytes + begun.post_cache.nbytes
        sampler, writer = Sampler(self._sampling), _TextWriter(self._prompt, self._sampling)
        ids = [sampler(begun.logits)]
        self.first_token_at, self.first_logits = perf_counter(), begun.logits
        pieces: list[str] = []
        reason: FinishReason | None = None
        while reason is None:
            text, reason = writer.push(ids)
            if text:
                pieces.append(text)
                yield text
            if reason is None:
                ids.append(sampler(self._step(begun, ids)))
        self._answer = Answer(
            text="".join(pieces),
            token_ids=tuple(ids),
            finish_reason=reason,
            timings=self._stopwatch.timings,
            token_counts=begun.counts,
            kv_bytes=cached,
            kv_bytes_unpruned=self._unpruned_bytes(begun.counts),
            skipped_frames=self._skipped_frames,
            pruned=begun.pruned,
        )

    def _step(self, begun: Prefilled, ids: list[int]) -> np.ndarray:
        """Logits [vocab] of the token behind the last of `ids`."""
        self._check_current()
        with begun.turn(), self._stopwatch.decode_step():
            position = self._chain.positions(begun.position + len(ids) - 1, 1)
            hidden, _ = self._chain.run_pre(self._chain.embed(ids[-1:]), begun.pre_cache, position)
            logits = self._chain.run_post(hidden, begun.post_cache, position)
        return logits

    def _check_current(self) -> None:
        if not self._is_current():
            raise PruneVidError("a newer question was asked of this video: read one answer to its end before the next")

    def _unpruned_bytes(self, counts: TokenCounts) -> int:
        shape = self._chain.manifest.model.decoder
        rows = counts.visual + counts.text
        return kv_bytes(shape, [rows] * shape.layers, np.dtype(self._chain.manifest.cache.dtype).itemsize)


class _TextWriter:
    """Turns token ids into text that will not change any more, and knows when an answer ends."""

    def __init__(self, prompt: ChatPrompt, sampling: SamplingConfig) -> None:
        self._eos_ids = () if sampling.ignore_eos else prompt.eos_ids
        self._decoder, self._stops = StreamDecoder(prompt.tokenizer), StopMatcher(sampling.stop)
        self._limit = sampling.max_new_tokens

    def push(self, ids: list[int]) -> tuple[str, FinishReason | None]:
        """Take the last of `ids`; the text that became final, and why the answer ends here if it does."""
        if ids[-1] in self._eos_ids:
            return self._rest(), "stop"
        text, stopped = self._stops.push(self._decoder.push(ids[-1]))
        if stopped:
            return text, "stop"
        if len(ids) >= self._limit:
            rest = self._rest()
            return text + rest, "length"
        return text, None

    def _rest(self) -> str:
        text, stopped = self._stops.push(self._decoder.flush())
        return text if stopped else text + self._stops.flush()
