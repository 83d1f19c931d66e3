"""One video, any number of questions: what does not depend on the question is computed once.

Opening a video runs vision, merge and llm_pre over everything before the question. A question then costs llm_pre over
its own few rows, select, and llm_post over the kept rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import RLock, local

import numpy as np

from prunevid.config import PruneConfig
from prunevid.cost import TokenCounts
from prunevid.errors import PruneVidError
from prunevid.runtime.answer import Answer, Timings
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.chain import Chain, Selection, VideoTokens, positions
from prunevid.runtime.kv_cache import KvCache
from prunevid.runtime.stream import AnswerStream, Prefilled
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.text.chat import ChatPrompt

# Rows kept free behind a video for a question; a longer one moves the cache once.
_QUESTION_ROOM = 256


class _Reading:
    """A thread's last question: its answer can be read until the thread asks the next one."""

    is_current = True


class _Rows:
    """A question's rows behind the video, which all questions write to the same place.

    aside: copies of them, by cache, while another question's rows are there. is_read_on: an answer goes on with them.
    """

    def __init__(self) -> None:
        self.is_read_on = False
        self.aside: list[Array] = []


class VideoSession:
    """A video that questions can be asked about. Made by :meth:`prunevid.runtime.Pipeline.open`.

    Several threads may ask at once: each gets the answer that it would get alone. A thread reads one answer at a time:
    its next question ends the answer that it has not read to the end, and leaves those of other threads alone.

    video: the visual tokens; prune: the pruning settings, None to prune nothing; prefix_rows: rows before the question
    (text, visual tokens, image_newline).
    """

    def __init__(
        self,
        chain: Chain,
        prompt: ChatPrompt,
        video: VideoTokens,
        prune: PruneConfig | None,
        *,
        opening: Timings | None = None,
        skipped_frames: int = 0,
    ) -> None:
        """``opening`` holds the timings of the stages already run for this video; the first answer reports them."""
        self.video = video
        self.prune = prune
        self.skipped_frames = skipped_frames
        self._chain, self._prompt = chain, prompt
        self._opening = opening or Timings(chain.now)
        # Held while the rows behind the video are written or read; never while a caller has control.
        self._lock = RLock()
        self._thread = local()
        # Whose rows stand behind the video; None when nobody wants them any more.
        self._holder: Callable[[], _Rows | None] = lambda: None
        # What stands before the video does not depend on the question.
        prefix = prompt.prefix
        self._text_before = len(prefix)
        rows = len(prefix) + len(video.tokens) + 1
        self.prefix_rows = rows
        self._check_length(rows, "the video takes")
        self._pre_cache = chain.new_cache(chain.pre_layers, rows + _QUESTION_ROOM)
        with self._opening.stage("prefix"):
            # The question's rows will stand behind the prefix's.
            self._hidden = chain.new_hidden(rows + _QUESTION_ROOM)
            chain.run_pre(chain.embed_prefix(prefix, video), self._pre_cache, 0, hidden=self._hidden.array[:, :rows])
        # Only used when nothing is pruned: then the later layers' KV of the video serves every question, too.
        self._post_cache: KvCache | None = None

    def ask(self, question: str, sampling: SamplingConfig | None = None) -> Answer:
        """Answer a question. Raises PruneVidError where it is empty, too long, or holds special tokens."""
        stream = self.stream(question, sampling)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, question: str, sampling: SamplingConfig | None = None) -> AnswerStream:
        """Like :meth:`ask`, but piece by piece: iterate over the text, then read ``.answer``.

        The same thread's next question ends an answer that is still being read.
        """
        sampling = sampling or SamplingConfig()
        ids, timings, reading = self._begin(question, sampling)
        return self._stream(lambda: self._prefill(ids, sampling.max_new_tokens, timings), sampling, timings, reading)

    def stream_each(
        self, question: str, keep_ratios: Sequence[float], sampling: SamplingConfig | None = None
    ) -> Iterator[AnswerStream]:
        """The answers to one question at several keep_ratios, from one run of llm_pre over it.

        Each is what :meth:`stream` gives in a session of that keep_ratio; the session's own does not matter. Raises
        PruneVidError as :meth:`stream` does, and where nothing is pruned.
        """
        if self.prune is None:
            raise PruneVidError("this session prunes nothing: there is no keep_ratio to vary")
        sampling, room = sampling or SamplingConfig(), (sampling or SamplingConfig()).max_new_tokens
        ids, timings, reading = self._begin(question, sampling)
        embeds, rows = self._chain.embed(ids), _Rows()
        with self._lock:
            scored = self._score(embeds, timings, rows)
        for keep_ratio in keep_ratios:
            prune, taken = replace(self.prune, keep_ratio=keep_ratio), timings
            timings = Timings(self._chain.now)

            def prefill(prune: PruneConfig = prune, taken: Timings = taken) -> Prefilled:
                nonlocal scored
                with self._lock:
                    if self._holder() is not rows:
                        # Another thread has asked in the meantime.
                        scored = self._score(embeds, taken, rows)
                    selection = self._select(*scored, prune, room, taken)
                return self._prefill_kept(selection, len(ids), room, taken)

            yield self._stream(prefill, sampling, taken, reading)

    def choose_scores(self, scores: Array) -> Array:
        """The scores by which visual tokens are kept, float32 of every row: the question's attention at layer M."""
        return scores

    def attend(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """How strongly a question attends to every visual token, and which tokens it keeps, without an answer.

        Returns scores float32 [V], each the largest attention probability at layer M over heads and question rows,
        and kept int64 [R], ascending; all of them where nothing is pruned. Ends an answer that this thread is still
        reading. Raises PruneVidError as :meth:`ask` does.
        """
        ids = self._prompt.encode(question).suffix
        self._check_length(self.prefix_rows + len(ids), "video and question take")
        self._end_reading()
        settings, timings = self.prune or PruneConfig.disabled(), Timings(self._chain.now)
        with self._lock:
            hidden, scores = self._score(self._chain.embed(ids), timings, _Rows())
            selection = self._select(hidden, scores, settings, 0, timings)
        of_video = self._chain.memory.download(scores)[self._text_before :][: len(self.video.tokens)]
        return of_video, self._chain.memory.download(selection.kept)

    def _begin(self, question: str, sampling: SamplingConfig) -> tuple[np.ndarray, Timings, _Reading]:
        """Ids of a question that is asked now, the timings that its first answer goes on with, and its reading."""
        ids = self._prompt.encode(question).suffix
        self._check_length(self.prefix_rows + len(ids) + sampling.max_new_tokens, "video, question and answer take")
        reading = self._end_reading()
        with self._lock:
            timings, self._opening = self._opening, Timings(self._chain.now)
        return ids, timings, reading

    def _end_reading(self) -> _Reading:
        """End the answer that this thread is reading; returns its next one's."""
        previous: _Reading | None = getattr(self._thread, "reading", None)
        if previous is not None:
            previous.is_current = False
        reading: _Reading = _Reading()
        self._thread.reading = reading
        return reading

    def _stream(
        self, prefill: Callable[[], Prefilled], sampling: SamplingConfig, timings: Timings, reading: _Reading
    ) -> AnswerStream:
        return AnswerStream(
            chain=self._chain,
            prompt=self._prompt,
            prefill=prefill,
            is_current=lambda: reading.is_current,
            sampling=sampling,
            timings=timings,
            skipped_frames=self.skipped_frames,
        )

    def _prefill(self, ids: np.ndarray, room: int, timings: Timings) -> Prefilled:
        """Run a question's rows and everything behind them, leaving ``room`` rows for the answer."""
        embeds = self._chain.embed(ids)
        if self.prune is None:
            with self._lock:
                return self._prefill_unpruned(embeds, room, timings)
        with self._lock:
            hidden, scores = self._score(embeds, timings, _Rows())
            selection = self._select(hidden, scores, self.prune, room, timings)
        return self._prefill_kept(selection, len(ids), room, timings)

    def _prefill_kept(self, selection: Selection, question_rows: int, room: int, timings: Timings) -> Prefilled:
        """The layers behind M over what select kept."""
        post_cache = self._chain.new_cache(self._chain.post_layers, selection.hidden.shape[1] + room)
        with timings.stage("llm_post"):
            logits = self._chain.run_post(selection.hidden, post_cache, selection.position_ids)
        counts = self._token_counts(len(selection.kept), question_rows)
        position = self.prefix_rows + question_rows
        return Prefilled(logits, position, selection.cache, post_cache, counts, pruned=True)

    def _score(self, embeds: np.ndarray, timings: Timings, question: _Rows) -> tuple[Array, Array]:
        """Layers 0 to M over a question's rows [S, C].

        Returns:
            Hidden states [1, rows, C] and, to choose by, scores [rows] of the prefix and the question.
        """
        with timings.stage("question"):
            hidden, scores = self._run_rows(embeds, len(embeds), question, scored=True)
            assert scores is not None  # they were asked for
            return hidden, self.choose_scores(scores)

    def _select(self, hidden: Array, scores: Array, prune: PruneConfig, room: int, timings: Timings) -> Selection:
        """What is kept by ``scores``, in a cache of its own: the rows that it is chosen from stay as they are."""
        with timings.stage("select"):
            return self._chain.run_select(scores, self.video, self._text_before, hidden, self._pre_cache, prune, room)

    def _prefill_unpruned(self, embeds: np.ndarray, room: int, timings: Timings) -> Prefilled:
        start, total = self.prefix_rows, self.prefix_rows + len(embeds)
        question = _Rows()
        with timings.stage("question"):
            hidden, _ = self._run_rows(embeds, len(embeds) + room, question)
        # Fewer rows than the video's are there where an earlier run failed on the way.
        first = 0 if self._post_cache is None or self._post_cache.length < start else start
        if self._post_cache is None:
            self._post_cache = self._chain.new_cache(self._chain.post_layers, total + room)
        self._post_cache.rewind(first)
        self._post_cache.reserve(total + room)
        with timings.stage("llm_post"):
            logits = self._chain.run_post(hidden[:, first:], self._post_cache, positions(first, total - first))
        counts = self._token_counts(len(self.video.tokens), len(embeds))
        question.is_read_on = True
        caches, turn = (self._pre_cache, self._post_cache), partial(self._turn, question)
        return Prefilled(logits, total, *caches, counts, pruned=False, turn=turn)

    @contextmanager
    def _turn(self, question: _Rows) -> Iterator[None]:
        """Hold the rows behind the video for a step of an unpruned answer, which goes on with its own."""
        with self._lock:
            if self._holder() is not question:
                self._claim(question)
                assert self._post_cache is not None  # the answer's prefill made it
                for cache, rows in zip((self._pre_cache, self._post_cache), question.aside, strict=True):
                    cache.put_rows(self.prefix_rows, rows)
                question.aside = []
            yield

    def _claim(self, question: _Rows) -> None:
        """Let the place behind the video be this question's; rows that an answer goes on with are put aside."""
        holder = self._holder()
        if holder is not None and holder.is_read_on:
            assert self._post_cache is not None  # as above
            holder.aside = [cache.copy_rows(self.prefix_rows) for cache in (self._pre_cache, self._post_cache)]
        # An answer that nobody can read any more lets go of its rows by vanishing.
        self._holder = weakref.ref(question)

    def _run_rows(
        self, embeds: np.ndarray, room: int, question: _Rows, *, scored: bool = False
    ) -> tuple[Array, Array | None]:
        """Layers 0 to M over a question's rows [S, C] in a cache with ``room`` rows behind the prefix.

        Returns hidden [1, rows, C] of the prefix and the question, and the question's scores if asked for.
        """
        start, total = self.prefix_rows, self.prefix_rows + len(embeds)
        self._claim(question)
        self._pre_cache.rewind(start)
        self._pre_cache.reserve(start + room)
        self._hidden.reserve(total, start)
        hidden = self._hidden.array[:, :total]
        _, scores = self._chain.run_pre(embeds, self._pre_cache, start, hidden=hidden[:, start:], scored=scored)
        return hidden, scores

    def _token_counts(self, kept: int, question_rows: int) -> TokenCounts:
        """Tokens before and after each stage; image_newline counts as text behind the video."""
        return TokenCounts(
            visual=self.video.patch_to_token.size,
            merged=len(self.video.tokens),
            kept=kept,
            text_before=self._text_before,
            text_after=question_rows + 1,
        )

    def _check_length(self, rows: int, what: str) -> None:
        limit = self._chain.manifest.prompt.max_positions
        if rows > limit:
            raise PruneVidError(f"{what} {rows} positions, the model has {limit}: use fewer frames or words")
