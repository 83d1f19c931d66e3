"""RTX GPUs and DGX Spark: what TensorRT for RTX builds engines for.

An SM of Ada or Blackwell does 256 operations per clock in float32, 512 dense ones in float16 with float32 accumulation
and 2048 dense ones on 8-bit integers; the RTX PRO cards do 1024 in float16. That is what NVIDIA's tables of the RTX
4090, the RTX 5090 and the RTX PRO 6000 come to. Sparse FP4, which Blackwell's printed TOPS are, is four times dense
INT8 on all of them.
"""

from __future__ import annotations

from prunevid.runtime.fit.devices.device import GB, GIB, Device, card

__all__ = ["RTX_DEVICES"]

_ADA = (
    "NVIDIA Ada GPU Architecture V2, table of the GeForce RTX 4090: dense FP16 tensor rate with FP32 accumulation "
    "165.2 TFLOPS, INT8 660.6 TOPS, FP32 82.6 TFLOPS"
)
_BLACKWELL = (
    "NVIDIA RTX Blackwell GPU Architecture, table 3, GeForce RTX 5090: dense FP16 tensor rate with FP32 accumulation "
    "209.5 TFLOPS, INT8 838 TOPS, FP32 104.8 TFLOPS, 3352 sparse FP4 TFLOPS"
)
_BLACKWELL_PRO = (
    "NVIDIA RTX Blackwell PRO GPU Architecture v1.0, table 4, RTX PRO 6000 Workstation Edition: dense FP16 tensor rate "
    "with FP32 accumulation 503.8 TFLOPS, INT8 1007.6 TOPS, FP32 126 TFLOPS, 4030 sparse FP4 TFLOPS"
)
_LAPTOPS = "NVIDIA's comparison of GeForce laptop GPUs: "


def _laptop(
    name: str, title: str, sms: int, ghz: float, gb_per_s: float, compute_capability: str, source: str
) -> Device:
    """A GPU of 8 GB that laptops have at many powers: the rates are those of its boost clock at the highest."""
    clock = sms * ghz * 1e9
    return card(
        name,
        title,
        8,
        gb_per_s,
        fp32=clock * 256,
        fp16=clock * 512,
        int8=clock * 2048,
        compute_capability=compute_capability,
        source=source,
    )


RTX_DEVICES = (
    _laptop(
        "rtx-4060-laptop",
        "NVIDIA GeForce RTX 4060 Laptop GPU at 115 W",
        24,
        2.37,
        256,
        "8.9",
        _LAPTOPS
        + "3072 CUDA cores (24 SMs), boost clock 1470 MHz at 35 W to 2370 MHz at 115 W, 128-bit memory; 233 AI "
        "TOPS, which is sparse INT8 at 2370 MHz. 16 Gbit/s a pin, so 256 GB/s: TechPowerUp, NVIDIA does not print it. "
        "Rates per SM and clock: " + _ADA + ".",
    ),
    _laptop(
        "rtx-4070-laptop",
        "NVIDIA GeForce RTX 4070 Laptop GPU at 115 W",
        36,
        2.175,
        256,
        "8.9",
        _LAPTOPS
        + "4608 CUDA cores (36 SMs), boost clock 1230 MHz at 35 W to 2175 MHz at 115 W, 128-bit memory; 321 AI "
        "TOPS, which is sparse INT8 at 2175 MHz. 16 Gbit/s a pin, so 256 GB/s: TechPowerUp, NVIDIA does not print it. "
        "Rates per SM and clock: " + _ADA + ".",
    ),
    _laptop(
        "rtx-5070-laptop",
        "NVIDIA GeForce RTX 5070 Laptop GPU 8GB at 100 W",
        36,
        2.347,
        384,
        "12.0",
        _LAPTOPS + "4608 CUDA cores (36 SMs), boost clock 1425 MHz at 50 W to 2347 MHz at 100 W, 128-bit memory. The "
        "798 AI TOPS printed there are sparse FP4 at 2.7 GHz, a clock that the same page does not give: not used. 24 "
        "Gbit/s a pin, so 384 GB/s: TechPowerUp, NVIDIA does not print it. Rates per SM and clock: " + _BLACKWELL + ".",
    ),
    card(
        "rtx-4090",
        "NVIDIA GeForce RTX 4090",
        24,
        1008,
        fp32=82.6e12,
        fp16=165.2e12,
        int8=660.6e12,
        compute_capability="8.9",
        source=_ADA + ", 1008 GB/s.",
    ),
    card(
        "rtx-5090",
        "NVIDIA GeForce RTX 5090",
        32,
        1792,
        fp32=104.8e12,
        fp16=209.5e12,
        int8=838e12,
        compute_capability="12.0",
        source=_BLACKWELL + ", 1792 GB/s.",
    ),
    card(
        "rtx-pro-2000",
        "NVIDIA RTX PRO 2000 Blackwell",
        16,
        288,
        fp32=17e12,
        fp16=545e12 / 8,
        int8=545e12 / 4,
        compute_capability="12.0",
        source="NVIDIA's page of the RTX PRO 2000 Blackwell, the desktop card of 70 W: 545 AI TOPS (sparse FP4), 17 "
        "FP32 TFLOPS, 288 GB/s. Dense FP16 is an eighth of sparse FP4, INT8 a quarter, as in " + _BLACKWELL_PRO + ".",
    ),
    card(
        "rtx-pro-6000",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        96,
        1792,
        fp32=126e12,
        fp16=503.8e12,
        int8=1007.6e12,
        compute_capability="12.0",
        source=_BLACKWELL_PRO + ", 1792 GB/s.",
    ),
    Device(
        name="dgx-spark",
        title="NVIDIA DGX Spark (GB10) 128GB",
        memory_bytes=128 * GIB,
        reserved_bytes=int(0.07 * 128 * GIB + 2.3 * GB),
        reserved_for="7 % of the memory for firmware (Linux shows 119 GiB or more), 2.3 GB for Linux with a desktop, "
        "the CUDA context, TensorRT and Python: an assumption. CPU and GPU share the memory.",
        bandwidth=273e9,
        fp32=31e12,
        fp16=1000e12 / 16,
        int8=1000e12 / 4,
        compute_capability="12.1",
        at_least=("fp16",),
        source="NVIDIA's page of DGX Spark: 128 GB of LPDDR5x at 273 GB/s, 1 PFLOP of sparse FP4. 31 FP32 TFLOPS: "
        "NVIDIA's talk on GB10 at Hot Chips 2025, as The Register reports it. INT8 is a quarter of sparse FP4, as on "
        "all RTX Blackwell. NVIDIA prints no rate for dense FP16. It is taken as a sixteenth of sparse FP4, the lower "
        "of the two ratios that RTX Blackwell has (" + _BLACKWELL + "); on the RTX PRO cards it is an eighth.",
    ),
)
"""One entry a device, laptops first, by name."""
