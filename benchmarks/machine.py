"""What a result was measured on: the runtime's own description, with the packages that benchmarks compare with."""

from __future__ import annotations

from prunevid.runtime import machine
from prunevid.runtime.machine import peak_rss

__all__ = ["describe", "peak_rss"]


def describe(packages: tuple[str, ...] = ("onnxruntime", "torch", "transformers", "numpy")) -> dict[str, str]:
    """Processor, cores, memory, versions and date of this run."""
    return machine.describe(packages)
