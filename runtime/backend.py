"""What runs a graph: one small interface, and ONNX Runtime behind it."""

from __future__ import annotations

from collections.abc import Mapping
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


class OrtCpuBackend:
    """ONNX Runtime on the CPU."""

    name = "ort-cpu"

    def __init__(self, threads: int | None = None) -> None:
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads or 0
        # Shapes change with every video and question, so planning memory for one of them gains nothing.
        self._options.enable_mem_pattern = False
        # Warnings of ONNX Runtime are about its own graph rewriting; errors come as exceptions.
        self._options.log_severity_level = 3

    def load(self, file: Path) -> OrtGraph:
        """See :class:`Backend`."""
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
