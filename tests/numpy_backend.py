"""A bundle's graphs in NumPy, by ONNX's own reference implementation: what every standard operator should compute."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

from prunevid.bundle import Bundle
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import OrtCpuBackend, OrtGraph


def run_in_numpy(file: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a graph of standard operators and functions of them, by name."""
    evaluator = ReferenceEvaluator(str(file))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        outputs = evaluator.run(None, dict(feeds))
    return {name: np.asarray(array) for name, array in zip(evaluator.output_names, outputs, strict=True)}


class RecordingBackend(OrtCpuBackend):
    """ONNX Runtime on the CPU; `runs` has every run's graph, feeds and outputs, in copies."""

    def __init__(self) -> None:
        super().__init__(1)
        self.runs: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """Load a graph of the bundle."""
        graph = super().load(bundle, name)
        run = graph.run

        def recorded(feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
            before = {key: np.array(array) for key, array in feeds.items()}
            computed = run(feeds, outputs)
            self.runs.append((name, before, {key: np.array(array) for key, array in computed.items()}))
            return computed

        graph.run = recorded  # type: ignore[method-assign]
        return graph
