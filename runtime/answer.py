"""What an answer comes with: its text, and where the time, the tokens and the memory went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from prunevid.cost import TokenCounts

FinishReason = Literal["stop", "length"]


@dataclass
class Timings:
    """Wall-clock seconds of one answer.

    stages: by name, in the order in which they ran: video (decoding), preprocess, vision (with merging, which the last
    batch of frames does on its way), merge (where it runs apart), prefix (llm_pre over everything before the question),
    question (llm_pre over the question), select, llm_post. A question about a video that was asked about before has
    no stage up to prefix. decode: one entry for every token after the first.
    now: tells the moments at which stages begin and end; on a GPU they are its own, so that no stage waits for it.
    """

    now: Callable[[], Any] = perf_counter
    decode: list[float] = field(default_factory=list)
    _stages: dict[str, float] = field(default_factory=dict)
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of every stage; on a GPU, waits for the last of them."""
        for name, begin, end in self._spans:
            self._stages[name] = self._stages.get(name, 0.0) + (end - begin)
        self._spans.clear()
        return self._stages

    @property
    def first_token(self) -> float:
        """Time to first token: all stages."""
        return sum(self.stages.values())

    @property
    def total(self) -> float:
        """Time to the last token."""
        return self.first_token + sum(self.decode)

    @property
    def decode_per_token(self) -> float | None:
        """Mean time of a decode step, None where there was none."""
        return sum(self.decode) / len(self.decode) if self.decode else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as the stage ``name``."""
        begin = self.now()
        yield
        self._spans.append((name, begin, self.now()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in seconds."""
        return {
            "stages_s": dict(self.stages),
            "first_token_s": self.first_token,
            "decode_s": list(self.decode),
            "decode_per_token_s": self.decode_per_token,
            "total_s": self.total,
        }


@dataclass(frozen=True)
class Answer:
    """A question's answer.

    token_counts: visual tokens before and after each stage, and text tokens. kv_bytes: of the KV cache that the
    first decode step reads; kv_bytes_unpruned: what it would read with nothing pruned. skipped_frames:
    unreadable frames of the file. finish_reason: ``stop`` at an end token or stop string, else ``length``.
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
