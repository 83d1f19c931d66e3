"""A Jetson's sensors: power, GPU load and the memory that CPU and GPU share.

They are read from sysfs, which needs neither a process nor root; what sysfs does not show is taken from tegrastats,
NVIDIA's own monitor. Which rails a board has: NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from prunevid.runtime.machine import jetson_model
from prunevid.runtime.profile.sensors.reading import Follower, Reading

__all__ = ["Jetson", "find_jetson", "parse_tegrastats", "total_power"]

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
_TEGRASTATS_INTERVAL_MS = "200"
_GPU_LOAD = re.compile(r"\bGR3D_FREQ (\d+)%")
# The first figure is the present one; averages follow it.
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/")


def parse_tegrastats(line: str) -> tuple[float | None, dict[str, float]]:
    """The GPU's load from 0 to 1, None if it is not told, and watts by rail, of a line of any JetPack from 5 on."""
    load = _GPU_LOAD.search(line)
    # Rails called NC are not connected.
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line) if name != "NC"}
    return int(load[1]) / 100 if load else None, rails


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
    """Reads the sensors of a Jetson; `close` it in the end."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self.memory_total_bytes: int | None = self._memory()["MemTotal"]
        self._rails = _find_rails(root / "sys/class/hwmon")
        self._gpu_load = next((root / path for path in _GPU_LOADS if _integer(root / path) is not None), None)
        is_complete = self._rails and self._gpu_load
        self._tegrastats = None if is_complete else Follower.start("tegrastats", "--interval", _TEGRASTATS_INTERVAL_MS)
        first = self.read()
        missing = ["GPU load"] if first.gpu_load is None else []
        if first.power_w is None:
            missing.append("power of the whole module" if first.rails_w else "power")
        self.notes = [f"This Jetson shows no {sensor}, neither in sysfs nor in tegrastats." for sensor in missing]

    def read(self) -> Reading:
        """Memory, GPU load and power now."""
        load, rails = parse_tegrastats(self._tegrastats.latest) if self._tegrastats else (None, {})
        if self._rails:
            rails = {name: watts for name, read in self._rails.items() if (watts := read()) is not None}
        if self._gpu_load and (thousandths := _integer(self._gpu_load)) is not None:
            load = thousandths / 1000
        memory = self._memory()
        return Reading(memory["MemTotal"] - memory["MemAvailable"], load, total_power(rails), rails)

    def close(self) -> None:
        """End tegrastats, where it runs."""
        if self._tegrastats:
            self._tegrastats.close()

    def _memory(self) -> dict[str, int]:
        lines = self._meminfo.read_text().splitlines()
        return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


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
