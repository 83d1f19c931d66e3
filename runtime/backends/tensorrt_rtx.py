"""TensorRT for RTX: engines that `prunevid build --device rtx` put into a bundle, whose kernels are compiled here.

The compiler runs when an engine is prepared, and again, in the background, for sizes that come up. What it made is
kept in the user's home under `.cache/prunevid/tensorrt-rtx`, by the engine's checksum, the GPU, the driver and the
release. Sources: TensorRT for RTX's documentation, "Working with Runtime Cache", "Working with RTX CUDA Graphs",
"Dynamic Shapes: Advanced Topics"; NvInferRuntime.h, IRuntimeConfig and IRuntimeCache.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Mapping
from typing import Any

from prunevid.bundle import Bundle
from prunevid.bundle.sections.engine_sets import PRODUCTS
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.engine_context import Prepared, Tools
from prunevid.runtime.backends.kernel_store import KernelStore
from prunevid.runtime.backends.tensorrt import TensorRtBackend

_LOG = logging.getLogger("prunevid")
# With every question and video, its sizes are others: kernels and CUDA graphs for them would never be used again.
_NEVER_ALIKE = ("select",)


def open_tensorrt_rtx(
    bundle: Bundle, threads: int | None = None, *, cuda: Cuda | None = None, trt: Any = None
) -> TensorRtBackend:
    """The backend on a bundle's TensorRT-RTX engines. Raises PruneVidError where it has none that run here."""
    return TensorRtBackend(bundle, TensorRtRtx(), cuda=cuda, trt=trt)


class TensorRtRtx:
    """TensorRT for RTX, whose engines are bound to a release and to compute capabilities."""

    product, module, install = PRODUCTS["tensorrt-rtx"], "tensorrt_rtx", "pip install 'prunevid[rtx]'"

    def __init__(self) -> None:
        self._store = KernelStore(self.product.name)
        self._told = False

    def prepare(self, tools: Tools, engine: Any, graph: str, checksum: str, profiles: int) -> Prepared:
        """Contexts whose kernels are compiled, where they are not kept from an earlier time."""
        trt, config = tools.trt, engine.create_runtime_config()
        if config is None:
            return Prepared([None] * profiles)
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies, graphs = trt.DynamicShapesKernelSpecializationStrategy, trt.CudaGraphStrategy
        alike = graph not in _NEVER_ALIKE
        # EAGER would compile before it runs, with every video's own number of tokens; LAZY does so beside it.
        config.dynamic_shapes_kernel_specialization_strategy = strategies.LAZY if alike else strategies.NONE
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if alike else graphs.DISABLED
        gpu, capability = tools.cuda.gpu()
        device = {"gpu": gpu, "capability": capability, "driver": tools.cuda.driver()}
        cache = RuntimeCache(config, self._store, {"engine": checksum, "release": trt.__version__, **device})
        if cache.is_new and not self._told:
            self._told = True
            _LOG.warning("note: TensorRT-RTX compiles kernels for %s, which the next start finds again", gpu)
        contexts = [engine.create_execution_context(config) for _ in range(profiles)]
        cache.keep()
        return Prepared(contexts, cache, captures=True)


class RuntimeCache:
    """The kernels that are compiled for an engine; kept when that was prepared, and with what came up until its end.

    It must live as long as the contexts that were made with `config`: TensorRT-RTX does not hold it.
    """

    def __init__(self, config: Any, store: KernelStore, key: Mapping[str, str]) -> None:
        self._kernels = _Kernels(config, store, key)
        self.is_new = self._kernels.is_new
        self.keep = self._kernels.keep
        # Also at the end of the process.
        weakref.finalize(self, self._kernels.keep)


class _Kernels:
    def __init__(self, config: Any, store: KernelStore, key: Mapping[str, str]) -> None:
        self._config, self._store, self._key = config, store, key
        self._cache = config.create_runtime_cache()
        content = None if self._cache is None else store.read(key)
        if content is not None and not self._cache.deserialize(content):
            # Of another environment than the key tells, such as a newer driver: TensorRT-RTX checks that itself.
            store.discard(key)
            content = None
        self.is_new = content is None
        self._last = _digest(content or b"")
        self._is_used = self._cache is not None and config.set_runtime_cache(self._cache)
        if not self._is_used:
            store.tell("TensorRT-RTX takes no cache for them")

    def keep(self) -> None:
        """Write what has been compiled since the last time."""
        made = self._cache.serialize() if self._is_used else None
        if made is None:
            return
        content = bytes(made)
        if _digest(content) != self._last:
            self._last = _digest(content)
            self._store.write(self._key, content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
