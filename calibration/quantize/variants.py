"""Running a bundle with one graph changed, without writing it: what sensitivity is measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from prunevid.bundle import Bundle
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import OrtCpuBackend, OrtGraph, open_session
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline
from prunevid.text.chat import ChatPrompt

_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"


class VariantBackend(OrtCpuBackend):
    """ONNX Runtime on the CPU with a bundle's graphs loaded once; one of them may be another than the bundle's."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        super().__init__(threads)
        self._bundle = bundle
        self._options.add_session_config_entry(_FOLDER_OF_WEIGHTS, str(bundle.path))
        self.prepare(bundle)
        self._prompt = ChatPrompt.of(bundle)
        self._loaded: dict[str, OrtGraph] = {}
        self._variant: dict[str, OrtGraph] = {}

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """Load a graph of the bundle."""
        if name in self._variant:
            return self._variant[name]
        if name not in self._loaded:
            self._loaded[name] = super().load(bundle, name)
        return self._loaded[name]

    def variant(
        self, name: str, model: ir.Model, watch: Callable[[Mapping[str, Array]], None] | None = None
    ) -> Pipeline:
        """The bundle with `model` for its graph `name`, whose weights are in memory or in the bundle's files.

        The bundle's own graph and the last variant are dropped, so that a graph is in memory once. `watch` is given
        the outputs of every run that nobody else asks for.
        """
        self._loaded.pop(name, None)
        self._variant.clear()
        file = Path(f"{name}.onnx")
        session = open_session(file, self._options, ["CPUExecutionProvider"], ir.to_proto(model).SerializeToString())
        if watch is None:
            self._variant[name] = OrtGraph(session, file, "cpu")
        else:
            declared = {output.name for output in self._bundle.manifest.graphs[name].outputs}
            self._variant[name] = _WatchedGraph(session, file, declared, watch)
        return self.pipeline()

    def pipeline(self) -> Pipeline:
        """The bundle as it is now."""
        return Pipeline(self._bundle, Chain(self._bundle, self), self._prompt)


class _WatchedGraph(OrtGraph):
    """A graph with outputs beyond those the bundle's has (`declared`), which go to `watch` at every run."""

    def __init__(
        self,
        session: Any,
        file: Path,
        declared: set[str],
        watch: Callable[[Mapping[str, Array]], None],
    ) -> None:
        super().__init__(session, file, "cpu")
        self._watched = [name for name in self.outputs if name not in declared]
        self._watch = watch

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        """Compute the named `outputs` from `feeds`."""
        computed = super().run(feeds, {**outputs, **dict.fromkeys(self._watched)})
        self._watch({name: computed.pop(name) for name in self._watched})
        return computed
