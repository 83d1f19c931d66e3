"""Estimate beside measurement, on the machine at hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunevid.models import ModelShape
from prunevid.runtime.fit.devices.device import Device
from prunevid.runtime.fit.estimate import Estimate, Workload, estimate
from prunevid.runtime.fit.one_run import Measurement, run_once
from prunevid.runtime.fit.precision import PRECISIONS

__all__ = ["MeasuredEstimate", "Row", "measure_estimates"]


@dataclass(frozen=True)
class Row:
    """One figure: estimated and measured, in seconds or bytes."""

    name: str
    estimated: float
    measured: float

    @property
    def error(self) -> float:
        """The estimate's error as a share of what was measured: below 0 where the estimate is too low."""
        return self.estimated / self.measured - 1


@dataclass(frozen=True)
class MeasuredEstimate:
    """One question on this machine, pruned or not. The estimate knows how many tokens were really merged and kept."""

    pruned: bool
    measurement: Measurement
    estimate: Estimate

    @property
    def rows(self) -> list[Row]:
        """Memory, then the stages, then their sum, then a decode step; names end in their unit."""
        made, found = self.estimate, self.measurement
        stages = [Row(f"{name}_s", made.stages_s[name], seconds) for name, seconds in found.stages_s.items()]
        return [
            Row("memory_bytes", made.memory.total, found.peak_bytes),
            *stages,
            Row("first_token_s", made.first_token_s, sum(found.stages_s.values())),
            Row("decode_s", made.decode_s, found.decode_s),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        work = self.estimate.workload
        return {
            "pruned": self.pruned,
            "frames": work.frames,
            "tokens": asdict(work.counts),
            "read_s": self.measurement.read_s,
            "figures": [{**asdict(row), "error": row.error} for row in self.rows],
        }


def measure_estimates(
    bundle: Path, model: ModelShape, prune_layer: int, frames: int, device: Device
) -> list[MeasuredEstimate]:
    """Ask the bundle one question, unpruned and pruned, and estimate the same.

    Raises:
        PruneVidError: when a run fails.
    """
    comparisons = []
    for pruned in (False, True):
        found = run_once(bundle, frames, pruned=pruned)
        work = Workload(model, prune_layer, frames, found.counts, found.answer, model.image_size**2)
        # ONNX Runtime's CPU provider computes a float16 bundle in float32.
        comparisons.append(MeasuredEstimate(pruned, found, estimate(work, PRECISIONS["fp32"], device)))
    return comparisons
