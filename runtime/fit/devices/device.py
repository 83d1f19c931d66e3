"""What an estimate knows of a device, each figure with its source.

Peak rates are dense rates. What NVIDIA prints large is twice or more of it: sparse INT8, with the DLA's share, for
Orin; sparse INT8 for RTX 40; sparse FP4 for Thor, RTX 50, RTX PRO and DGX Spark. Nothing here was measured by this
project.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.errors import InvalidValueError

__all__ = ["GB", "GIB", "RTX_CAPABILITIES", "Device", "card"]

GIB = 2**30
GB = 10**9

_RESERVED = "1 GB for the CUDA context, TensorRT with its kernels, and a display: an assumption."

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX builds for and that merging, which is float32, runs on."""


@dataclass(frozen=True)
class Device:
    """What a device can do at most, and how much of that an estimate counts on.

    Attributes:
        name: what the command line calls it.
        title: what people call it, with the power mode that the rates belong to.
        memory_bytes: memory that weights, KV cache and activations share; on a Jetson, with everything else.
        reserved_bytes: what of it they cannot have.
        reserved_for: why.
        bandwidth: peak bytes per second of that memory.
        fp32: peak dense FLOP/s in float32.
        fp16: the same in float16, accumulated in float32; None where models run in float32.
        int8: peak dense operations per second on 8-bit integers; None where 8-bit weights are computed wider.
        compute_capability: of its GPU, as CUDA's list of GPUs has it; None without one of NVIDIA's.
        source: documents that the figures are from, and how the rates follow from them.
        compute_efficiency: share of a peak rate that large matrix products are taken to reach.
        bandwidth_efficiency: share of the peak bandwidth that reading weights is taken to reach.
        at_least: those of the rates that no document gives: the lower of what its generation allows stands for them.
        is_measured: whether rates, bandwidth and free memory were measured on the device itself.

    Raises:
        InvalidValueError: when a rate is not positive, the memory is all reserved, or an efficiency is not a share.
    """

    name: str
    title: str
    memory_bytes: int
    reserved_bytes: int
    reserved_for: str
    bandwidth: float
    fp32: float
    fp16: float | None
    int8: float | None
    compute_capability: str | None
    source: str
    compute_efficiency: float = 0.5
    bandwidth_efficiency: float = 0.7
    at_least: tuple[str, ...] = ()
    is_measured: bool = False

    def __post_init__(self) -> None:
        for name in ("bandwidth", "fp32", "fp16", "int8"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise InvalidValueError(f"device {self.name}: {name} must be above 0, not {rate}")
        if not 0 <= self.reserved_bytes < self.memory_bytes:
            raise InvalidValueError(f"device {self.name}: reserved_bytes must be from 0 to below memory_bytes")
        for name in ("compute_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidValueError(f"device {self.name}: {name} must be above 0 and at most 1")
        if not self.source or not self.reserved_for:
            raise InvalidValueError(f"device {self.name}: figures without a source are guesses")

    @property
    def has_tensorrt(self) -> bool:
        """Whether TensorRT builds engines there and runs them."""
        return self.compute_capability is not None

    @property
    def has_tensorrt_rtx(self) -> bool:
        """Whether it runs engines that TensorRT for RTX built, on whatever machine."""
        return self.compute_capability in RTX_CAPABILITIES

    @property
    def usable_bytes(self) -> int:
        """Memory for weights, KV cache and activations."""
        return self.memory_bytes - self.reserved_bytes


def card(
    name: str,
    title: str,
    gib: int,
    gb_per_s: float,
    *,
    fp32: float,
    fp16: float,
    int8: float,
    compute_capability: str,
    source: str,
) -> Device:
    """A GPU with memory of its own, of which 1 GB is reserved."""
    return Device(
        name=name,
        title=title,
        memory_bytes=gib * GIB,
        reserved_bytes=GB,
        reserved_for=_RESERVED,
        bandwidth=gb_per_s * 1e9,
        fp32=fp32,
        fp16=fp16,
        int8=int8,
        compute_capability=compute_capability,
        source=source,
    )
