"""The machine at hand: what a figure was measured on, and what its processor computes exactly."""

from __future__ import annotations

import datetime
import os
import platform
import re
import resource
from importlib import metadata
from pathlib import Path

__all__ = ["PACKAGES", "describe", "has_exact_int8", "jetson_model", "peak_rss", "reset_peak_rss"]

PACKAGES = ("prunevid", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy", "av")
"""What decides how fast the runtime is, on one backend or another."""

# Jetson Linux's major release to JetPack's (https://developer.nvidia.com/embedded/jetpack-archive).
_JETPACK = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}


def describe(packages: tuple[str, ...] = PACKAGES, root: Path = Path("/")) -> dict[str, str]:
    """Processor, cores, memory, system, versions and date; on a Jetson its model and release, too.

    packages: distributions whose versions are named, where they are installed. root: where /proc and /etc are.
    """
    machine = {
        "processor": _processor(root),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name in packages if (version := _version(name))),
        "date": datetime.date.today().isoformat(),
    }
    if model := jetson_model(root):
        machine["jetson"] = model
        machine["jetson linux"] = _jetson_release(root)
    return machine


def jetson_model(root: Path = Path("/")) -> str | None:
    """What a Jetson calls itself, such as "NVIDIA Jetson AGX Orin Developer Kit"; None on other machines."""
    # A device tree's texts end in a zero, as those of C do.
    model = _read(root / "proc/device-tree/model").strip("\0\n ")
    return model if "Jetson" in model else None


def has_exact_int8(root: Path = Path("/")) -> bool:
    """Whether this processor's products of uint8 and int8 are summed without saturating: all but x86 without VNNI.

    VPMADDUBSW of AVX2 and AVX-512 adds two products in 16 bits, which hold 32767; two times 255 * 127 is more. VNNI
    adds in 32 bits (Intel's "Intrinsics Guide"). Outside Linux an x86 processor counts as one without: its flags are in
    /proc/cpuinfo.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("flags"):
            return not {"avx512_vnni", "avx_vnni"}.isdisjoint(line.partition(":")[2].split())
    return False


def peak_rss() -> int:
    """Largest resident memory of this process so far, or since `reset_peak_rss`, in bytes."""
    # getrusage() would also count what the parent process had at the time of the fork.
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak_rss() -> bool:
    """Let `peak_rss` begin anew from what is resident now; false where the system cannot."""
    try:
        # Documentation/filesystems/proc.rst: 5 resets the high-water mark, and nothing else.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _processor(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _jetson_release(root: Path) -> str:
    """Release and JetPack, from a line such as "# R36 (release), REVISION: 4.3, GCID: ..."."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _read(root / "etc/nv_tegra_release"))
    if found is None:
        return "unknown"
    major = int(found[1])
    jetpack = f" (JetPack {_JETPACK[major]})" if major in _JETPACK else ""
    return f"R{major}.{found[2]}{jetpack}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
