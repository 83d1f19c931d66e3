"""One video, any number of questions: what does not depend on the question is computed once.

Opening a video runs vision, merge and llm_pre over everything before the question. A question then costs llm_pre over
its own few rows, select, and llm_post over the kept rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock, local

import numpy as np

from prunevid.config import PruneConfig
from prunevid.cost import TokenCounts
from prunevid.errors import PruneVidError
from prunevid.runtime.answer import Answer
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.chain import Chain, Selection
from prunevid.runtime.kv_cache import KvCache
from prunevid.runtime.sequence import Prefix
from prunevid.runtime.stream import AnswerStream, Prefilled
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.runtime.timings import Stopwatch, Timings
from prunevid.text.chat import ChatPrompt, PromptIds

Question = str | PromptIds
"""A question's text, or what `ChatPrompt.encode` made of it without a system message."""

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


@dataclass(frozen=True, eq=False)
class ScoredQuestion:
    """A question that layers 0 to M have seen. Made by `VideoSession.score`.

    Attributes:
        session: The session that it was asked in.
        ids: The question's token ids, int64 [q].
        scores: How strongly the question attends to each row at layer M: float32 [prefix_rows + q], of the video's
            tokens and of text. Where the graphs run.
        timings: What it took.
    """

    session: VideoSession
    ids: np.ndarray
    scores: Array
    timings: Timings
    _rows: _Rows
    _reading: _Reading

    def stream(
        self,
        sampling: SamplingConfig | None = None,
        *,
        keep_ratio: float | None = None,
        scores: Array | None = None,
    ) -> AnswerStream:
        """The answer that `VideoSession.stream` gives, from here on: select, the layers behind M, decoding.

        It may be asked for several times. Its timings begin with those of the question.

        Args:
            sampling: How tokens are chosen.
            keep_ratio: The share of tokens to keep, by default the session's.
            scores: Other scores to choose by, float32 [prefix_rows + q].

        Raises:
            PruneVidError: The session prunes nothing, the scores are not one a row, or the answer would be too long.
        """
        return self.session._stream_scored(self, sampling or SamplingConfig(), keep_ratio, scores)


