"""The backends: what each needs and can do, as data. Apart from their code: help need not wait for ONNX Runtime.

A backend is a file beside this one, with a function that opens it, and an entry here; nobody else asks for its name.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BACKENDS", "ON_CPU", "BackendSpec"]


@dataclass(frozen=True)
class BackendSpec:
    """What is known of a backend without loading it.

    Attributes:
        name: What the command line calls it.
        opener: The function that opens it, as `module:function`. It takes the bundle and the number of CPU threads
            (None for all cores), and raises PruneVidError where the backend is missing or cannot run the bundle.
        on_gpu: Whether graphs run on a GPU.
        automatic: Whether `auto` may choose it; of those that may, the first that fits is taken.
        product: The builder whose engines it runs, which a bundle must have; None for none.
        provider: The execution provider of ONNX Runtime that must be installed for `auto` to try it; None for none.
        times_operators: Whether it can tell how long each operator ran.
    """

    name: str
    opener: str
    on_gpu: bool
    automatic: bool = True
    product: str | None = None
    provider: str | None = None
    times_operators: bool = False


_HERE = "prunevid.runtime.backends"
ON_CPU = "ort-cpu"
"""The backend that runs every bundle on every machine: what others are compared with."""
BACKENDS = {
    backend.name: backend
    for backend in (
        BackendSpec("tensorrt", f"{_HERE}.tensorrt:open_tensorrt", on_gpu=True, product="tensorrt"),
        BackendSpec("tensorrt-rtx", f"{_HERE}.tensorrt_rtx:open_tensorrt_rtx", on_gpu=True, product="tensorrt-rtx"),
        BackendSpec("ort-cuda", f"{_HERE}.ort_gpu:OrtCudaBackend", on_gpu=True, provider="CUDAExecutionProvider"),
        # Builds engines when it is first used, which takes minutes.
        BackendSpec("ort-tensorrt", f"{_HERE}.ort_gpu:OrtTensorRtBackend", on_gpu=True, automatic=False),
        BackendSpec(ON_CPU, f"{_HERE}.ort:open_cpu", on_gpu=False, times_operators=True),
    )
}
"""The backends by name; those that may be chosen by `auto`, the fastest first."""
