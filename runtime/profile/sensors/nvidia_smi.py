"""The sensors of an NVIDIA card, through nvidia-smi."""

from __future__ import annotations

import os

from prunevid.runtime.profile.sensors.reading import Follower, Reading

__all__ = ["NvidiaCard", "find_nvidia_card", "parse_nvidia_smi"]

_QUERY = "memory.used,memory.total,utilization.gpu,power.draw"
_INTERVAL_MS = 200


def parse_nvidia_smi(line: str) -> tuple[Reading, int | None]:
    """A line of nvidia-smi's CSV without units, and the card's memory in bytes; sensors that it lacks are [N/A]."""
    cells = [_number(cell) for cell in line.split(",")]
    if len(cells) != len(_QUERY.split(",")):
        return Reading(None, None, None), None
    used, total, load, power = cells
    reading = Reading(_mebibytes(used), None if load is None else load / 100, power)
    return reading, _mebibytes(total)


def find_nvidia_card() -> NvidiaCard | None:
    """The card that CUDA uses first; None where nvidia-smi shows none."""
    # CUDA_VISIBLE_DEVICES is CUDA's own choice of cards, by number or UUID, as nvidia-smi takes them.
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
    options = (f"--id={card}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", f"--loop-ms={_INTERVAL_MS}")
    follower = Follower.start("nvidia-smi", *options)
    if follower is None:
        return None
    # Where CPU and GPU share the memory, as in DGX Spark's GB10, nvidia-smi shows none of it.
    reading, memory = parse_nvidia_smi(follower.latest)
    if memory is None and reading.gpu_load is None and reading.power_w is None:
        follower.close()
        return None
    return NvidiaCard(follower)


class NvidiaCard:
    """Reads what nvidia-smi printed last; `close` it in the end."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        first, self.memory_total_bytes = parse_nvidia_smi(follower.latest)
        sensors = (("memory", first.memory_bytes), ("GPU load", first.gpu_load), ("power", first.power_w))
        self.notes = [f"This card shows no {name} in nvidia-smi." for name, value in sensors if value is None]

    def read(self) -> Reading:
        """All sensors, at most as old as nvidia-smi's interval."""
        return parse_nvidia_smi(self._follower.latest)[0]

    def close(self) -> None:
        """End nvidia-smi."""
        self._follower.close()


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _mebibytes(value: float | None) -> int | None:
    return None if value is None else round(value * 2**20)
