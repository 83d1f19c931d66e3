"""The devices that an estimate can be made for: one entry each, with the source of every figure."""

from __future__ import annotations

from prunevid.errors import PruneVidError
from prunevid.runtime.fit.devices.device import GB, GIB, Device, card
from prunevid.runtime.fit.devices.rtx_cards import RTX_DEVICES

__all__ = ["DEVICES", "LOCAL", "Device", "device_named"]

LOCAL = "local"
"""The machine at hand, which is measured instead of looked up."""

_JETSON_RESERVED = (
    "7 % of the memory for firmware (an Orin Nano 8GB shows Linux 7.4 GiB) and 1.5 GB for Linux without a desktop, "
    "the CUDA context, TensorRT and Python: an assumption, on the careful side. A desktop takes 0.8 GB more "
    "(dusty-nv/jetson-containers, docs/setup.md)."
)

# What TensorRT reaches, by NVIDIA's own measurements (docs/fit.md has the arithmetic).
_ORIN_COMPUTE, _THOR_COMPUTE = 0.4, 0.25

# Operations per SM and clock of Orin's tensor cores, without sparsity. From the technical brief's 170 sparse INT8 TOPS
# for 16 SMs at 1.3 GHz: 170e12 / 2 / 16 / 1.3e9 = 4087; float16 is half of it, as in all GPUs of the Ampere generation.
_ORIN_INT8_PER_CLOCK = 4096
_ORIN_SOURCE = (
    "NVIDIA Jetson AGX Orin Series Technical Brief v1.2: 128 CUDA cores and four tensor cores per SM; 16 SMs at "
    "1.3 GHz make 5.3 FP32 TFLOPS and 170 sparse INT8 TOPS, so 4096 dense INT8, 2048 dense FP16 and 256 FP32 "
    "operations per SM and clock. The DLA's TOPS are not counted. Clocks: Jetson Linux Developer Guide, Supported "
    "Modes and Power Efficiency. "
)


def _orin(name: str, title: str, gib: int, sms: int, ghz: float, gb_per_s: float, source: str) -> Device:
    clock = sms * ghz * 1e9
    return Device(
        name=name,
        title=title,
        memory_bytes=gib * GIB,
        reserved_bytes=int(0.07 * gib * GIB + 1.5 * GB),
        reserved_for=_JETSON_RESERVED,
        bandwidth=gb_per_s * 1e9,
        fp32=clock * 256,
        fp16=clock * _ORIN_INT8_PER_CLOCK / 2,
        int8=clock * _ORIN_INT8_PER_CLOCK,
        compute_capability="8.7",
        source=_ORIN_SOURCE + source,
        compute_efficiency=_ORIN_COMPUTE,
    )


def _thor(name: str, title: str, gib: int, sparse_fp4: float, sms: int, ghz: float, source: str) -> Device:
    return Device(
        name=name,
        title=title,
        memory_bytes=gib * GIB,
        reserved_bytes=int(0.07 * gib * GIB + 1.5 * GB),
        reserved_for=_JETSON_RESERVED,
        bandwidth=273e9,
        fp32=sms * ghz * 1e9 * 256,
        fp16=sparse_fp4 / 8,
        int8=sparse_fp4 / 4,
        compute_capability="11.0",
        source=source,
        compute_efficiency=_THOR_COMPUTE,
    )


_NANO = "NVIDIA Jetson Orin Nano Series Data Sheet: 1024 CUDA cores (8 SMs) at 625 MHz, 128-bit LPDDR5 at 68 GB/s."
_NX = "NVIDIA Jetson Orin NX Series Data Sheet DS-10712-001: 1024 CUDA cores (8 SMs), 128-bit LPDDR5 at 102.4 GB/s, "
_SUPER = (
    'NVIDIA Technical Blog, "JetPack 6.2 Brings Super Mode to Jetson Orin Nano and Jetson Orin NX Modules": MAXN SUPER '
)
_THOR = (
    'NVIDIA Technical Blog, "Introducing NVIDIA Jetson Thor": T5000 with 2560 CUDA cores (20 SMs) at 1.57 GHz, 273 '
    "GB/s, 2070 sparse FP4 TFLOPS, 517 TFLOPS dense FP8 or sparse FP16: an eighth of sparse FP4 for dense FP16, a "
    "quarter for 8 bits, whose rate is FP8's. "
)

