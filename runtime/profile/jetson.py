"""A Jetson's sensors: power, GPU load and the memory that CPU and GPU share.

They are read from sysfs, which needs neither a process nor root; what sysfs does not show is taken from tegrastats,
NVIDIA's own monitor. Which rails a board has: NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prunevid.runtime.machine import jetson_model

__all__ = ["Jetson", "Reading", "find_jetson", "parse_tegrastats", "total_power"]

# Where the GPU's load is, in thousandths, by release; Thor shows none.
_GPU_LOADS = (
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
)
# The whole module or board, where one rail measures it: Thor, then Orin NX and Nano.
_TOTALS = ("VIN", "VDD_IN")
# AGX Orin has no such rail, and these three add up to it: what memory takes is within VIN_SYS_5V0.
_PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
_TEGRASTATS_INTERVAL_MS = 200
_GPU_LOAD = re.compile(r"\bGR3D_FREQ (\d+)%")
# The first figure is the present one; averages follow it.
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/")


@dataclass(frozen=True)
class Reading:
    """Sensors at one moment: busy share of the GPU from 0 to 1, None where there is no such sensor; watts by rail."""

    gpu_load: float | None
    rails_w: dict[str, float]


def parse_tegrastats(line: str) -> Reading:
    """A line of tegrastats, of any JetPack from 5 on; what it does not hold is missing in the reading."""
    load = _GPU_LOAD.search(line)
    # Rails called NC are not connected.
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line) if name != "NC"}
    return Reading(int(load[1]) / 100 if load else None, rails)


def total_power(rails_w: Mapping[str, float]) -> float | None:
    """Watts of the whole module; None where the rails do not add up to it."""
    for name in _TOTALS:
        if name in rails_w:
            return rails_w[name]
    if all(name in rails_w for name in _PARTS):
        return sum(rails_w[name] for name in _PARTS)
    return None


def find_jetson(root: Path = Path("/")) -> Jetson | None:
    """The Jetson that this is, None on other machines. root: where /proc and /sys are."""
    return Jetson(root) if jetson_model(root) else None


class Jetson:
    """Reads the sensors of a Jetson; :meth:`close` it in the end.

    missing: sensors that no source has, in words.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self.memory_total_bytes = self._memory()["MemTotal"]
        self._rails = _find_rails(root / "sys/class/hwmon")
        self._gpu_load = next((root / path for path in _GPU_LOADS if _integer(root / path) is not None), None)
        complete = self._rails and self._gpu_load
        self._tegrastats = None if complete else _Tegrastats.start()
        first = self.read()
        self.missing = [
            sensor
            for sensor, is_there in (
                ("GPU load", first.gpu_load is not None),
                ("power", bool(first.rails_w)),
                ("power of the whole module", total_power(first.rails_w) is not None or not first.rails_w),
            )
            if not is_there
        ]

    def read(self) -> Reading:
        """GPU load and power now."""
        latest = self._tegrastats.latest if self._tegrastats else Reading(None, {})
        rails = {name: watts for name, read in self._rails.items() if (watts := read()) is not None}
        load = _integer(self._gpu_load) if self._gpu_load else None
        return Reading(latest.gpu_load if load is None else load / 1000, rails or latest.rails_w)

    def memory_used(self) -> int:
        """Bytes in use by CPU and GPU together, by all processes."""
        memory = self._memory()
        return memory["MemTotal"] - memory["MemAvailable"]

    def close(self) -> None:
        """End tegrastats, where it runs."""
        if self._tegrastats:
            self._tegrastats.stop()

    def _memory(self) -> dict[str, int]:
        lines = self._meminfo.read_text().splitlines()
        return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


class _Tegrastats:
    """tegrastats in a process of its own; ``latest`` is what its last line said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._has_line = threading.Event()
        self.latest = Reading(None, {})
        threading.Thread(target=self._follow, daemon=True).start()
        self._has_line.wait(timeout=5)

    @classmethod
    def start(cls) -> _Tegrastats | None:
        """None where there is no tegrastats, or it cannot be started."""
        program = shutil.which("tegrastats")
        if program is None:
            return None
        command = [program, "--interval", str(_TEGRASTATS_INTERVAL_MS)]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return None
        return cls(process)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.latest = parse_tegrastats(line)
            self._has_line.set()
        self._has_line.set()


def _find_rails(hwmon: Path) -> dict[str, Callable[[], float | None]]:
    """How to read each power rail, in watts, by its name.

    An INA3221 has three channels of millivolts and milliamperes (kernel: Documentation/hwmon/ina3221.rst); Thor's
    INA238 measures the board's input in microwatts (Documentation/hwmon/ina238.rst).
    """
    rails: dict[str, Callable[[], float | None]] = {}
    for chip in sorted(hwmon.glob("hwmon*")):
        name = _text(chip / "name")
        if name == "ina238":
            rails["VIN"] = _power_reader(chip / "power1_input")
        elif name == "ina3221":
            for channel in (1, 2, 3):
                label = _text(chip / f"in{channel}_label")
                if label and label != "NC":
                    rails[label] = _product_reader(chip / f"in{channel}_input", chip / f"curr{channel}_input")
    return {name: read for name, read in rails.items() if read() is not None}


def _power_reader(microwatts: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        value = _integer(microwatts)
        return None if value is None else value / 1e6

    return read


def _product_reader(millivolts: Path, milliamperes: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        volts, amperes = _integer(millivolts), _integer(milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6

    return read


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _integer(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
