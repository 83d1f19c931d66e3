"""What runs a graph: one small interface, and the choice of what stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from prunevid.bundle import Bundle
from prunevid.errors import PruneVidError
from prunevid.runtime.arrays import Array, Memory
from prunevid.runtime.backend_names import BACKENDS
from prunevid.runtime.backend_ort import OrtCpuBackend


class Graph(Protocol):
    """A loaded graph. ``inputs`` and ``outputs`` are the names that it has."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        """Compute the named ``outputs`` from ``feeds``. Others may be computed as well, and dropped.

        Arrays are contiguous. Feeds may be NumPy arrays wherever the graph runs: small things come from the host. An
        output that comes with an array is written into it, in place; it may be an input's memory where the graph is
        made for that. The others are allocated. Returns all of them, which may not be computed yet: only
        :meth:`Memory.download` waits. Raises PruneVidError where the run fails.
        """
        ...


class Backend(Protocol):
    """Loads graphs and holds their arrays. ``name`` is what the command line calls it."""

    name: str

    @property
    def memory(self) -> Memory:
        """Where the graphs' arrays lie."""
        ...

    def load(self, bundle: Bundle, name: str) -> Graph:
        """Load a graph of the bundle. Raises PruneVidError where that fails."""
        ...

    def past_rows(self, length: int) -> int:
        """How many rows of a KV cache to give a decode step as past, where ``length`` are in use.

        More than those where graphs run faster on few different shapes; the graphs mask the others. The ``ort``
        dialect is given whole buffers anyway.
        """
        ...

    def now(self) -> Any:
        """The moment at which all that was begun is done: ``later - earlier`` is seconds."""
        ...


def choose_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """The backend called ``name`` for a bundle. threads: of the CPU, None for all cores.

    ``auto`` is the fastest that works here. Raises PruneVidError where the backend cannot run the bundle.
    """
    if threads is not None and threads < 1:
        raise PruneVidError(f"threads must be 1 or more, not {threads}")
    if name not in ("auto", *BACKENDS):
        raise PruneVidError(f"unknown backend {name!r}: known are auto, {', '.join(BACKENDS)}")
    return OrtCpuBackend(threads)