class VideoSession:
    """A video that questions can be asked about. Made by `prunevid.runtime.Pipeline.open` and `session`.

    Several threads may ask at once: each gets the answer that it would get alone. A thread reads one answer at a time:
    its next question ends the answer that it has not read to the end, and leaves those of other threads alone.

    video: the visual tokens; prune: the pruning settings, None to prune nothing; prefix_rows: rows before the question
    (text, visual tokens, and what the token layout puts among and behind them).
    """

    def __init__(
        self,
        chain: Chain,
        prompt: ChatPrompt,
        prefix: Prefix,
        prune: PruneConfig | None,
        *,
        opening: Timings | None = None,
        skipped_frames: int = 0,
    ) -> None:
        """`opening` holds the timings of the stages already run for this video; the first answer reports them."""
        self.video = prefix.video
        self.prune = prune
        self.skipped_frames = skipped_frames
        self._chain, self._prompt = chain, prompt
        # Held while the rows behind the video are written or read; never while a caller has control.
        self._lock = RLock()
        self._thread = local()
        # Whose rows stand behind the video; None when nobody wants them any more.
        self._holder: Callable[[], _Rows | None] = lambda: None
        self._prefix = prefix
        self.prefix_rows = rows = len(prefix)
        self._check_length(rows, "the video takes")
        self._pre_cache = chain.new_cache(chain.pre_layers, rows + _QUESTION_ROOM)
        stopwatch = Stopwatch(chain.now, opening)
        with stopwatch.stage("prefix"):
            # The question's rows will stand behind the prefix's.
            self._hidden = chain.new_hidden(rows + _QUESTION_ROOM)
            embeds, hidden = chain.embed_prefix(prefix), self._hidden.array[:, :rows]
            chain.run_pre(embeds, self._pre_cache, prefix.positions, hidden=hidden)
        self._opening = stopwatch.timings
        # Only used when nothing is pruned: then the later layers' KV of the video serves every question, too.
        self._post_cache: KvCache | None = None

    def ask(self, question: Question, sampling: SamplingConfig | None = None) -> Answer:
        """Answer a question. Raises PruneVidError where it is empty, too long, or holds special tokens."""
        stream = self.stream(question, sampling)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, question: Question, sampling: SamplingConfig | None = None) -> AnswerStream:
        """Like `ask`, but piece by piece: iterate over the text, then read `.answer`.

        The same thread's next question ends an answer that is still being read.
        """
        sampling = sampling or SamplingConfig()
        ids, stopwatch, reading = self._begin(question, sampling.max_new_tokens)
        prefill = partial(self._prefill, ids, sampling.max_new_tokens, stopwatch)
        return self._stream(prefill, sampling, stopwatch, reading)

    def score(self, question: Question) -> ScoredQuestion:
        """Run layers 0 to M over a question and say what it attends to; answers go on from there.

        For several answers to one question from one run of these layers, or for another choice of tokens than by the
        question's attention. As `stream` does, this ends the answer that the same thread is still reading.

        Raises:
            PruneVidError: The question is empty, too long, or holds special tokens.
        """
        ids, stopwatch, reading = self._begin(question, 0)
        rows = _Rows()
        with self._lock:
            scores = self._score(ids, stopwatch, rows)
        return ScoredQuestion(self, ids, scores, stopwatch.timings, rows, reading)

    def attend(self, question: Question) -> tuple[np.ndarray, np.ndarray]:
        """How strongly a question attends to every visual token, and which tokens it keeps, without an answer.

        Returns scores float32 [V], each the largest attention probability at layer M over heads and question rows,
        and kept int64 [R], ascending; all of them where nothing is pruned. Ends an answer that this thread is still
        reading. Raises PruneVidError as `ask` does.
        """
        ids = self._encode(question)
        self._check_length(self.prefix_rows + len(ids), "video and question take")
        self._end_reading()
        settings, stopwatch = self.prune or PruneConfig.disabled(), Stopwatch(self._chain.now)
        with self._lock:
            scores = self._score(ids, stopwatch, _Rows())
            selection = self._select(len(ids), scores, settings, 0, stopwatch)
        of_video = self._chain.memory.download(scores)[self._prefix.visual_rows]
        return of_video, self._prefix.tokens_of(self._chain.memory.download(selection.kept))

    def _begin(self, question: Question, room: int) -> tuple[np.ndarray, Stopwatch, _Reading]:
        """Ids of a question that is asked now, with `room` rows for its answer; the answer's stopwatch and reading."""
        ids = self._encode(question)
        what = "video, question and answer take" if room else "video and question take"
        self._check_length(self.prefix_rows + len(ids) + room, what)
        reading = self._end_reading()
        with self._lock:
            opening, self._opening = self._opening, Timings()
        return ids, Stopwatch(self._chain.now, opening), reading

    def _encode(self, question: Question) -> np.ndarray:
        """Ids of a question, int64 [q]."""
        ids = question if isinstance(question, PromptIds) else self._prompt.encode(question)
        if not self._prompt.begins(ids):
            raise PruneVidError(
                "this question's prompt begins otherwise than this session's: encode it with the same model's prompt "
                "and without a system message"
            )
        return ids.suffix

    def _end_reading(self) -> _Reading:
        """End the answer that this thread is reading; returns its next one's."""
        previous: _Reading | None = getattr(self._thread, "reading", None)
        if previous is not None:
            previous.is_current = False
        reading: _Reading = _Reading()
        self._thread.reading = reading
        return reading

    def _stream(
        self, prefill: Callable[[], Prefilled], sampling: SamplingConfig, stopwatch: Stopwatch, reading: _Reading
    ) -> AnswerStream:
        return AnswerStream(
            chain=self._chain,
            prompt=self._prompt,
            prefill=prefill,
            is_current=lambda: reading.is_current,
            sampling=sampling,
            stopwatch=stopwatch,
            skipped_frames=self.skipped_frames,
        )

    def _stream_scored(
        self, scored: ScoredQuestion, sampling: SamplingConfig, keep_ratio: float | None, scores: Array | None
    ) -> AnswerStream:
        if self.prune is None:
            raise PruneVidError("this session prunes nothing: no tokens are chosen by their scores")
        rows, room = self.prefix_rows + len(scored.ids), sampling.max_new_tokens
        self._check_length(rows + room, "video, question and answer take")
        chosen_by = scored.scores if scores is None else scores
        if chosen_by.shape != (rows,):
            raise PruneVidError(f"scores must have shape [{rows}], one of every row, not {list(chosen_by.shape)}")
        prune = self.prune if keep_ratio is None else replace(self.prune, keep_ratio=keep_ratio)
        stopwatch = Stopwatch(self._chain.now, scored.timings)

        def prefill() -> Prefilled:
            with self._lock:
                if self._holder() is not scored._rows:
                    # Another question was asked in the meantime: its rows have taken the place of these.
                    self._score(scored.ids, stopwatch, scored._rows)
                selection = self._select(len(scored.ids), chosen_by, prune, room, stopwatch)
            return self._prefill_kept(selection, len(scored.ids), room, stopwatch)

        return self._stream(prefill, sampling, stopwatch, scored._reading)

    def _prefill(self, ids: np.ndarray, room: int, stopwatch: Stopwatch) -> Prefilled:
        """Run a question's rows and everything behind them, leaving `room` rows for the answer."""
        if self.prune is None:
            with self._lock:
                return self._prefill_unpruned(ids, room, stopwatch)
        with self._lock:
            scores = self._score(ids, stopwatch, _Rows())
            selection = self._select(len(ids), scores, self.prune, room, stopwatch)
        return self._prefill_kept(selection, len(ids), room, stopwatch)

    def _prefill_kept(self, selection: Selection, question_rows: int, room: int, stopwatch: Stopwatch) -> Prefilled:
        """The layers behind M over what select kept."""
        post_cache = self._chain.new_cache(self._chain.post_layers, selection.hidden.shape[1] + room)
        with stopwatch.stage("llm_post"):
            logits = self._chain.run_post(selection.hidden, post_cache, selection.position_ids)
        counts = self._token_counts(len(selection.kept) - int(self._prefix.marks.sum()), question_rows)
        return Prefilled(
            logits, self._prefix.next_position + question_rows, selection.cache, post_cache, counts, pruned=True
        )

    def _score(self, ids: np.ndarray, stopwatch: Stopwatch, question: _Rows) -> Array:
        """Layers 0 to M over a question [q] behind the prefix; its scores of the prefix and of itself [rows]."""
        embeds = self._chain.embed(ids)
        with stopwatch.stage("question"):
            _, scores = self._run_rows(embeds, len(ids), question, scored=True)
        assert scores is not None  # they were asked for
        return scores

    def _select(
        self, question_rows: int, scores: Array, prune: PruneConfig, room: int, stopwatch: Stopwatch
    ) -> Selection:
        """What is kept by `scores`, in a cache of its own: the rows that it is chosen from stay as they are."""
        hidden = self._hidden.array[:, : self.prefix_rows + question_rows]
        with stopwatch.stage("select"):
            return self._chain.run_select(
                scores, self._prefix, self._positions(question_rows), hidden, self._pre_cache, prune, room
            )

    def _positions(self, question_rows: int) -> np.ndarray:
        """Positions of the prefix and of a question behind it, int64 [axes, rows]."""
        behind = self._chain.positions(self._prefix.next_position, question_rows)
        return np.concatenate([self._prefix.positions, behind], axis=1)

    def _prefill_unpruned(self, ids: np.ndarray, room: int, stopwatch: Stopwatch) -> Prefilled:
        start, total = self.prefix_rows, self.prefix_rows + len(ids)
        embeds, question = self._chain.embed(ids), _Rows()
        with stopwatch.stage("question"):
            hidden, _ = self._run_rows(embeds, len(ids) + room, question)
        # Fewer rows than the video's are there where an earlier run failed on the way.
        first = 0 if self._post_cache is None or self._post_cache.length < start else start
        if self._post_cache is None:
            self._post_cache = self._chain.new_cache(self._chain.post_layers, total + room)
        self._post_cache.rewind(first)
        self._post_cache.reserve(total + room)
        with stopwatch.stage("llm_post"):
            position_ids = self._positions(len(ids))[:, first:]
            logits = self._chain.run_post(hidden[:, first:], self._post_cache, position_ids)
        counts = self._token_counts(len(self.video.tokens), len(ids))
        question.is_read_on = True
        caches, turn = (self._pre_cache, self._post_cache), partial(self._turn, question)
        position = self._prefix.next_position + len(ids)
        return Prefilled(logits, position, *caches, counts, pruned=False, turn=turn)

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
        """Layers 0 to M over a question's rows [S, C] in a cache with `room` rows behind the prefix.

        Returns hidden [1, rows, C] of the prefix and the question, and the question's scores if asked for.
        """
        start, total = self.prefix_rows, self.prefix_rows + len(embeds)
        self._claim(question)
        self._pre_cache.rewind(start)
        self._pre_cache.reserve(start + room)
        self._hidden.reserve(total, start)
        hidden = self._hidden.array[:, :total]
        position_ids = self._positions(len(embeds))[:, start:]
        _, scores = self._chain.run_pre(embeds, self._pre_cache, position_ids, hidden=hidden[:, start:], scored=scored)
        return hidden, scores

    def _token_counts(self, kept: int, question_rows: int) -> TokenCounts:
        """Tokens before and after each stage; what stands among visual tokens is text before the last of them."""
        stop = self._prefix.stop
        return TokenCounts(
            visual=self.video.patch_to_token.size,
            merged=len(self.video.tokens),
            kept=kept,
            text_before=stop - len(self.video.tokens),
            text_after=self.prefix_rows - stop + question_rows,
        )

    def _check_length(self, rows: int, what: str) -> None:
        limit = self._chain.manifest.prompt.max_positions
        if rows > limit:
            raise PruneVidError(f"{what} {rows} positions, the model has {limit}: use fewer frames or words")
