"""NVIDIA's CUDA runtime, through the package cuda-python: the only module that calls it.

Everything goes through one stream of device 0 (CUDA_VISIBLE_DEVICES says which GPU that is), in the order in which it
was asked for; only `Cuda.synchronize` waits. CUDA's errors come out as PruneVidError with CUDA's name for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib import import_module
from threading import RLock
from typing import Any

from prunevid.errors import PruneVidError

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
_MODULE = "cuda.bindings.runtime"


class Cuda:
    """One GPU and one stream on it. Raises PruneVidError where there is no GPU, no driver or no cuda-python."""

    def __init__(self, runtime: Any = None) -> None:
        """`runtime`: the module that speaks to CUDA, by default cuda-python's."""
        self._runtime = runtime or _import_runtime()
        # Held during every call, and around those that belong together: one thread at a time. Whoever holds it waits
        # for no other thread.
        self.lock = RLock()
        if not self._call("cudaGetDeviceCount"):
            raise PruneVidError("there is no NVIDIA GPU here: run with --backend ort-cpu")
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        kinds = self._runtime.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._on_device = kinds.cudaMemcpyDeviceToDevice
        pools = self._runtime.cudaDeviceAttr.cudaDevAttrMemoryPoolsSupported
        self._has_pools = bool(self._call("cudaDeviceGetAttribute", pools, 0))

    @property
    def stream(self) -> int:
        """The stream's handle, for others that put work on it."""
        return int(self._stream)

    def gpu(self) -> tuple[str, str]:
        """The GPU's name and compute capability ("8.7")."""
        properties = self._call("cudaGetDeviceProperties", 0)
        return properties.name.decode().rstrip("\0"), f"{properties.major}.{properties.minor}"

    def driver(self) -> str:
        """The newest CUDA version that the driver knows ("13.2")."""
        version = self._call("cudaDriverGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"

    def allocate(self, nbytes: int) -> int:
        """Address of `nbytes` of device memory, aligned to 256 bytes. Raises PruneVidError where there is no room."""
        if self._has_pools:
            return int(self._call("cudaMallocAsync", nbytes, self._stream, nbytes=nbytes))
        return int(self._call("cudaMalloc", nbytes, nbytes=nbytes))

    def free(self, pointer: int) -> None:
        """Give back what `allocate` gave, when all that was begun before is done with it."""
        if self._has_pools:
            self._call("cudaFreeAsync", pointer, self._stream)
        else:
            self._call("cudaFree", pointer)

    def allocate_pinned(self, nbytes: int) -> int:
        """Address of `nbytes` of host memory that the GPU copies from and to without waiting; never given back."""
        return int(self._call("cudaMallocHost", nbytes, nbytes=nbytes))

    def upload(self, source: int, target: int, nbytes: int) -> None:
        """Begin to copy from pinned host memory to the device."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._to_device, self._stream)

    def download(self, source: int, target: int, nbytes: int) -> None:
        """Begin to copy from the device to pinned host memory."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._to_host, self._stream)

    def copy(self, source: int, target: int, nbytes: int) -> None:
        """Begin to copy within the device."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._on_device, self._stream)

    def copy_rows(self, source: int, source_pitch: int, target: int, target_pitch: int, nbytes: int, rows: int) -> None:
        """Begin to copy `rows` pieces of `nbytes` each within the device, which lie so many bytes apart."""
        kind = self._on_device
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, nbytes, rows, kind, self._stream)

    def clear(self, pointer: int, nbytes: int) -> None:
        """Begin to set device memory to zeros."""
        self._call("cudaMemsetAsync", pointer, 0, nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait until everything that was begun is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def now(self) -> Moment:
        """The moment at which the GPU will have done everything that was begun so far."""
        event = self._call("cudaEventCreate")
        self._call("cudaEventRecord", event, self._stream)
        return Moment(self, event)

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Seconds from one event to another; waits for both."""
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", begin, end)) / 1000

    def capture(self, work: Callable[[], None]) -> CapturedWork:
        """Note down what `work` puts on the stream, without running it.

        Raises PruneVidError where CUDA cannot capture it, and whatever `work` raises; the stream goes on as before.
        """
        with self.lock:
            return self._capture(work)

    def _capture(self, work: Callable[[], None]) -> CapturedWork:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            # Ends the capture that failed; its own error says nothing more, and must not be met by the next call.
            self._runtime.cudaStreamEndCapture(self._stream)
            self._runtime.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return CapturedWork(self, self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, work: Any) -> None:
        """Put captured work on the stream."""
        self._call("cudaGraphLaunch", work, self._stream)

    def destroy(self, function: str, handle: Any) -> None:
        """Give a handle back; at the end of the process CUDA may be gone before it, which is no error."""
        with self.lock:
            getattr(self._runtime, function)(handle)

    def _call(self, function: str, *arguments: Any, nbytes: int = 0) -> Any:
        # What a thread puts on the stream while another one captures would become a part of what that captures.
        with self.lock:
            error, *values = getattr(self._runtime, function)(*arguments)
            if int(error):
                # Errors stay until they are asked for: the next call must not meet this one.
                self._runtime.cudaGetLastError()
                raise PruneVidError(self._sentence(function, error, nbytes))
        return values[0] if values else None

    def _sentence(self, function: str, error: Any, nbytes: int) -> str:
        name = str(error.name)
        if name == _OUT_OF_MEMORY:
            free, total = ((value or 0) / 1e6 for value in self._runtime.cudaMemGetInfo()[1:])
            return (
                f"the GPU has no room for another {nbytes / 1e6:,.0f} MB ({free:,.0f} of {total:,.0f} MB are free): "
                "use fewer frames or a smaller model, or end other programs that use the GPU"
            )
        if name == "cudaErrorNoDevice":
            return f"there is no NVIDIA GPU here ({name}): run with --backend ort-cpu"
        if name == "cudaErrorInsufficientDriver":
            _, driver = self._runtime.cudaDriverGetVersion()
            if not driver:
                return f"there is no NVIDIA driver here ({name}): run with --backend ort-cpu"
            _, wanted = self._runtime.cudaRuntimeGetVersion()
            return (
                f"the NVIDIA driver is too old for this cuda-python ({name}): it knows CUDA up to {driver // 1000}."
                f"{driver % 1000 // 10}, cuda-python wants {wanted // 1000}: pip install "
                f"'cuda-python=={driver // 1000}.*'"
            )
        text = self._runtime.cudaGetErrorString(error)[1]
        return f"CUDA failed in {function}: {name} ({text.decode() if isinstance(text, bytes) else text})"


class Moment:
    """A moment on the stream; `later - earlier` is seconds, and waits for the later one."""

    def __init__(self, cuda: Cuda, event: Any) -> None:
        self._cuda, self._event = cuda, event
        weakref.finalize(self, cuda.destroy, "cudaEventDestroy", event).atexit = False

    def __sub__(self, earlier: Moment) -> float:
        return self._cuda.seconds_between(earlier._event, self._event)


class CapturedWork:
    """Work that was captured once, and is launched as a whole."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda, self._handle = cuda, handle
        weakref.finalize(self, cuda.destroy, "cudaGraphExecDestroy", handle).atexit = False

    def launch(self) -> None:
        """Put it on the stream."""
        self._cuda.launch(self._handle)


def _import_runtime() -> Any:
    try:
        return import_module(_MODULE)
    except ImportError as error:
        raise PruneVidError(f"cuda-python cannot be loaded ({error}): pip install cuda-python") from error
