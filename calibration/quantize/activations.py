"""What goes into linear layers while a bundle answers questions: magnitudes, moments and a sample of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunevid.bundle import Bundle
from prunevid.calibration.quantize.linears import Linear, find_linears, load_graph
from prunevid.calibration.quantize.variants import VariantBackend
from prunevid.calibration.quantize.watched import watch_input
from prunevid.calibration.questions import AskedVideo
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.text.sampling import SamplingConfig

_MOST_ROWS = 128
_QUESTIONS = 4
_FIRST_TOKEN = SamplingConfig(max_new_tokens=1)


@dataclass(frozen=True)
class Activations:
    """Inputs of a linear layer: mean magnitude float32 [K] of every channel, and a sample of rows float32 [n, K].

    largest: magnitude float32 [K] that no input of the channel had more of.
    moments: float32 [ceil(K / 128), 128, 128], the mean over all rows of x x^T / |x|^2, of every 128 channels among
        themselves; channels beyond K are zero. Every row counts alike: some tokens have activations a hundred times as
        large as all others', which would be all that is seen.
    """

    magnitude: np.ndarray
    rows: np.ndarray
    largest: np.ndarray
    moments: np.ndarray


def input_groups(model: ir.Model) -> dict[str, list[Linear]]:
    """Linear layers by the name of their input: query, key and value share one, as gate and up do."""
    groups: dict[str, list[Linear]] = defaultdict(list)
    for linear in find_linears(model):
        source = linear.node.inputs[0]
        assert source is not None  # find_linears says so
        groups[str(source.name)].append(linear)
    return dict(groups)


def observe(
    bundle: Bundle, name: str, videos: Sequence[AskedVideo], threads: int | None, advance: Callable[[], None]
) -> dict[str, Activations]:
    """Inputs of the linear layers of the graph `name`, by the input's name, while questions are prefilled, pruned."""
    model = load_graph(bundle.file(bundle.manifest.graphs[name].file))
    groups = list(input_groups(model).items())
    for index, (_, linears) in enumerate(groups):
        watch_input(model.graph, linears[0], index)
    seen = [_Seen() for _ in groups]

    def take(computed: Mapping[str, Array]) -> None:
        for index, one in enumerate(seen):
            one.add({what: np.array(computed[f"watched_{what}.{index}"]) for what in _Seen.WATCHED})

    pipeline = VariantBackend(bundle, threads).variant(name, model, take)
    for video in videos:
        session = pipeline.open(video.path)
        for question in video.questions[:_QUESTIONS]:
            "".join(session.stream(question.text, _FIRST_TOKEN))
        advance()
    return {source: one.summary() for (source, _), one in zip(groups, seen, strict=True)}


class _Seen:
    """What the runs of a graph have shown of one input so far."""

    WATCHED = ("total", "moments", "largest", "count", "rows")

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._largest: np.ndarray | None = None
        self._rows: list[np.ndarray] = []

    def add(self, computed: Mapping[str, np.ndarray]) -> None:
        """Take what one run computed, by the names of `WATCHED`."""
        for what in ("total", "moments", "count"):
            self._sums[what] = self._sums[what] + computed[what] if what in self._sums else computed[what]
        largest = computed["largest"]
        self._largest = largest if self._largest is None else np.maximum(self._largest, largest)
        self._rows.append(computed["rows"])

    def summary(self) -> Activations:
        """All runs together."""
        assert self._largest is not None  # at least one question was asked
        count = np.float32(self._sums["count"][0])
        return Activations(
            self._sums["total"] / count, _thinned(self._rows), self._largest, self._sums["moments"] / count
        )


def _thinned(rows: Sequence[np.ndarray]) -> np.ndarray:
    """At most 128 of all rows, evenly spread over them."""
    together = np.concatenate(rows)
    chosen = np.linspace(0, len(together) - 1, min(len(together), _MOST_ROWS)).round().astype(np.int64)
    sample: np.ndarray = together[chosen]
    return sample
