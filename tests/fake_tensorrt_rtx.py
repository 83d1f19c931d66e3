"""TensorRT for RTX without a GPU: what it has beside fake_tensorrt.py, kernels that are compiled when they are needed.

A context is made with a configuration. It "compiles" kernels when it is made and, if the configuration asks for that,
for every size that it runs with; what lies in the configuration's runtime cache is not compiled again. A cache is held
by nobody but the caller: contexts notice when it has gone before them, where the real ones crash.
"""

from __future__ import annotations

import enum
import json
import weakref
from pathlib import Path
from typing import Any

from fake_cuda import FakeCuda
from fake_tensorrt import Context, Engine, FakeTensorRt, put_engines, write_engines

from prunevid.bundle import Bundle, Manifest
from prunevid.bundle.sections.engine_sets import EngineSet

VERSION = "1.7.1.116"


def add_rtx_engines(
    bundle: Path,
    frames: int | None = None,
    text: int = 1024,
    release: str = VERSION,
    capabilities: tuple[str, ...] = ("8.6", "8.7", "12.0"),
) -> Bundle:
    """Put engines of this kind into a bundle, with the profiles that `prunevid build --device rtx` would give them."""
    manifest, engines = write_engines(bundle, "rtx.engine", frames, text)
    return put_engines(bundle, manifest, EngineSet("tensorrt-rtx", release, capabilities, engines))


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class FakeTensorRtRtx(FakeTensorRt):
    """The module `tensorrt_rtx`.

    compiled: what had to be compiled so far. configs: the last one of each graph. dangling: caches that went too early.
    """

    __version__ = VERSION
    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, cuda: FakeCuda, manifest: Manifest, **options: Any) -> None:
        super().__init__(cuda, manifest, **options)
        self.compiled: list[str] = []
        self.configs: dict[str, RuntimeConfig] = {}
        self.dangling = 0
        # What a blob is held against.
        self.environment = [VERSION, cuda.driver]

    @property
    def engine_type(self) -> type[Engine]:
        return RtxEngine


class RtxEngine(Engine):
    trt: FakeTensorRtRtx

    def create_runtime_config(self) -> RuntimeConfig:
        config = self.trt.configs[self.name] = RuntimeConfig(self.trt)
        return config

    def create_execution_context(self, runtime_config: RuntimeConfig) -> Context:  # type: ignore[override]
        assert runtime_config.get_execution_context_allocation_strategy() == "user managed"
        return RtxContext(self, runtime_config)


class RuntimeConfig:
    """As IRuntimeConfig."""

    def __init__(self, trt: FakeTensorRtRtx) -> None:
        self._trt = trt
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self._strategy: Any = None
        self._cache: weakref.ref[RuntimeCache] | None = None

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self._trt)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self._cache = weakref.ref(cache)
        return True

    def get_runtime_cache(self) -> RuntimeCache | None:
        return self._cache() if self._cache else None


class RuntimeCache:
    """As IRuntimeCache."""

    def __init__(self, trt: FakeTensorRtRtx) -> None:
        self._trt = trt
        self._kernels: set[str] = set()

    def deserialize(self, blob: Any) -> bool:
        environment, kernels = json.loads(bytes(blob))
        if environment != self._trt.environment:
            return False
        self._kernels |= set(kernels)
        return True

    def serialize(self) -> bytes:
        return json.dumps([self._trt.environment, sorted(self._kernels)]).encode()

    def reset(self) -> bool:
        self._kernels.clear()
        return True


class RtxContext(Context):
    """As IExecutionContext."""

    trt: FakeTensorRtRtx

    def __init__(self, engine: RtxEngine, config: RuntimeConfig) -> None:
        super().__init__(engine)
        self._config = config
        self._cache = config._cache
        self._need("any size")

    def execute_async_v3(self, stream_handle: int) -> bool:
        captures = self._config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # "Nested or concurrent capture on the same stream is not permitted."
        assert not (captures and self.trt.cuda.captures_now)
        strategies = DynamicShapesKernelSpecializationStrategy
        if self._config.dynamic_shapes_kernel_specialization_strategy is not strategies.NONE:
            self._need(str(sorted(self.shapes.items())))
        return super().execute_async_v3(stream_handle)

    def _need(self, size: str) -> None:
        cache = self._cache() if self._cache is not None else None
        if self._cache is not None and cache is None:
            self.trt.dangling += 1
        elif cache is None:
            self.trt.compiled.append(f"{self.engine.name}: {size}")
        elif (kernel := f"{self.engine.name}: {size}") not in cache._kernels:
            cache._kernels.add(kernel)
            self.trt.compiled.append(kernel)

    def __del__(self) -> None:
        if self._cache is not None and self._cache() is None:
            self.trt.dangling += 1
