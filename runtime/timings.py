"""Where an answer's time went: stages are noted while they run, and read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

__all__ = ["Stopwatch", "Timings"]


class Span:
    """A stage's begin and end; on a GPU they are events, which are waited for once.

    Args:
        stage: Name of the stage.
        begin: A backend's moment; `end - begin` is seconds.
        end: A later one.
    """

    __slots__ = ("_moments", "_seconds", "stage")

    def __init__(self, stage: str, begin: Any, end: Any) -> None:
        self.stage = stage
        self._moments: tuple[Any, Any] | None = (begin, end)
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds between the two; on a GPU, the first reading waits for them."""
        moments = self._moments
        if moments is not None:
            # In this order: another thread may read meanwhile, and finds the moments or the seconds.
            self._seconds = moments[1] - moments[0]
            self._moments = None
        return self._seconds


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one answer, or of as much of it as there is; reading them changes nothing.

    Attributes:
        spans: What ran, in the order in which it ended.
        decode: Seconds of every token after the first.
    """

    spans: tuple[Span, ...] = ()
    decode: tuple[float, ...] = ()

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage, in the order in which they ran; on a GPU, the first reading waits for the last of them.

        The stages are video (decoding), preprocess, vision (with merging, which the last batch of frames does on its
        way), merge (where it runs apart), prefix (llm_pre over everything before the question), question (llm_pre over
        the question), select, llm_post. A question about a video that was asked about before has no stage up to prefix.
        """
        found: dict[str, float] = {}
        for span in self.spans:
            found[span.stage] = found.get(span.stage, 0.0) + span.seconds
        return found

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in seconds."""
        return {
            "stages_s": self.stages,
            "first_token_s": self.first_token,
            "decode_s": list(self.decode),
            "decode_per_token_s": self.decode_per_token,
            "total_s": self.total,
        }


class Stopwatch:
    """Notes down how long stages take, as they run.

    Args:
        now: Tells the moments at which stages begin and end; on a GPU they are its own, so that no stage waits for it.
        begun: Timings to go on from.
    """

    def __init__(self, now: Callable[[], Any] = perf_counter, begun: Timings | None = None) -> None:
        self._now = now
        self._spans = list(begun.spans) if begun else []
        self._decode = list(begun.decode) if begun else []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as the stage `name`."""
        begin = self._now()
        yield
        self._spans.append(Span(name, begin, self._now()))

    @contextmanager
    def decode_step(self) -> Iterator[None]:
        """Time a block that ends with a token that the host has, by the host's clock."""
        begin = perf_counter()
        yield
        self._decode.append(perf_counter() - begin)

    @property
    def timings(self) -> Timings:
        """What was timed so far; it does not change when more is."""
        return Timings(tuple(self._spans), tuple(self._decode))
