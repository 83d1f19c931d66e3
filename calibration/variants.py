"""Running a bundle with one graph changed, without writing it: what sensitivity is measured with."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from prunevid.bundle import Bundle
from prunevid.runtime.backend_ort import OrtCpuBackend, OrtGraph
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline

_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"


class VariantBackend(OrtCpuBackend):
    """ONNX Runtime on the CPU with a bundle's graphs loaded once; one of them may be another than the bundle's."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        super().__init__(threads)
        self._bundle = bundle
        self._options.add_session_config_entry(_FOLDER_OF_WEIGHTS, str(bundle.path))
        self._loaded: dict[str, OrtGraph] = {}
        self._variant: dict[str, OrtGraph] = {}

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """See :class:`prunevid.runtime.backend.Backend`."""
        if name in self._variant:
            return self._variant[name]
        if name not in self._loaded:
            self._loaded[name] = super().load(bundle, name)
        return self._loaded[name]

    def variant(self, name: str, model: ir.Model) -> Pipeline:
        """The bundle with ``model`` for its graph ``name``, whose weights are in memory or in the bundle's files.

        The bundle's own graph and the last variant are dropped, so that a graph is in memory once.
        """
        self._loaded.pop(name, None)
        self._variant.clear()
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )
        self._variant[name] = OrtGraph(session, Path(f"{name}.onnx"), "cpu")
        return self.pipeline()

    def pipeline(self) -> Pipeline:
        """The bundle as it is now."""
        return Pipeline(self._bundle, Chain(self._bundle, self))
