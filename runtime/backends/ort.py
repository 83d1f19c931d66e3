"""ONNX Runtime: a graph over memory at given addresses, and the backend on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort

from prunevid.bundle import Bundle
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.arrays import Array, DeviceArray, HostMemory, Slot
from prunevid.runtime.machine import has_exact_int8

# ONNX Runtime's words for the element types that bundles have.
_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int64)": np.dtype(np.int64),
}
# Bundles may be loaded in several threads, and ONNX Runtime refuses a second arena.
_REGISTERING = Lock()


class OrtCpuBackend:
    """ONNX Runtime on the CPU."""

    name = "ort-cpu"
    memory = HostMemory()

    def __init__(self, threads: int | None = None, *, profile_to: Path | None = None) -> None:
        """`profile_to`: a folder in which ONNX Runtime writes, per graph, when each operator ran and how long.

        Such a profile is complete when its graph is gone from memory; writing it slows the graph down.
        """
        self._profile_to = profile_to
        self._options = session_options(threads)
        self._dialect: str | None = None
        self._options.enable_profiling = profile_to is not None
        # One arena for all graphs, since they run one after the other.
        with _REGISTERING:
            _register_shared_arena()
        self._options.add_session_config_entry("session.use_env_allocators", "1")

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """Load a graph of the bundle."""
        check_onnxruntime(bundle.manifest.least_onnxruntime, str(bundle.path), ort.__version__)
        self.prepare(bundle)
        file = bundle.file(bundle.manifest.graphs[name].file)
        if self._profile_to is not None:
            self._options.profile_file_prefix = str(self._profile_to / file.stem)
        return OrtGraph(open_session(file, self._options, ["CPUExecutionProvider"]), file, "cpu")

    def prepare(self, bundle: Bundle) -> None:
        """Set the options that depend on the bundle; a backend is for bundles of one dialect."""
        if self._dialect is None:
            self._dialect = bundle.manifest.dialect
            ask_for_exact_int8(self._options, self._dialect)

    def past_rows(self, length: int) -> int:
        """Just those in use."""
        return length

    def now(self) -> float:
        """Seconds of this process's clock: runs are done when they return."""
        return perf_counter()


class OrtGraph:
    """A graph in ONNX Runtime, run over arrays of `place`, ONNX Runtime's word for where they lie."""

    def __init__(
        self, session: Any, file: Path, place: str, lock: AbstractContextManager[object] | None = None
    ) -> None:
        """`lock`: held during a run, where runs of several threads would meet on one stream; the CPU needs none."""
        self._lock = lock or nullcontext()
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())
        self._slots = {
            value.name: Slot(file.name, value.name, _TYPES.get(value.type), tuple(value.shape))
            for value in (*session.get_inputs(), *session.get_outputs())
        }
        self._session, self._file, self._place = session, file, place

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        """Compute the named `outputs` from `feeds`."""
        with self._lock:
            return self._run(feeds, outputs)

    def _run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        binding = self._session.io_binding()
        # Held until the run is over: the binding knows their addresses only.
        read = {name: self._slots[name].readable(array) for name, array in feeds.items()}
        for name, array in read.items():
            binding.bind_input(name, *_located(array, self._place))
        for name, target in outputs.items():
            if target is None:
                binding.bind_output(name, self._place)
            else:
                binding.bind_output(name, *_located(self._slots[name].writable(target), self._place))
        try:
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise PruneVidError(f"ONNX Runtime failed while running {self._file}: {first_line(error)}") from error
        computed: dict[str, Array] = {}
        for (name, target), value in zip(outputs.items(), values, strict=True):
            computed[name] = self._taken(name, value) if target is None else target
        return computed

    def _taken(self, name: str, value: Any) -> Array:
        """An output that ONNX Runtime allocated."""
        if self._place == "cpu":
            array: np.ndarray = value.numpy()
            return array
        dtype = self._slots[name].dtype
        assert dtype is not None  # graphs of bundles have no other types
        return DeviceArray(value.data_ptr(), value.shape(), dtype, value)


def open_cpu(bundle: Bundle, threads: int | None = None) -> OrtCpuBackend:
    """The backend on the CPU, which runs any bundle."""
    return OrtCpuBackend(threads)


def session_options(threads: int | None) -> Any:
    """ONNX Runtime's options, as every backend of it wants them. threads: of the CPU, None for all cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Shapes change with every video and question, so planning memory for one of them gains nothing.
    options.enable_mem_pattern = False
    # Threads that spin between operators slow decoding down: measured 0.19 against 0.12 s a token on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Warnings of ONNX Runtime are about its own graph rewriting; errors come as exceptions, not on stderr, too.
    options.log_severity_level = 4
    # Of int4 weights in Q/DQ and a product ONNX Runtime makes MatMulNBits, which by default quantizes activations too;
    # in the graph they are floats, and TensorRT has them as floats. 1 is float32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


def ask_for_exact_int8(options: Any, dialect: str) -> None:
    """Have int8 computed exactly on a processor whose fast kernels saturate (`machine.has_exact_int8`).

    Quantized operators of ONNX Runtime's own get products of uint8 and uint8, which take longer. Of Q/DQ nodes ONNX
    Runtime then does not make quantized operators at all, and computes them in float as they stand: with such products,
    it cannot run its own (1.32).
    """
    if not has_exact_int8():
        remedy = (
            "session.x64quantprecision" if DIALECTS[dialect].has_fused_quantization else "session.disable_quant_qdq"
        )
        options.add_session_config_entry(remedy, "1")


def check_onnxruntime(least: str | None, whose: str, installed: str) -> None:
    """Raise PruneVidError where `whose` graphs need a newer ONNX Runtime than `installed`, such as `1.23.2`."""
    if least is not None and _release(installed) < _release(least):
        raise PruneVidError(
            f"{whose} needs ONNX Runtime {least} or newer, and {installed} is installed: update onnxruntime, or "
            "calibrate without --kv-cache int8"
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def open_session(file: Path, options: Any, providers: list[Any], content: bytes | None = None) -> Any:
    """An ONNX Runtime session of a file, or of other content for it. Raises PruneVidError where it cannot be loaded."""
    try:
        # Without a fallback: it prints to standard output, and tries again on the CPU without a word.
        return ort.InferenceSession(content or str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:  # as above
        raise PruneVidError(f"ONNX Runtime {ort.__version__} cannot load {file}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of what ONNX Runtime says, or its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@cache
def _register_shared_arena() -> None:
    """Give ONNX Runtime one CPU arena for this process, which grows by what is asked for instead of by doubling."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested, default = 1, -1
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(0, same_as_requested, default, default))


def _located(array: Array, place: str) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Where an array lies and what it is, in the order of ONNX Runtime's binding functions."""
    if isinstance(array, np.ndarray):
        return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
    if not array.contiguous:
        raise ValueError(f"{array.shape} is not contiguous")
    return place, 0, array.dtype.type, array.shape, array.pointer