DEVICES = {
    device.name: device
    for device in (
        _orin("orin-nano-8gb", "Jetson Orin Nano 8GB at 15 W", 8, 8, 0.625, 68, _NANO),
        _orin(
            "orin-nano-8gb-super", "Jetson Orin Nano 8GB in Super mode", 8, 8, 1.02, 102, _SUPER + "1020 MHz, 102 GB/s."
        ),
        _orin("orin-nx-8gb", "Jetson Orin NX 8GB", 8, 8, 0.765, 102.4, _NX + "765 MHz."),
        _orin("orin-nx-8gb-super", "Jetson Orin NX 8GB in Super mode", 8, 8, 1.173, 102.4, _NX + _SUPER + "1173 MHz."),
        _orin("orin-nx-16gb", "Jetson Orin NX 16GB", 16, 8, 0.918, 102.4, _NX + "918 MHz."),
        _orin(
            "orin-nx-16gb-super", "Jetson Orin NX 16GB in Super mode", 16, 8, 1.173, 102.4, _NX + _SUPER + "1173 MHz."
        ),
        _orin("agx-orin-32gb", "Jetson AGX Orin 32GB", 32, 14, 0.93, 204.8, "14 SMs at 930 MHz, 204.8 GB/s."),
        _orin("agx-orin-64gb", "Jetson AGX Orin 64GB", 64, 16, 1.3, 204.8, "204.8 GB/s."),
        _thor(
            "thor-64gb",
            "Jetson T4000 (Thor) 64GB",
            64,
            1200e12,
            12,
            1.53,
            _THOR + 'T4000: "Accelerate AI Inference for Edge and Robotics with NVIDIA Jetson T4000 and JetPack 7.1": '
            "1536 CUDA cores (12 SMs), 1200 sparse FP4 TFLOPS, 273 GB/s; 1.53 GHz makes these TFLOPS of 12 SMs.",
        ),
        _thor("thor-128gb", "Jetson T5000 (Thor) 128GB", 128, 2070e12, 20, 1.57, _THOR),
        card(
            "l4",
            "NVIDIA L4",
            24,
            300,
            fp32=30.3e12,
            fp16=121e12,
            int8=242.5e12,
            compute_capability="8.9",
            source="NVIDIA L4 Tensor Core GPU Datasheet: 30.3 FP32 TFLOPS, 242 FP16 TFLOPS and 485 INT8 TOPS with "
            "sparsity, halved; 300 GB/s.",
        ),
        *RTX_DEVICES,
        card(
            "h100",
            "NVIDIA H100 SXM 80GB",
            80,
            3350,
            fp32=66.9e12,
            fp16=989.4e12,
            int8=1978.9e12,
            compute_capability="9.0",
            source="NVIDIA H100 Tensor Core GPU Architecture, table of the H100 SXM5: dense FP16 989.4 TFLOPS, INT8 "
            "1978.9 TOPS, FP32 66.9 TFLOPS; 3.35 TB/s.",
        ),
        Device(
            name="raspberry-pi-5-8gb",
            title="Raspberry Pi 5 8GB",
            memory_bytes=8 * GIB,
            reserved_bytes=GB,
            reserved_for="1 GB for Linux without a desktop and Python: an assumption.",
            bandwidth=17.07e9,
            fp32=153.6e9,
            fp16=None,
            int8=None,
            compute_capability=None,
            source="Raspberry Pi 5 product brief: four Cortex-A76 at 2.4 GHz, 32-bit LPDDR4X-4267 (4267e6 * 4 bytes "
            "= 17.07 GB/s). Arm Cortex-A76 Software Optimization Guide: two 128-bit pipes for FMLA, so 4 cores * 2 "
            "pipes * 4 lanes * 2 operations * 2.4 GHz.",
        ),
    )
}
"""All devices but the one at hand, by name."""


def device_named(name: str) -> Device:
    """The device of that name. Raises PruneVidError for any other, naming those there are."""
    if name not in DEVICES:
        raise PruneVidError(f"unknown device {name!r}: known are {', '.join([*DEVICES, LOCAL])}")
    return DEVICES[name]
