"""The rows before a question: text, a video's tokens, and what the token layout and the prompt put among them.

A video's tokens keep their order. What stands before a frame (its marks: the end of the frame before it, what the chat
template writes between two frames, the beginning of its own) stands before the first token that no earlier frame has a
part in: before the static tokens of a segment at its first frame, before each frame's dynamic tokens. Marks are text:
never merged, never pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.config import PruneConfig
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.arrays import Array
from prunevid.text.chat import ChatPrompt

__all__ = ["Contest", "Prefix", "VideoTokens", "arrange", "positions"]

_VISUAL = -1
# Scores are probabilities: a row that must stay is given more than any.
_ALWAYS = 2.0


@dataclass(frozen=True)
class VideoTokens:
    """A video as the language model will see it.

    Attributes:
        tokens: [V, C] of the bundle's dtype, where the graphs run; all else is on the host.
        group: int64 [V], ascending, the group each token belongs to.
        patch_to_token: int64 [T, N], where each patch went.
        frame_segment: int64 [T], the segment of each frame.
        seconds: float64 [T], when each frame was; needed where the layout has texts that say so.
    """

    tokens: Array
    group: np.ndarray
    patch_to_token: np.ndarray
    frame_segment: np.ndarray
    seconds: np.ndarray | None = None

    @property
    def frame_start(self) -> np.ndarray:
        """The first token that no earlier frame has a part in, int64 [T]; where a frame has none, the next one's."""
        seen = np.maximum.accumulate(self.patch_to_token.max(axis=1, initial=-1)) + 1
        starts: np.ndarray = np.minimum(np.concatenate([np.zeros(1, np.int64), seen[:-1]]), len(self.group))
        return starts


@dataclass(frozen=True, eq=False)
class Contest:
    """The rows from the first visual token to the last, as select is given them.

    Attributes:
        group: int64 [S], ascending: rows of one group compete.
        quota: int64 [G], how many rows each group keeps.
        always: int64 [A], rows to be kept by their scores, since they compete with others.
    """

    group: np.ndarray
    quota: np.ndarray
    always: np.ndarray

    def scores(self, scores: np.ndarray, start: int) -> np.ndarray:
        """Scores float32 [rows] by which what must stay does. start: the first row that competes."""
        raised: np.ndarray = scores.copy()
        raised[start + self.always] = _ALWAYS
        return raised


@dataclass(frozen=True, eq=False)
class Prefix:
    """All that stands before a question.

    Attributes:
        video: The visual tokens.
        ids: int64 [rows], each row's row in the embedding table; -1 where a visual token stands, in their order.
        positions: int64 [axes, rows].
    """

    video: VideoTokens
    ids: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @property
    def next_position(self) -> int:
        """Position of the first row of the question, on all axes."""
        return int(self.positions.max(initial=-1)) + 1

    @property
    def visual_rows(self) -> np.ndarray:
        """The visual tokens' rows, int64 [V], ascending."""
        return np.flatnonzero(self.ids == _VISUAL)

    @property
    def start(self) -> int:
        """The row of the first visual token; behind all rows where there is none."""
        return int(self.visual_rows[0]) if len(self.video.group) else len(self)

    @property
    def stop(self) -> int:
        """The row behind the last visual token's."""
        return int(self.visual_rows[-1]) + 1 if len(self.video.group) else len(self)

    @property
    def marks(self) -> np.ndarray:
        """Which rows from the first visual token to the last are text, bool [stop - start]."""
        marks: np.ndarray = self.ids[self.start : self.stop] != _VISUAL
        return marks

    def runs(self) -> Iterator[tuple[slice, slice | None]]:
        """Stretches of rows of one kind, and for visual ones which tokens stand there."""
        is_visual, token = self.ids == _VISUAL, 0
        bounds = [0, *(np.flatnonzero(np.diff(is_visual)) + 1).tolist(), len(self)]
        for row, end in pairwise(bounds):
            tokens = slice(token, token + end - row) if is_visual[row : row + 1].any() else None
            yield slice(row, end), tokens
            token = token if tokens is None else tokens.stop

    def tokens_of(self, kept: np.ndarray) -> np.ndarray:
        """The visual tokens among what select kept, as int64 [R] counted from the first visual token's row."""
        marks = self.marks
        if not marks.any():
            return kept
        number = np.cumsum(~marks) - 1
        found: np.ndarray = number[kept[~marks[kept]]]
        return found

    def contest(self, prune: PruneConfig, most: int) -> Contest:
        """Which rows compete, and how many of them are kept.

        Marks among the tokens are groups of their own, which are kept whole; where all tokens compete with each other,
        they are in one group with them, and stay by their scores.

        Args:
            prune: The settings.
            most: The most rows of a group where there are several.
        """
        group, marks, nothing = self.video.group, self.marks, np.empty(0, np.int64)
        if prune.selection == "global":
            group = np.zeros_like(group)
        if not marks.any():
            sizes = np.bincount(group)
            return Contest(group, prune.keep_counts(int(sizes.max(initial=0)))[sizes], nothing)
        if prune.selection == "global":
            quota = prune.keep_counts(len(group))[[len(group)]] + marks.sum()
            return Contest(np.zeros(len(marks), np.int64), quota, np.flatnonzero(marks))
        spread = np.full(len(marks), _VISUAL)
        spread[~marks] = group
        starts = np.flatnonzero(np.diff(spread, prepend=spread[0] - 1))
        within = np.arange(len(marks)) - np.repeat(starts, np.diff(starts, append=len(marks)))
        begins = (within == 0) | (marks & (within % most == 0))
        numbered = np.cumsum(begins) - 1
        sizes = np.bincount(numbered)
        kept = prune.keep_counts(int(sizes.max()))[sizes]
        return Contest(numbered, np.where(marks[begins], sizes, kept), nothing)


