"""What runs a graph: one small interface, and ONNX Runtime behind it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from prunevid.errors import PruneVidError
from prunevid.runtime.backend_names import BACKENDS


class Graph(Protocol):
    """A loaded graph. ``inputs`` and ``outputs`` are the names that it has."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
        """Compute the named ``outputs`` from ``feeds`` (C-contiguous). Others may be computed as well, and dropped.

        An output that comes with an array is written into it, in place; it may be an input's memory where the graph
        is made for that. The others are allocated. Returns all of them. Raises PruneVidError where the run fails.
        """
        ...


class Backend(Protocol):
    """Loads graphs. ``name`` is what the command line calls it."""

    name: str

    def load(self, file: Path) -> Graph:
        """Load an ONNX file of a bundle. Raises PruneVidError where that fails."""
        ...


def choose_backend(name: str, threads: int | None = None) -> Backend:
    """The backend called ``name``; ``auto`` is the fastest that works here. threads: of the CPU, None for all cores."""
    if threads is not None and threads < 1:
        raise PruneVidError(f"threads must be 1 or more, not {threads}")
    if name not in ("auto", *BACKENDS):
        raise PruneVidError(f"unknown backend {name!r}: known are auto, {', '.join(BACKENDS)}")
    return OrtCpuBackend(threads)


@cache
def _register_shared_arena() -> None:
    """Give ONNX Runtime one CPU arena for this process, which grows by what is asked for instead of by doubling."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested, default = 1, -1
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(0, same_as_requested, default, default))


class OrtCpuBackend:
    """ONNX Runtime on the CPU."""

    name = "ort-cpu"

    def __init__(self, threads: int | None = None, *, profile_to: Path | None = None) -> None:
        """``profile_to``: a folder in which ONNX Runtime writes, per graph, when each operator ran and how long.

        Such a profile is complete when its graph is gone from memory; writing it slows the graph down.
        """
        self._profile_to = profile_to
        self._options = ort.SessionOptions()
        self._options.enable_profiling = profile_to is not None
        self._options.intra_op_num_threads = threads or 0
        # Shapes change with every video and question, so planning memory for one of them gains nothing.
        self._options.enable_mem_pattern = False
        # One arena for all graphs, since they run one after the other.
        _register_shared_arena()
        self._options.add_session_config_entry("session.use_env_allocators", "1")
        # Threads that spin between operators slow decoding down: measured 0.19 against 0.12 s a token on two cores.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Warnings of ONNX Runtime are about its own graph rewriting; errors come as exceptions.
        self._options.log_severity_level = 3

    def load(self, file: Path) -> OrtGraph:
        """See :class:`Backend`."""
        if self._profile_to is not None:
            self._options.profile_file_prefix = str(self._profile_to / file.stem)
        try:
            session = ort.InferenceSession(str(file), self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise PruneVidError(f"ONNX Runtime {ort.__version__} cannot load {file}: {_first_line(error)}") from error
        return OrtGraph(session, file)


class OrtGraph:
    """A graph in ONNX Runtime, run over memory that NumPy arrays own."""

    def __init__(self, session: Any, file: Path) -> None:
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())
        self._session, self._file = session, file

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
        """See :class:`Graph`."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, target in outputs.items():
            if target is None:
                binding.bind_output(name, "cpu")
            else:
                binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise PruneVidError(f"ONNX Runtime failed while running {self._file}: {_first_line(error)}") from error
        computed = {}
        for (name, target), value in zip(outputs.items(), binding.get_outputs(), strict=True):
            computed[name] = value.numpy() if target is None else target
        return computed


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
