"""The chain of engines, stage by stage: vision, merge, llm_pre, select, llm_post over one bundle's graphs.

Every method runs one stage and keeps no state: what goes from stage to stage are arrays and KV caches. The order of
the stages, and what is reused between questions, is :mod:`prunevid.runtime.session`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunevid.bundle import Bundle
from prunevid.config import PruneConfig
from prunevid.runtime.backend import Backend
from prunevid.runtime.kv_cache import KvCache

# Frames that the vision tower encodes at once: enough rows for full speed, few enough that the activations of a
# long video never exist together.
_FRAMES_AT_ONCE = 4
# Rows that a decoder segment takes at once. ONNX Runtime's attention computes every score of its rows against all
# rows so far and masks the later ones: in blocks, what lies behind a block is never computed, nor held in memory.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class VideoTokens:
    """A video as the language model will see it.

    tokens [V, C] of the bundle's dtype; group int64 [V], ascending, the group each token belongs to; patch_to_token
    int64 [T, N], where each patch went; frame_segment int64 [T], the segment of each frame.
    """

    tokens: np.ndarray
    group: np.ndarray
    patch_to_token: np.ndarray
    frame_segment: np.ndarray


@dataclass(frozen=True)
class Selection:
    """What select kept: which visual tokens int64 [R], their hidden states and all text's [1, rows, C], the rows'
    positions int64 [1, rows], and the KV of llm_pre's layers, cut to those rows."""

    kept: np.ndarray
    hidden: np.ndarray
    position_ids: np.ndarray
    cache: KvCache