def arrange(video: VideoTokens, prompt: ChatPrompt, layout: TokenLayout) -> Prefix:
    """Put all rows before a question in their order.

    Args:
        video: The visual tokens.
        prompt: What stands before the video and between two frames.
        layout: What stands beside each frame and behind the video.

    Raises:
        PruneVidError: The layout has the times of frames in it, and they are not known; or a text of it runs together
            with the prompt around it.
    """
    tokens, frames = len(video.group), len(video.patch_to_token)
    if video.seconds is None and any(piece.is_timed for piece in layout.pieces):
        raise PruneVidError("this model is told when each frame was: give the video's tokens with their seconds")
    if any(piece.text is not None for piece in layout.pieces):
        between: str | np.ndarray = prompt.between_text
    else:
        between = prompt.between
    parts = [list(_gap(number, frames, between, layout, video.seconds)) for number in range(frames + 1)]
    gaps = _encoded(parts, prompt)
    at = np.repeat([*video.frame_start.tolist(), tokens], [len(gap) for gap in gaps])
    ids = np.concatenate([prompt.prefix, np.insert(np.full(tokens, _VISUAL), at, np.concatenate(gaps))])
    return Prefix(video, ids.astype(np.int64), positions(0, len(ids), layout.position_axes))


def positions(start: int, rows: int, axes: int = 1) -> np.ndarray:
    """Positions of `rows` rows of text from `start` on, int64 [axes, rows], alike on all axes."""
    return np.tile(np.arange(start, start + rows, dtype=np.int64), (axes, 1))


def _gap(
    number: int, frames: int, between: str | np.ndarray, layout: TokenLayout, seconds: np.ndarray | None
) -> Iterator[str | np.ndarray]:
    """What stands before the tokens of the frame of this number, or behind the last one's: texts, and ids."""
    if number > 0:
        yield from _parts(layout.after_frame, seconds, number - 1)
    if 0 < number < frames:
        yield between
    if number < frames:
        yield from _parts(layout.before_frame, seconds, number)
    else:
        yield from _parts(layout.after_video, seconds, number - 1)


def _parts(pieces: Iterable[Piece], seconds: np.ndarray | None, frame: int) -> Iterator[str | np.ndarray]:
    time = 0.0 if seconds is None else float(seconds[frame])
    for piece in pieces:
        yield np.array([piece.row]) if piece.text is None else piece.text.format(seconds=time)


def _encoded(gaps: Sequence[Sequence[str | np.ndarray]], prompt: ChatPrompt) -> list[np.ndarray]:
    """Ids of every gap, int64. All texts are tokenized with the prompt as one, as if it had come whole."""
    texts = [""]
    for gap in gaps:
        for part in gap:
            if isinstance(part, str):
                texts[-1] += part
            else:
                texts.append("")
        texts.append("")
    # Behind the last gap is no frame.
    del texts[-1]
    ids = iter(prompt.encode_texts(texts) if any(texts) else [np.empty(0, np.int64)] * len(texts))
    found = []
    for gap in gaps:
        parts = [next(ids)]
        for part in gap:
            parts += [] if isinstance(part, str) else [part, next(ids)]
        found.append(np.concatenate(parts))
    return found
