"""The chain of engines, stage by stage: vision_merge, merge, llm_pre, select, llm_post, one bundle's graphs.

Every method runs one stage and keeps no state: what goes from stage to stage are arrays and KV caches, which stay where
the graphs run; only what is small and decides about more comes to the host. The order of the stages, and what is reused
between questions, is `prunevid.runtime.session`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunevid.bundle import Bundle
from prunevid.config import PruneConfig
from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.runtime.backends.arrays import Array, Slot
from prunevid.runtime.backends.backend import Backend
from prunevid.runtime.kv_cache import KvCache, RowBuffer
from prunevid.runtime.sequence import Prefix, VideoTokens, arrange, positions
from prunevid.text.chat import ChatPrompt

# What merging yields.
_MERGED = ("video_tokens", "token_group", "token_count", "patch_to_token", "frame_segment")
_NO_MERGE = "the merging graph of this bundle gives no merged tokens: export the bundle again"


@dataclass(frozen=True)
class Selection:
    """What select kept.

    Attributes:
        kept: Which rows, counted from the first visual token's, int64 [R]; text among the tokens is always kept.
        hidden: Their hidden states and all text's, [1, rows, C].
        position_ids: The rows' positions, int64 [axes, rows].
        cache: The KV of llm_pre's layers, cut to those rows.
    """

    kept: Array
    hidden: Array
    position_ids: Array
    cache: KvCache


class Chain:
    """The loaded graphs of a bundle and its embedding table."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.manifest = bundle.manifest
        self.backend = backend.name
        self.memory, self.now = backend.memory, backend.now
        self._backend = backend
        self._shape = self.manifest.model.decoder
        graphs = {name: backend.load(bundle, name) for name in self.manifest.graphs}
        self._vision_merge, self._merge, self._llm_pre = graphs["vision_merge"], graphs["merge"], graphs["llm_pre"]
        self._select, self._llm_post = graphs["select"], graphs["llm_post"]
        table = self.manifest.embeddings
        self.dtype = np.dtype(table.dtype)
        # Mapped, not read: a prompt looks up a few hundred of some 150,000 rows.
        file = bundle.file(table.file)
        with reading(file):
            self._table = np.memmap(file, self.dtype, "r", shape=(table.rows, table.columns))
        layout, size, channels = self.manifest.token_layout, self.manifest.preprocessing.size, self._shape.hidden_size
        # What comes from outside, and must be what the graphs take.
        self._pixels = Slot("a video", "pixel_values", np.dtype(np.float32), ("frames", 3, size, size))
        self._features = Slot("a video", "features", self.dtype, ("frames", layout.tokens_per_frame, channels))
        self._tokens = Slot("a video", "tokens", self.dtype, ("visual", channels))
        self._group = Slot("a video", "group", np.dtype(np.int64), ("visual",))
        self._embeds = Slot("a prompt", "embeds", self.dtype, ("rows", channels))
        self._hidden = Slot("a prompt", "hidden", self.dtype, (1, "rows", channels))
        self.pre_layers = range(self.manifest.prune.prune_layer + 1)
        self.post_layers = range(self.manifest.prune.prune_layer + 1, self._shape.layers)

    def new_cache(self, layers: Sequence[int], capacity: int) -> KvCache:
        """An empty KV cache of `layers` with room for `capacity` rows."""
        return KvCache(self._backend, self.manifest.cache, layers, self._shape, capacity)

    def new_hidden(self, rows: int) -> RowBuffer:
        """Room for the hidden states of `rows` rows, [1, rows, C]."""
        return RowBuffer(self.memory, 1, rows, self._shape.hidden_size, self.dtype)

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings [n, C] of token ids. Raises PruneVidError where the table has no such row."""
        rows = np.asarray(ids)
        if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(self._table)):
            raise PruneVidError(f"token ids must be whole numbers from 0 to {len(self._table) - 1}")
        return np.asarray(self._table[rows.astype(np.int64)])

    def arrange(self, video: VideoTokens, prompt: ChatPrompt) -> Prefix:
        """All rows before a question, in their order. Raises PruneVidError where the tokens are none of this model."""
        tokens, group = self._tokens.readable(video.tokens), np.asarray(self._group.readable(video.group))
        if len(tokens) != len(group):
            raise PruneVidError(f"group of a video must have shape [{len(tokens)}], not [{len(group)}]")
        video = replace(video, tokens=tokens, group=group)
        return arrange(video, prompt, self.manifest.token_layout)

    def positions(self, start: int, rows: int) -> np.ndarray:
        """Positions of `rows` rows of text from `start` on, int64 [axes, rows]."""
        return positions(start, rows, self.manifest.token_layout.position_axes)

    def embed_prefix(self, prefix: Prefix) -> Array:
        """Embeddings [rows, C] of all that stands before a question."""
        embeds = self.memory.empty((len(prefix), self._shape.hidden_size), self.dtype)
        for rows, tokens in prefix.runs():
            self.memory.copy(
                self.embed(prefix.ids[rows]) if tokens is None else prefix.video.tokens[tokens], embeds[rows]
            )
        return embeds

    def new_features(self, frames: int) -> Array:
        """Room for the features of `frames` frames, [T, N, C]."""
        shape = (frames, self.manifest.token_layout.tokens_per_frame, self._shape.hidden_size)
        return self.memory.empty(shape, self.dtype)

    def encode(self, pixel_values: np.ndarray, *, into: Array | None = None) -> Array:
        """Features [T, N, C] of pixel values float32 [T, 3, size, size]: tower, projector and pooling.

        Written into `into` where that is given. The graph merges each batch of frames on the way, which is dropped: a
        merge over few frames costs next to nothing beside their encoding (docs/benchmarks.md has the figure).
        """
        pixel_values = _checked(self._pixels, pixel_values)
        return self._encode(pixel_values, self.new_features(len(pixel_values)) if into is None else into)

    def _encode(self, pixel_values: np.ndarray, features: Array) -> Array:
        """Features of any number of frames, none included, written into `features`."""
        at_once = self.manifest.blocks.frames
        for start in range(0, len(pixel_values), at_once):
            stop = min(start + at_once, len(pixel_values))
            feeds = self._vision_feeds(pixel_values[start:stop], features[:0], self.manifest.prune)
            self._vision_merge.run(feeds, {"features": features[start:stop]})
        return features

    def merge(self, features: Array, prune: PruneConfig) -> VideoTokens:
        """Merge features [T, N, C] into visual tokens."""
        features = _checked(self._features, features)
        feeds = {"features": features, **self._settings(prune, len(features))}
        return self._merged(self._merge.run(feeds, dict.fromkeys(_MERGED)), len(features))

    def encode_and_merge(self, pixel_values: np.ndarray, prune: PruneConfig) -> VideoTokens:
        """The visual tokens of pixel values float32 [T, 3, size, size]: the last batch of frames merges on its way.

        The same tokens as of `encode` and `merge`, in one run less.
        """
        pixel_values = _checked(self._pixels, pixel_values)
        at_once = self.manifest.blocks.frames
        before = (len(pixel_values) - 1) // at_once * at_once
        past = self._encode(pixel_values[:before], self.new_features(before))
        feeds = self._vision_feeds(pixel_values[before:], past, prune)
        return self._merged(self._vision_merge.run(feeds, dict.fromkeys(_MERGED)), len(pixel_values))

    def _vision_feeds(self, pixel_values: np.ndarray, past: Array, prune: PruneConfig) -> dict[str, Array]:
        settings = self._settings(prune, len(past) + len(pixel_values))
        return {"pixel_values": pixel_values, "past_features": past, **settings}

    def _merged(self, outputs: Mapping[str, Array], frames: int) -> VideoTokens:
        # How many tokens there are is known only now; what is small and decides about more comes to the host.
        tokens, *small = (outputs[name] for name in _MERGED)
        group, count, patch_to_token, frame_segment = map(self.memory.download, small)
        if count.shape != (1,) or tokens.shape[:1] != group.shape or not 1 <= count[0] <= len(group):
            raise PruneVidError(_NO_MERGE)
        # Behind the tokens the graph fills up.
        video = VideoTokens(tokens[: int(count[0])], group[: int(count[0])], patch_to_token, frame_segment)
        self._check_merged(video, frames)
        return video

    def _check_merged(self, video: VideoTokens, frames: int) -> None:
        """Raise PruneVidError where a graph's merge is none: sizes of more arrays follow from it, and rows of others.

        Runtimes hold no output against the shape that is declared for it.
        """
        layout, tokens = self.manifest.token_layout, len(video.group)
        shapes = video.tokens.shape, video.patch_to_token.shape, video.frame_segment.shape
        wanted = (tokens, self._shape.hidden_size), (frames, layout.tokens_per_frame), (frames,)
        numbers = (video.group, 2 * frames), (video.patch_to_token, tokens), (video.frame_segment, frames)
        if (
            shapes != wanted
            or any(array.min() < 0 or array.max() >= limit for array, limit in numbers)
            or (np.diff(video.group) < 0).any()
            or np.bincount(video.group).max() > layout.tokens_per_frame
        ):
            raise PruneVidError(_NO_MERGE)

    def unmerged(self, features: Array) -> VideoTokens:
        """Features [T, N, C] as they are, each frame a group of its own: what merging is compared with."""
        features = _checked(self._features, features)
        frames, tokens, channels = features.shape
        index = np.arange(frames * tokens, dtype=np.int64)
        return VideoTokens(
            features.reshape(frames * tokens, channels),
            index // tokens,
            index.reshape(frames, tokens),
            np.zeros(frames, np.int64),
        )

    def run_pre(
        self,
        embeds: Array,
        cache: KvCache,
        position_ids: np.ndarray,
        *,
        hidden: Array | None = None,
        scored: bool = False,
    ) -> tuple[Array, Array | None]:
        """Layers 0 to M over `embeds` [S, C] at `position_ids` int64 [axes, S], behind what the cache holds.

        Returns hidden [1, S, C], written into `hidden` where that is given, and, if these rows are the question
        (`scored`), its scores, float32 of every row so far; else None.
        """
        embeds = self._embeds.readable(embeds)
        count, channels = embeds.shape
        if hidden is None:
            hidden = self.memory.empty((1, count, channels), self.dtype)
        scores: Array | None = None
        at_once = self.manifest.blocks.rows
        for start in range(0, count, at_once):
            stop = min(start + at_once, count)
            rows = stop - start
            decoding = rows == 1 and not scored
            # The graph scores from this row on whether or not it is asked to; the last row alone costs nothing.
            first_asking = 0 if scored else rows - 1
            feeds = {
                "inputs_embeds": embeds[start:stop].reshape(1, rows, channels),
                "position_ids": position_ids[:, start:stop],
                "past_length": np.array([cache.length], np.int64),
                "question_start": np.array([first_asking], np.int64),
                **cache.past(decoding=decoding),
            }
            outputs: dict[str, Array | None] = {
                "hidden": hidden[:, start:stop],
                **cache.present(rows, decoding=decoding),
            }
            if scored:
                outputs["question_scores"] = self.memory.empty((cache.length + rows,), np.dtype(np.float32))
            computed = self._llm_pre.run(feeds, outputs)
            cache.advance(rows)
            if scored:
                scores = self._largest_scores(scores, computed["question_scores"])
        return hidden, scores

    def _largest_scores(self, earlier: Array | None, later: Array) -> Array:
        """Scores of a question whose first blocks gave `earlier`, of fewer rows."""
        if earlier is None:
            return later
        first, both = self.memory.download(earlier), self.memory.download(later)
        np.maximum(both[: len(first)], first, out=both[: len(first)])
        return both

    def run_post(self, hidden: Array, cache: KvCache, position_ids: Array) -> np.ndarray:
        """The layers behind M over hidden [1, S, C] at `position_ids` int64 [axes, S], behind what the cache holds.

        Returns the last row's logits, float32 [vocab].
        """
        hidden = self._hidden.readable(hidden)
        logits = self.memory.empty((1, self._shape.vocab_size), np.dtype(np.float32))
        at_once = self.manifest.blocks.rows
        for start in range(0, hidden.shape[1], at_once):
            block = hidden[:, start : start + at_once]
            rows = int(block.shape[1])
            decoding = rows == 1
            feeds = {
                "hidden": block,
                "position_ids": position_ids[:, start : start + rows],
                "past_length": np.array([cache.length], np.int64),
                **cache.past(decoding=decoding),
            }
            self._llm_post.run(feeds, {"logits": logits, **cache.present(rows, decoding=decoding)})
            cache.advance(rows)
        row: np.ndarray = self.memory.download(logits)[0]
        return row

    def run_select(
        self,
        scores: Array,
        prefix: Prefix,
        position_ids: np.ndarray,
        hidden: Array,
        cache: KvCache,
        prune: PruneConfig,
        room: int,
    ) -> Selection:
        """Keep the best-scored tokens of each group and all text.

        `position_ids` int64 [axes, T], `hidden` [1, T, C] and `cache` are of all rows; the new cache has `room`
        rows left for decoding.
        """
        contest = prefix.contest(prune, self.manifest.token_layout.tokens_per_frame)
        if len(contest.always):
            scores = contest.scores(self.memory.download(scores), prefix.start)
        kept = int(contest.quota.sum())
        rows = int(hidden.shape[1]) - len(contest.group) + kept
        kept_cache = self.new_cache(self.pre_layers, rows + room)
        feeds: dict[str, Array] = {
            "question_scores": scores,
            "token_group": contest.group,
            "quota": contest.quota,
            "kept_count": np.array([kept], np.int64),
            "position_ids": position_ids,
            "video_start": np.array([prefix.start], np.int64),
            "hidden": hidden,
            **cache.past(),
        }
        if self.manifest.cache.is_in_place:
            feeds["capacity"] = np.array([kept_cache.capacity], np.int64)
        # The quotas tell how many there will be, so that nobody has to wait for them.
        outputs: dict[str, Array] = {
            "kept": self.memory.empty((kept,), np.dtype(np.int64)),
            "kept_position_ids": self.memory.empty((len(position_ids), rows), np.dtype(np.int64)),
            "kept_hidden": self.memory.empty((1, rows, self._shape.hidden_size), self.dtype),
        }
        self._select.run(feeds, {**outputs, **kept_cache.present(rows)})
        kept_cache.advance(rows)
        return Selection(outputs["kept"], outputs["kept_hidden"], outputs["kept_position_ids"], kept_cache)

    def _settings(self, prune: PruneConfig, frames: int) -> dict[str, np.ndarray]:
        return prune.graph_values(frames, self.manifest.token_layout.tokens_per_frame)


def _checked(slot: Slot, frames: Any) -> Any:
    """Pixel values or features as graphs read them, of one frame or more: runtimes die of a tower over none."""
    checked = slot.readable(frames)
    if not len(checked):
        raise PruneVidError("there are no frames to encode or merge: give at least one")
    return checked
