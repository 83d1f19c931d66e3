"""A GPU that is none: cuda-python's functions over host memory, for tests on machines without a GPU.

It is strict where a real GPU is treacherous. Work on the stream is done as late as possible, when somebody waits for
it; memory is poisoned when it is handed out and when it is given back; a copy from ordinary host memory takes the
values at once, one from pinned memory when its turn comes; nothing may wait or allocate while work is captured.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from time import perf_counter
from types import SimpleNamespace
from typing import Any

Result = tuple[Any, ...]
_POISON = 0xFF  # of floats, a NaN
_ALIGNMENT = 256


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Event:
    at: float | None = None


class FakeCuda:
    """What `cuda.bindings.runtime` has, as far as the runtime uses it. memory: bytes that the GPU has."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host", cudaMemcpyDeviceToDevice="on device"
    )
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrMemoryPoolsSupported=115)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, memory: int = 1 << 32, pools: bool = True, driver: int = 13020) -> None:
        self.memory, self.pools, self.driver = memory, pools, driver
        self.used = 0
        self.calls: list[str] = []
        self.launches = self.captures = 0
        self._blocks: dict[int, tuple[Any, int]] = {}
        # What was given back is kept, poisoned, so that a late reader finds NaNs instead of crashing.
        self._freed: list[Any] = []
        self._pinned: list[tuple[int, int]] = []
        self._stream: list[Callable[[], object]] = []
        self._capture: list[Callable[[], object]] | None = None
        self._capture_failed = False

    # --- what TensorRT and ONNX Runtime do with the stream --------------------------------------------------

    @property
    def captures_now(self) -> bool:
        """Whether what is put on the stream is captured."""
        return self._capture is not None

    def put(self, work: Callable[[], object]) -> None:
        """Put work on the stream, or into what is being captured."""
        (self._stream if self._capture is None else self._capture).append(work)

    def finish(self) -> Error:
        """Do all work on the stream."""
        if self._capture is not None:
            self._capture_failed = True
            return Error.cudaErrorStreamCaptureUnsupported
        while self._stream:
            self._stream.pop(0)()
        return Error.cudaSuccess

    # --- the device -----------------------------------------------------------------------------------------

    def cudaGetDeviceCount(self) -> Result:
        return Error.cudaSuccess, 1

    def cudaSetDevice(self, device: int) -> Result:
        return (Error.cudaSuccess if device == 0 else Error.cudaErrorNoDevice,)

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> Result:
        return Error.cudaSuccess, int(self.pools)

    def cudaGetDeviceProperties(self, device: int) -> Result:
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=7)

    def cudaDriverGetVersion(self) -> Result:
        return Error.cudaSuccess, self.driver

    def cudaGetLastError(self) -> Result:
        return (Error.cudaSuccess,)

    def cudaGetErrorString(self, error: Error) -> Result:
        return Error.cudaSuccess, f"the text of {error.name}".encode()

    def cudaStreamCreateWithFlags(self, flags: int) -> Result:
        return Error.cudaSuccess, 7

    # --- memory ---------------------------------------------------------------------------------------------

    def cudaMemGetInfo(self) -> Result:
        return Error.cudaSuccess, self.memory - self.used, self.memory

    def cudaMalloc(self, nbytes: int) -> Result:
        self.calls.append("cudaMalloc")
        if self._capture is not None:
            self._capture_failed = True
            return Error.cudaErrorStreamCaptureUnsupported, None
        if self.used + nbytes > self.memory:
            return Error.cudaErrorMemoryAllocation, None
        raw = (ctypes.c_uint8 * (nbytes + _ALIGNMENT))()
        pointer = -(-ctypes.addressof(raw) // _ALIGNMENT) * _ALIGNMENT
        ctypes.memset(pointer, _POISON, nbytes)
        self._blocks[pointer] = raw, nbytes
        self.used += nbytes
        return Error.cudaSuccess, pointer

    def cudaMallocAsync(self, nbytes: int, stream: int) -> Result:
        return self.cudaMalloc(nbytes)

    def cudaFree(self, pointer: int) -> Result:
        self.calls.append("cudaFree")
        error = self.finish()
        if error:
            return (error,)
        return self.cudaFreeAsync(pointer, 7)

    def cudaFreeAsync(self, pointer: int, stream: int) -> Result:
        raw, nbytes = self._blocks.pop(pointer)
        self._freed.append(raw)
        self.used -= nbytes
        self.put(lambda: ctypes.memset(pointer, _POISON, nbytes))
        return (Error.cudaSuccess,)

    def cudaMallocHost(self, nbytes: int) -> Result:
        raw = (ctypes.c_uint8 * nbytes)()
        self._freed.append(raw)
        self._pinned.append((ctypes.addressof(raw), nbytes))
        return Error.cudaSuccess, ctypes.addressof(raw)

    def cudaMemsetAsync(self, pointer: int, value: int, nbytes: int, stream: int) -> Result:
        if not self._on_device(pointer, nbytes):
            return (Error.cudaErrorInvalidValue,)
        self.put(lambda: ctypes.memset(pointer, value, nbytes))
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: str, stream: int) -> Result:
        return self.cudaMemcpy2DAsync(target, nbytes, source, nbytes, nbytes, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: str,
        stream: int,
    ) -> Result:
        ends = (target, target_pitch), (source, source_pitch)
        devices = [self._on_device(at, pitch * (height - 1) + width) for at, pitch in ends]
        if width > min(target_pitch, source_pitch) or devices != [kind != "to host", kind != "to device"]:
            return (Error.cudaErrorInvalidValue,)

        def copy() -> None:
            for row in range(height):
                ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

        self.put(copy)
        if kind != "on device" and not self._is_pinned(source if kind == "to device" else target):
            return (self.finish(),)
        return (Error.cudaSuccess,)

    def adopt(self, pointer: int, nbytes: int, owner: Any) -> None:
        """Take memory of another allocator for the device's, if it is not."""
        if not self._on_device(pointer, nbytes):
            self._blocks[pointer] = owner, nbytes

    def _on_device(self, pointer: int, nbytes: int) -> bool:
        return any(start <= pointer and pointer + nbytes <= start + size for start, (_, size) in self._blocks.items())

    def _is_pinned(self, pointer: int) -> bool:
        return any(start <= pointer < start + size for start, size in self._pinned)

    # --- waiting, events, captured work ---------------------------------------------------------------------

    def cudaStreamSynchronize(self, stream: int) -> Result:
        self.calls.append("cudaStreamSynchronize")
        return (self.finish(),)

    def cudaEventCreate(self) -> Result:
        return Error.cudaSuccess, Event()

    def cudaEventRecord(self, event: Event, stream: int) -> Result:
        self.put(lambda: setattr(event, "at", perf_counter()))
        return (Error.cudaSuccess,)

    def cudaEventSynchronize(self, event: Event) -> Result:
        return (Error.cudaSuccess,) if event.at is not None else (self.finish(),)

    def cudaEventElapsedTime(self, begin: Event, end: Event) -> Result:
        assert begin.at is not None
        assert end.at is not None
        return Error.cudaSuccess, 1000 * (end.at - begin.at)

    def cudaEventDestroy(self, event: Event) -> Result:
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Result:
        self._capture, self._capture_failed = [], False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Result:
        captured, self._capture = self._capture, None
        if self._capture_failed:
            return Error.cudaErrorStreamCaptureInvalidated, None
        self.captures += 1
        return Error.cudaSuccess, captured

    def cudaGraphInstantiate(self, graph: list[Callable[[], object]], flags: int) -> Result:
        return Error.cudaSuccess, tuple(graph)

    def cudaGraphDestroy(self, graph: Any) -> Result:
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> Result:
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: tuple[Callable[[], object], ...], stream: int) -> Result:
        self.launches += 1
        self._stream.extend(graph)
        return (Error.cudaSuccess,)
