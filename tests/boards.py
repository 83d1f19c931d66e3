"""Jetson boards, as their /proc and /sys show them."""

from __future__ import annotations

from pathlib import Path


def board(root: Path, model: str, rails: dict[str, tuple[int, int]], *, gpu_load: int | None, vin_uw: int = 0) -> Path:
    """A board's /proc and /sys: rails in millivolts and milliamperes, GPU load in thousandths."""
    files = {
        "proc/device-tree/model": f"{model}\0",
        "proc/meminfo": "MemTotal:       64331412 kB\nMemFree:        30000000 kB\nMemAvailable:   60568780 kB\n",
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\n",
        "sys/class/hwmon/hwmon0/name": "tmp451\n",
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
        # An INA3221 has a label for the sum of its shunt voltages, which is no rail.
        "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
        "sys/class/hwmon/hwmon1/in7_input": "1234\n",
    }
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        files[f"sys/class/hwmon/hwmon1/in{channel}_label"] = f"{label}\n"
        files[f"sys/class/hwmon/hwmon1/in{channel}_input"] = f"{millivolts}\n"
        files[f"sys/class/hwmon/hwmon1/curr{channel}_input"] = f"{milliamperes}\n"
    if vin_uw:
        files["sys/class/hwmon/hwmon2/name"] = "ina238\n"
        files["sys/class/hwmon/hwmon2/power1_input"] = f"{vin_uw}\n"
    if gpu_load is not None:
        files["sys/devices/platform/gpu.0/load"] = f"{gpu_load}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


ORIN_RAILS = {"VDD_GPU_SOC": (19_928, 240), "VDD_CPU_CV": (19_928, 40), "VIN_SYS_5V0": (5_016, 760)}
