"""Rows before a question: what stands among a video's tokens, held against a plain statement of the rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interleaving import VISUAL, plain_rows, stated_rows

from prunevid import MergedTokens, PruneConfig, PruneVidError, merge_tokens, select_tokens
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.methods.selection import group_topk
from prunevid.runtime.sequence import Prefix, VideoTokens, arrange
from prunevid.text.chat import ChatPrompt


def encode(text: str) -> list[int]:
    """A tokenizer that has a token for each character."""
    return [1000 + ord(character) for character in text]


@dataclass(frozen=True)
class Characters:
    """A prompt of that tokenizer."""

    between_text: str = ""
    prefix: np.ndarray = field(default_factory=lambda: np.array([70, 71, 72]))

    @property
    def between(self) -> np.ndarray:
        return np.array(encode(self.between_text), np.int64)

    def encode_texts(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(encode(text), np.int64) for text in texts]


def arranged(video: VideoTokens, prompt: Characters, layout: TokenLayout) -> Prefix:
    return arrange(video, cast(ChatPrompt, prompt), layout)


BEFORE = Characters().prefix


@st.composite
def videos(draw: st.DrawFn) -> tuple[np.ndarray, PruneConfig]:
    """Features of a few scenes in which some positions hold still, and settings."""
    frames, tokens = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scene = np.sort(rng.integers(0, draw(st.integers(1, 3)), frames))
    still = rng.standard_normal((3, tokens, 4)) * 3
    moving = rng.random(tokens) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    features = still[scene] + np.where(moving[None, :, None], rng.standard_normal((frames, tokens, 4)) * 3, 0)
    prune = PruneConfig(
        segment_ratio=draw(st.sampled_from([0.25, 0.5, 1.0])),
        min_cluster_tokens=draw(st.sampled_from([1, 4, 14])),
        keep_ratio=draw(st.sampled_from([0.01, 0.2, 0.4, 0.9])),
        selection=draw(st.sampled_from(["group", "global"])),
    )
    return features, prune


PIECES = st.lists(
    st.one_of(
        st.integers(0, 60).map(lambda row: Piece(row=row)),
        st.sampled_from(["at {seconds:.1f} s", "x"]).map(lambda text: Piece(text=text)),
    ),
    max_size=3,
).map(tuple)


@st.composite
def layouts(draw: st.DrawFn, tokens: int) -> tuple[TokenLayout, Characters]:
    """A layout and a prompt that goes with it."""
    placeholder = draw(st.sampled_from(["video", "frame"]))
    pieces = draw(PIECES), draw(PIECES), draw(PIECES.filter(lambda found: not any(p.is_timed for p in found)))
    between = draw(st.sampled_from(["", "|", "b" * 25])) if placeholder == "frame" else ""
    return TokenLayout(tokens, None, placeholder, *pieces), Characters(between)


def ids_of(pieces: tuple[Piece, ...], seconds: float) -> list[int]:
    """Ids of pieces, each text by itself: `encode` makes a token of each character."""
    found: list[int] = []
    for piece in pieces:
        found += [piece.row] if piece.text is None else encode(piece.text.format(seconds=seconds))  # type: ignore[list-item]
    return found


def gaps_of(layout: TokenLayout, between: np.ndarray, seconds: np.ndarray) -> list[list[int]]:
    frames = len(seconds)
    gaps: list[list[int]] = [[] for _ in range(frames + 1)]
    for frame, time in enumerate(seconds):
        gaps[frame] += ids_of(layout.before_frame, time)
        gaps[frame + 1] += ids_of(layout.after_frame, time)
        if frame + 1 < frames:
            gaps[frame + 1] += between.tolist()
    gaps[frames] += ids_of(layout.after_video, 0.0)
    return gaps


def as_video(merged: MergedTokens, seconds: np.ndarray) -> VideoTokens:
    return VideoTokens(merged.tokens, merged.group, merged.patch_to_token, merged.segments, seconds)


def spread(prefix: Prefix) -> list[int]:
    """Where each token of the video stands, read off the stretches that are copied to the language model."""
    found = [0] * len(prefix)
    for rows, tokens in prefix.runs():
        assert rows.stop > rows.start
        numbers = prefix.ids[rows] if tokens is None else -1 - np.arange(tokens.start, tokens.stop)
        found[rows] = numbers.tolist()
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_stand_as_the_rule_says(data: Any) -> None:
    features, prune = data.draw(videos())
    frames, tokens = features.shape[:2]
    layout, prompt = data.draw(layouts(tokens))
    merged = merge_tokens(features, prune)
    seconds = np.arange(frames) * 0.25
    gaps = gaps_of(layout, prompt.between, seconds)
    prefix = arranged(as_video(merged, seconds), prompt, layout)
    assert prefix.ids.tolist() == [*BEFORE, *stated_rows(merged.group, merged.segments, gaps)]
    assert prefix.ids.dtype == prefix.positions.dtype == np.int64
    np.testing.assert_array_equal(prefix.positions, np.arange(len(prefix))[None])
    assert prefix.next_position == len(prefix)
    visual = [row for row in spread(prefix) if row < 0]
    assert visual == [-1 - number for number in range(len(merged.tokens))]
    assert [row for row in spread(prefix) if row >= 0] == [row for row in prefix.ids.tolist() if row >= 0]

    index = np.arange(frames * tokens)
    whole = VideoTokens(features, index // tokens, index.reshape(frames, tokens), np.zeros(frames, np.int64), seconds)
    plain = arranged(whole, prompt, layout)
    assert plain.ids.tolist() == [*BEFORE, *plain_rows(frames, tokens, gaps)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_stands_among_tokens_is_kept_and_changes_no_choice(data: Any) -> None:
    features, prune = data.draw(videos())
    frames, tokens = features.shape[:2]
    layout, prompt = data.draw(layouts(tokens))
    merged = merge_tokens(features, prune)
    prefix = arranged(as_video(merged, np.arange(frames) * 1.5), prompt, layout)
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 6, len(prefix) + 5) / 5
    contest = prefix.contest(prune, tokens)
    assert (np.diff(contest.group) >= 0).all()
    sizes = np.bincount(contest.group, minlength=len(contest.quota))
    assert len(sizes) == len(contest.quota)
    assert len(sizes) == 1 or sizes.max() <= tokens
    assert len(contest.group) == prefix.stop - prefix.start
    chosen_by = contest.scores(scores, prefix.start)[prefix.start : prefix.stop]
    kept = group_topk(chosen_by, contest.group, contest.quota)
    assert len(kept) == contest.quota.sum()
    assert set(np.flatnonzero(prefix.marks)) <= set(kept)
    expected = select_tokens(scores[prefix.visual_rows], merged.group, prune)
    np.testing.assert_array_equal(prefix.tokens_of(kept), expected)
    assert len(expected) == len(kept) - prefix.marks.sum()


def test_without_anything_among_them_tokens_compete_as_they_came() -> None:
    features = np.random.default_rng(1).standard_normal((5, 20, 4))
    merged = merge_tokens(features, PruneConfig())
    layout = TokenLayout(20, (4, 5), after_video=(Piece(row=9),))
    prefix = arranged(as_video(merged, np.arange(5)), Characters(), layout)
    assert prefix.ids.tolist() == [*BEFORE, *[VISUAL] * len(merged.tokens), 9]
    assert (prefix.start, prefix.stop) == (3, 3 + len(merged.tokens))
    contest = prefix.contest(PruneConfig(), 20)
    assert contest.group is prefix.video.group
    assert contest.always.size == 0


def test_times_that_are_not_known_are_asked_for() -> None:
    merged = merge_tokens(np.zeros((2, 3, 4)), PruneConfig())
    video = VideoTokens(merged.tokens, merged.group, merged.patch_to_token, merged.segments)
    layout = TokenLayout(3, None, before_frame=(Piece(text="{seconds:.1f}"),))
    with pytest.raises(PruneVidError, match="is told when each frame was"):
        arranged(video, Characters(), layout)
