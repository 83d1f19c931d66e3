"""What runs a graph: one small interface, and the choice of what stands behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from prunevid.bundle import Bundle, Manifest
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.arrays import Array, MemorySpace
from prunevid.runtime.backends.registry import BACKENDS, BackendSpec

_LOG = logging.getLogger("prunevid")


class Graph(Protocol):
    """A loaded graph. `inputs` and `outputs` are the names that it has."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        """Compute the named `outputs` from `feeds`. Others may be computed as well, and dropped.

        Arrays are contiguous. Feeds may be NumPy arrays wherever the graph runs: small things come from the host. An
        output that comes with an array is written into it, in place; it may be an input's memory where the graph is
        made for that. The others are allocated. Returns all of them, which may not be computed yet: only
        `MemorySpace.download` waits. Any thread may run it. Raises PruneVidError where the run fails.
        """
        ...


class Backend(Protocol):
    """Loads graphs and holds their arrays. `name` is what the command line calls it."""

    name: str

    @property
    def memory(self) -> MemorySpace:
        """Where the graphs' arrays lie."""
        ...

    def load(self, bundle: Bundle, name: str) -> Graph:
        """Load a graph of the bundle. Raises PruneVidError where that fails."""
        ...

    def past_rows(self, length: int) -> int:
        """How many rows of a KV cache to give a decode step as past, where `length` are in use.

        More than those where graphs run faster on few different shapes; the graphs mask the others. The `ort`
        dialect is given whole buffers anyway.
        """
        ...

    def now(self) -> Any:
        """The moment at which all that was begun is done: `later - earlier` is seconds."""
        ...


# More than any machine has cores; ONNX Runtime starts as many as it is told to.
_MOST_THREADS = 1024


def choose_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """The backend called `name` for a bundle. threads: of the CPU, None for all cores.

    `auto` is the fastest that works here: the bundle's TensorRT engines if they were built for this GPU, else its
    TensorRT-RTX engines if they were, else ONNX Runtime on the GPU if it can run the bundle, else ONNX Runtime on the
    CPU. Where a GPU is passed over, the log says why. `ort-tensorrt` is never chosen, since it builds engines when it
    is first used. Raises PruneVidError where the backend cannot run the bundle here.
    """
    if threads is not None and threads < 1:
        raise PruneVidError(f"threads must be 1 or more, not {threads}")
    if threads is not None and threads > _MOST_THREADS:
        raise PruneVidError(f"threads must be {_MOST_THREADS} or fewer, not {threads}")
    if name not in ("auto", *BACKENDS):
        raise PruneVidError(f"unknown backend {name!r}: known are auto, {', '.join(BACKENDS)}")
    if name != "auto":
        return _open(BACKENDS[name], bundle, threads)
    *accelerated, last = (backend for backend in BACKENDS.values() if _may_fit(backend, bundle.manifest))
    for backend in accelerated:
        try:
            return _open(backend, bundle, threads)
        except PruneVidError as error:
            _LOG.warning("note: not running on %s: %s", backend.name, error)
    return _open(last, bundle, threads)


def _may_fit(backend: BackendSpec, manifest: Manifest) -> bool:
    """Whether this bundle or this installation was prepared for a backend, so that trying it is worth a note."""
    if not backend.automatic:
        return False
    if backend.product is not None:
        return bool(manifest.engines_of(backend.product))
    if backend.provider is not None:
        import onnxruntime as ort

        return backend.provider in ort.get_available_providers()
    return True


def _open(backend: BackendSpec, bundle: Bundle, threads: int | None) -> Backend:
    module, _, name = backend.opener.partition(":")
    opener: Callable[[Bundle, int | None], Backend] = getattr(import_module(module), name)
    return opener(bundle, threads)
