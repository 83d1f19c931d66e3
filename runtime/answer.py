"""What an answer comes with: its text, and where the time, the tokens and the memory went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prunevid.cost import TokenCounts
from prunevid.runtime.timings import Timings

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """A question's answer.

    token_counts: visual tokens before and after each stage, and text tokens. kv_bytes: of the KV cache that the
    first decode step reads; kv_bytes_unpruned: what it would read with nothing pruned. skipped_frames:
    unreadable frames of the file. finish_reason: `stop` at an end token or stop string, else `length`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    token_counts: TokenCounts
    kv_bytes: int
    kv_bytes_unpruned: int
    skipped_frames: int
    pruned: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = self.token_counts
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "pruned": self.pruned,
            "skipped_frames": self.skipped_frames,
            "tokens": {
                "visual": counts.visual,
                "merged": counts.merged,
                "kept": counts.kept,
                "text": counts.text,
                "retained": counts.retained,
            },
            "kv_bytes": self.kv_bytes,
            "kv_bytes_unpruned": self.kv_bytes_unpruned,
            "timings": self.timings.to_dict(),
        }
