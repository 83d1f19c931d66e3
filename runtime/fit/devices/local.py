"""The machine at hand as a device: its own rates, measured in a few seconds, and the memory that is free now."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from prunevid.runtime.fit.devices.cards import LOCAL
from prunevid.runtime.fit.devices.device import Device
from prunevid.runtime.machine import describe

__all__ = ["local_device"]

_SIDE = 2048
_COPY_BYTES = 256 * 2**20
_REPEATS = 5


def local_device() -> Device:
    """Measure this machine: a float32 matrix product for the rate, a large copy on all cores for the bandwidth.

    What was measured is what can be reached, so both efficiencies are 1; that the runtime's own kernels reach less is
    part of the error that a comparison shows.
    """
    total, available = _memory()
    machine = describe()
    return Device(
        name=LOCAL,
        title=f"this machine ({machine['processor']}, {machine['cores']} cores)",
        memory_bytes=total,
        reserved_bytes=total - available,
        reserved_for="what the system and other programs use at the moment.",
        bandwidth=_copy_rate(),
        fp32=_matmul_rate(),
        fp16=None,
        int8=None,
        compute_capability=None,
        source=f"measured: the best of {_REPEATS} float32 matrix products of {_SIDE} x {_SIDE}, and of {_REPEATS} "
        f"copies of {_COPY_BYTES >> 20} MiB on all cores, counting what is read and what is written.",
        compute_efficiency=1.0,
        bandwidth_efficiency=1.0,
        is_measured=True,
    )


def _matmul_rate() -> float:
    """FLOP/s of NumPy's matrix product."""
    import numpy as np

    rng = np.random.default_rng(0)
    left, right = (rng.random((_SIDE, _SIDE), np.float32) for _ in range(2))
    result = np.empty_like(left)
    return 2 * _SIDE**3 / _shortest(lambda: np.matmul(left, right, out=result))


def _copy_rate() -> float:
    """Bytes per second that a copy reads and writes, one slice per core."""
    import numpy as np

    cores = os.cpu_count() or 1
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)
    slices = list(zip(np.array_split(source, cores), np.array_split(target, cores), strict=True))
    with ThreadPoolExecutor(cores) as pool:
        seconds = _shortest(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), slices)))
    return 2 * source.nbytes / seconds


def _shortest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs, after one that does not count."""
    work()
    times = []
    for _ in range(_REPEATS):
        begin = perf_counter()
        work()
        times.append(perf_counter() - begin)
    return min(times)


def _memory() -> tuple[int, int]:
    """Bytes of memory in all, and those that a program can still have; all of it where the system does not say."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, min(total, int(line.split()[1]) * 1024)
    return total, total