class Chain:
    """The loaded graphs of a bundle and its embedding table."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.manifest = bundle.manifest
        self.backend = backend.name
        self._shape = self.manifest.model.decoder
        graphs = {name: backend.load(bundle.file(spec.file)) for name, spec in self.manifest.graphs.items()}
        self._vision_merge, self._llm_pre = graphs["vision_merge"], graphs["llm_pre"]
        self._select, self._llm_post = graphs["select"], graphs["llm_post"]
        table = self.manifest.embeddings
        self.dtype = np.dtype(table.dtype)
        # Mapped, not read: a prompt looks up a few hundred of some 150,000 rows.
        self._table = np.memmap(bundle.file(table.file), self.dtype, "r", shape=(table.rows, table.columns))
        self.pre_layers = range(self.manifest.prune.prune_layer + 1)
        self.post_layers = range(self.manifest.prune.prune_layer + 1, self._shape.layers)

    def new_cache(self, layers: Sequence[int], capacity: int) -> KvCache:
        """An empty KV cache of ``layers`` with room for ``capacity`` rows."""
        return KvCache(self.manifest.dialect, layers, self._shape, capacity, self.dtype)

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings [n, C] of token ids."""
        return np.asarray(self._table[np.asarray(ids, np.int64)])

    @property
    def image_newline(self) -> np.ndarray:
        """The vector [1, C] that stands behind a video."""
        return self.embed([self.manifest.embeddings.image_newline])

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        """Features [T, N, C] of pixel values float32 [T, 3, size, size]: tower, projector and pooling.

        The graph merges each batch of frames on the way, which is dropped: a merge over few frames costs next to
        nothing beside their encoding (docs/benchmarks.md has the figure).
        """
        spec = self.manifest.model
        features = np.empty((len(pixel_values), spec.tokens_per_frame, spec.decoder.hidden_size), self.dtype)
        none = features[:0]
        for start in range(0, len(pixel_values), _FRAMES_AT_ONCE):
            stop = min(start + _FRAMES_AT_ONCE, len(pixel_values))
            feeds = {
                "pixel_values": pixel_values[start:stop],
                "past_features": none,
                **self._settings(self.manifest.prune, stop - start),
            }
            self._vision_merge.run(feeds, {"features": features[start:stop]})
        return features

    def merge(self, features: np.ndarray, prune: PruneConfig) -> VideoTokens:
        """Merge features [T, N, C] into visual tokens: the second half of vision_merge, with no new frame."""
        size = self.manifest.preprocessing.size
        feeds = {
            "pixel_values": np.empty((0, 3, size, size), np.float32),
            "past_features": features,
            **self._settings(prune, len(features)),
        }
        names = ("video_tokens", "token_group", "patch_to_token", "frame_segment")
        merged = self._vision_merge.run(feeds, dict.fromkeys(names))
        return VideoTokens(*(merged[name] for name in names))

    def unmerged(self, features: np.ndarray) -> VideoTokens:
        """Features [T, N, C] as they are, each frame a group of its own: what merging is compared with."""
        frames, tokens, channels = features.shape
        index = np.arange(frames * tokens, dtype=np.int64)
        return VideoTokens(
            features.reshape(-1, channels),
            index // tokens,
            index.reshape(frames, tokens),
            np.zeros(frames, np.int64),
        )

    def run_pre(
        self, embeds: np.ndarray, cache: KvCache, position: int, *, scored: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Layers 0 to M over ``embeds`` [S, C] at positions from ``position`` on, behind what the cache holds.

        Returns hidden [1, S, C] and, if these rows are the question (``scored``), its scores, float32 of every row so
        far; else no scores.
        """
        hidden = np.empty((1, len(embeds), embeds.shape[1]), self.dtype)
        scores = np.zeros(cache.length + len(embeds) if scored else 0, np.float32)
        for start in range(0, len(embeds), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(embeds))
            # The graph scores from this row on whether or not it is asked to; the last row alone costs nothing.
            first_asking = 0 if scored else stop - start - 1
            feeds = {
                "inputs_embeds": np.ascontiguousarray(embeds[start:stop])[None],
                "position_ids": positions(position + start, stop - start),
                "past_length": np.array([cache.length], np.int64),
                "question_start": np.array([first_asking], np.int64),
                **cache.past(),
            }
            outputs: dict[str, np.ndarray | None] = {
                "hidden": hidden[:, start:stop],
                **cache.present(stop - start),
            }
            if scored:
                outputs["question_scores"] = None
            computed = self._llm_pre.run(feeds, outputs)
            cache.advance(stop - start)
            if scored:
                np.maximum(scores[: cache.length], computed["question_scores"], out=scores[: cache.length])
        return hidden, scores

    def run_post(self, hidden: np.ndarray, cache: KvCache, position_ids: np.ndarray) -> np.ndarray:
        """The layers behind M over hidden [1, S, C] at ``position_ids`` int64 [1, S], behind what the cache holds.

        Returns the last row's logits, float32 [vocab].
        """
        logits = np.empty((1, self._shape.vocab_size), np.float32)
        for start in range(0, hidden.shape[1], _ROWS_AT_ONCE):
            block = hidden[:, start : start + _ROWS_AT_ONCE]
            rows = block.shape[1]
            feeds = {
                "hidden": block,
                "position_ids": position_ids[:, start : start + rows],
                "past_length": np.array([cache.length], np.int64),
                **cache.past(),
            }
            self._llm_post.run(feeds, {"logits": logits, **cache.present(rows)})
            cache.advance(rows)
        row: np.ndarray = logits[0]
        return row

    def run_select(
        self,
        scores: np.ndarray,
        video: VideoTokens,
        start: int,
        hidden: np.ndarray,
        cache: KvCache,
        prune: PruneConfig,
        room: int,
    ) -> Selection:
        """Keep the best-scored tokens of each group and all text; ``start`` is the first visual token's row.

        ``cache`` and ``hidden`` [1, T, C] hold all rows; the new cache has ``room`` rows left for decoding.
        """
        group, quota = _quotas(video.group, prune)
        rows = hidden.shape[1] - len(group) + int(quota.sum())
        kept_cache = self.new_cache(self.pre_layers, rows + room)
        feeds = {
            "question_scores": scores,
            "token_group": group,
            "quota": quota,
            "video_start": np.array([start], np.int64),
            "hidden": hidden,
            **cache.past(),
        }
        if "capacity" in self._select.inputs:
            feeds["capacity"] = np.array([kept_cache.capacity], np.int64)
        outputs = dict.fromkeys(("kept", "position_ids", "kept_hidden"))
        computed = self._select.run(feeds, {**outputs, **kept_cache.present(rows)})
        kept_cache.advance(rows)
        return Selection(computed["kept"], computed["kept_hidden"], computed["position_ids"], kept_cache)

    def _settings(self, prune: PruneConfig, frames: int) -> dict[str, np.ndarray]:
        return {
            "segment_counts": prune.segment_counts(frames),
            "cluster_counts": prune.cluster_counts(self.manifest.model.tokens_per_frame),
            "static_threshold": np.array(prune.static_threshold, np.float32),
        }


def positions(start: int, rows: int) -> np.ndarray:
    """Positions of ``rows`` rows from ``start`` on, int64 [1, rows]."""
    return np.arange(start, start + rows, dtype=np.int64)[None]


def _quotas(group: np.ndarray, prune: PruneConfig) -> tuple[np.ndarray, np.ndarray]:
    """The groups among which tokens compete, and how many each keeps: int64 [V] and int64 [G]."""
    if prune.selection == "global":
        group = np.zeros_like(group)
    sizes = np.bincount(group)
    return group, prune.keep_counts(int(sizes.max(initial=0)))[sizes]
