"""Time on a device: by CUDA events on a GPU, by the clock elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

# Larger than any GPU's second-level cache.
_FLUSH_BYTES = 256 << 20


class Watch:
    """Laps of one run of work; they are read when all of it is done, so that nothing waits in between."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._names: list[str] = []
        self._marks = [self._mark()]

    def lap(self, name: str) -> None:
        """End the lap of this name."""
        self._names.append(name)
        self._marks.append(self._mark())

    def milliseconds(self) -> dict[str, float]:
        """Length of each lap."""
        if self._on_gpu:
            torch.cuda.synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return {name: self._between(*pair) for name, pair in zip(self._names, pairs, strict=True)}

    def _mark(self) -> Any:
        if not self._on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) if self._on_gpu else 1000 * (second - first)


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call that launches work on the device, with cold caches on a GPU."""
    call()
    flush = torch.empty(_FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.int8, device=device)
    found = []
    for _ in range(repeats):
        # Also gives the host time to get ahead, so that its launching is not counted.
        flush.zero_()
        watch = Watch(device)
        call()
        watch.lap("call")
        found.append(watch.milliseconds()["call"])
    return statistics.median(found)


def copy_bandwidth(device: torch.device, size: int, repeats: int) -> float:
    """Bytes per second, read and written, of copying `size` bytes on the device."""
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (milliseconds(lambda: target.copy_(source), device, repeats) / 1000)
