"""TensorRT: the engines that `prunevid build` put into a bundle, on the GPU for which they were built.

There are two of it: TensorRT, and TensorRT for RTX (tensorrt_rtx.py). What runs engines is the same for both; a
`Library` is what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from prunevid.bundle import Bundle
from prunevid.bundle.sections.engine_sets import PRODUCTS, EngineDevice, EngineProduct, EngineSpec, engines_for
from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.runtime.backends.arrays import Array, Slot
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.device_memory import DeviceMemory
from prunevid.runtime.backends.engine_context import EngineContext, Prepared, ScratchMemory, Tools
from prunevid.runtime.backends.engine_profiles import choose_profile, largest_past

# A decode step's past is filled up to a multiple of this many rows: one CUDA graph serves that many steps, and the
# masked rows cost little beside the weights, which every step reads.
_PAST_STEP = 256


class Library(Protocol):
    """What one of NVIDIA's two libraries has of its own.

    Attributes:
        product: Whose engines it runs.
        module: Its Python package.
        install: What to do where that is missing.
    """

    product: EngineProduct
    module: str
    install: str

    def prepare(self, tools: Tools, engine: Any, graph: str, checksum: str, profiles: int) -> Prepared:
        """Execution contexts of a graph's engine, one per profile, whose memory the caller manages.

        checksum: the SHA-256 of the engine's file.
        """


class TensorRt:
    """TensorRT, of whose engines each is bound to a release and a GPU."""

    product, module = PRODUCTS["tensorrt"], "tensorrt"
    install = "on a Jetson it is JetPack's python3-libnvinfer, elsewhere pip install 'prunevid[tensorrt]'"

    def prepare(self, tools: Tools, engine: Any, graph: str, checksum: str, profiles: int) -> Prepared:
        """Contexts alone: kernels are in the engine."""
        strategy = tools.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return Prepared([engine.create_execution_context(strategy) for _ in range(profiles)])


def open_tensorrt(bundle: Bundle, threads: int | None = None) -> TensorRtBackend:
    """The backend on a bundle's TensorRT engines. Raises PruneVidError where it has none that run here."""
    return TensorRtBackend(bundle)


class TensorRtBackend:
    """A bundle's engines. Raises PruneVidError where there are none, or none that run here."""

    def __init__(
        self, bundle: Bundle, library: Library | None = None, *, cuda: Cuda | None = None, trt: Any = None
    ) -> None:
        """Open the bundle's engines.

        Args:
            bundle: With engines for this device.
            library: What runs engines, by default TensorRT.
            cuda: The GPU, by default what is installed.
            trt: The library's module, by default the one that is installed.
        """
        library = library or TensorRt()
        product = library.product
        if not bundle.manifest.engines_of(product.name):
            raise PruneVidError(
                f"{bundle.path} has no {product.title} engines: "
                f"build them {product.where} with `{product.build} {bundle.path}`"
            )
        trt = trt or _import(library)
        cuda = cuda or Cuda()
        gpu, capability = cuda.gpu()
        here = EngineDevice(trt.__version__, gpu, capability, cuda.driver())
        engines = engines_for(bundle.manifest.engine_sets, product.name, here).graphs
        self.name = product.name
        self.memory = DeviceMemory(cuda)
        self.now = cuda.now
        self._engines, self._library = engines, library
        self._tools = Tools(product.title, trt, make_logger(trt), cuda, self.memory, ScratchMemory(self.memory))
        # The standard plugins, of which engines may contain some; the prunevid operators are in the engines themselves.
        trt.init_libnvinfer_plugins(self._tools.logger, "")
        self._runtime = trt.Runtime(self._tools.logger)
        # Graphs without a past have room for none.
        self._largest_past = min(filter(None, map(largest_past, engines.values())), default=0)

    def load(self, bundle: Bundle, name: str) -> EngineGraph:
        """Load a graph of the bundle."""
        return EngineGraph(self._tools, self._library, self._runtime, bundle, name, self._engines[name])

    def past_rows(self, length: int) -> int:
        """The next multiple of 256, if the engines take so many: then the same CUDA graph serves 256 decode steps."""
        padded = (length // _PAST_STEP + 1) * _PAST_STEP
        return max(length, min(padded, self._largest_past))


class EngineGraph:
    """A deserialized engine, with a context for each of its profiles."""

    def __init__(
        self, tools: Tools, library: Library, runtime: Any, bundle: Bundle, name: str, engine: EngineSpec
    ) -> None:
        self._cuda = tools.cuda
        graph = bundle.manifest.graphs[name]
        file = bundle.file(engine.file)
        # Mapped, not read: on a Jetson, host and GPU share the memory that holds the weights.
        with reading(file):
            content = np.memmap(file, np.uint8, "r")
        self._engine = runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise PruneVidError(
                f"{library.product.title} {tools.trt.__version__} cannot load {file}: {tools.logger.last_error()}"
            )
        self.inputs = tuple(spec.name for spec in graph.inputs)
        self.outputs = tuple(spec.name for spec in graph.outputs)
        self._slots = {
            spec.name: Slot(engine.file, spec.name, np.dtype(spec.dtype), spec.shape)
            for spec in (*graph.inputs, *graph.outputs)
        }
        found = {self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)}
        if found != {*self.inputs, *self.outputs}:
            raise PruneVidError(
                f"{file} is no engine of this bundle's {name}: build it again with `{library.product.build}`"
            )
        tools.scratch.reserve(self._engine.device_memory_size_v2)
        checksum = bundle.manifest.files[engine.file].sha256
        prepared = library.prepare(tools, self._engine, name, checksum, len(engine.profiles))
        self._contexts = [
            EngineContext(tools, self._engine, graph, number, prepared) for number in range(len(engine.profiles))
        ]
        self._value_inputs = sorted({value for profile in engine.profiles for value in profile.values})
        self._name, self._spec, self._build = name, engine, library.product.build
        self._chosen: dict[object, int] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        """Compute the named `outputs` from `feeds`."""
        feeds = {name: self._slots[name].readable(feeds[name]) for name in self.inputs}
        for name, target in outputs.items():
            if target is not None:
                self._slots[name].writable(target)
        with self._cuda.lock:
            return self._run(feeds, outputs)

    def _run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        shapes = tuple(array.shape for array in feeds.values())
        values = tuple(int(np.asarray(feeds[name]).item()) for name in self._value_inputs)
        number = self._chosen.get((shapes, values))
        if number is None:
            named = dict(zip(self.inputs, shapes, strict=True)), dict(zip(self._value_inputs, values, strict=True))
            number = choose_profile(self._name, self._spec, *named, self._build)
            # Only the last choice is kept: a decode step has the shapes of the one before, and no other run has.
            self._chosen = {(shapes, values): number}
        return self._contexts[number].run(feeds, outputs)


def make_logger(trt: Any) -> Any:
    """A logger of TensorRT's module `trt` that says nothing."""

    class Logger(trt.ILogger):
        """Remembers the last error: TensorRT's functions only say that there was one."""

        def __init__(self) -> None:
            super().__init__()
            self._last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._last = message.strip()

        def last_error(self) -> str:
            return self._last or "it gives no reason"

    return Logger()


def _import(library: Library) -> Any:
    try:
        return import_module(library.module)
    except ImportError as error:
        raise PruneVidError(
            f"{library.product.title}'s Python package cannot be loaded ({error}): {library.install}"
        ) from error
