"""What memory and sensors do while something runs: a thread that looks a few times a second.

It costs little (benchmarks/profile_overhead.py): one small file in /proc per look, and the sensors of a device, where
there are some, four times as rarely.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from time import perf_counter, thread_time
from types import TracebackType

from prunevid.runtime.backends.registry import BACKENDS
from prunevid.runtime.profile.records import DeviceSample, Timeline
from prunevid.runtime.profile.sensors.jetson import find_jetson
from prunevid.runtime.profile.sensors.nvidia_smi import find_nvidia_card
from prunevid.runtime.profile.sensors.reading import Sensors

__all__ = ["Telemetry", "find_sensors"]

_PERIOD_S = 0.05
_LOOKS_PER_DEVICE_SAMPLE = 4


def find_sensors(backend: str) -> Sensors | None:
    """The sensors of what `backend` runs on: a Jetson's always, a card's if the backend runs there; None else."""
    jetson = find_jetson()
    if jetson is not None or not BACKENDS[backend].on_gpu:
        return jetson
    return find_nvidia_card()


class Telemetry:
    """Samples this process's resident memory and a device's sensors while its `with` block runs."""

    def __init__(self, device: Sensors | None, *, statm: Path = Path("/proc/self/statm")) -> None:
        self._device = device
        self._statm = statm
        self._begun = 0.0
        self._rss: list[tuple[float, int]] = []
        self._samples: list[DeviceSample] = []
        self._sampling_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prunevid-telemetry", daemon=True)

    def __enter__(self) -> Telemetry:
        self._begun = perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def seconds(self, moment: float) -> float:
        """A `perf_counter()` moment on the clock of the timeline."""
        return moment - self._begun

    def timeline(self) -> Timeline:
        """All samples so far. Without /proc there are none of the memory."""
        rss = tuple(self._rss)
        return Timeline(
            rss_time_s=tuple(moment for moment, _ in rss),
            rss_bytes=tuple(size for _, size in rss),
            device=tuple(self._samples),
            sampling_s=self._sampling_s,
        )

    def _run(self) -> None:
        looks = 0
        with ExitStack() as stack:
            statm: FileIO | None = None
            with suppress(OSError):
                # Kept open: looking a name up in /proc takes longer than reading.
                statm = stack.enter_context(self._statm.open("rb", buffering=0))
            while not self._stopping.is_set():
                if statm is not None:
                    self._rss.append((self._now(), _resident(statm)))
                if self._device is not None and looks % _LOOKS_PER_DEVICE_SAMPLE == 0:
                    self._samples.append(_sample(self._device, self._now()))
                looks += 1
                self._sampling_s = thread_time()
                self._stopping.wait(_PERIOD_S)

    def _now(self) -> float:
        return round(self.seconds(perf_counter()), 4)


def _sample(device: Sensors, moment: float) -> DeviceSample:
    reading = device.read()
    return DeviceSample(moment, reading.memory_bytes, reading.gpu_load, reading.power_w, reading.rails_w)


def _resident(statm: FileIO) -> int:
    """This process's resident memory in bytes."""
    # The kernel makes the file anew at every read from its beginning; a buffer would keep the old one.
    statm.seek(0)
    return int(statm.read(128).split()[1]) * os.sysconf("SC_PAGE_SIZE")
