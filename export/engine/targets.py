"""The devices that engines are built for, and what each must have.

TensorRT builds an engine on the kind of device that will run it. `--device` states which that is; it compiles for no
other machine than the one at hand. TensorRT for RTX, `--device rtx`, builds on any machine for the compute
capabilities that it is told.

Sources: JetPack 6.2 has TensorRT 10.3, JetPack 7.1 10.13, JetPack 7.2 10.16 for Orin and Thor (NVIDIA's release notes);
Orin is compute capability 8.7, Thor 11.0 (CUDA's list of GPUs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunevid.bundle.sections.engine_sets import EngineDevice
from prunevid.errors import PruneVidError
from prunevid.export.lint import tensorrt
from prunevid.validation import shown

LOCAL = "local"
RTX = "rtx"


@dataclass(frozen=True)
class Target:
    """A device by what `--device` calls it: its title, compute capability and oldest TensorRT."""

    name: str
    title: str
    compute_capability: str
    oldest_tensorrt: tuple[int, int]


TARGETS = {
    target.name: target
    for target in (
        Target("orin", "a Jetson Orin", "8.7", (10, 3)),
        Target("thor", "a Jetson Thor", "11.0", (10, 13)),
    )
}


# The first GPUs that multiply in float8: Ada. Source: TensorRT's page "Working with Quantized Types".
_FLOAT8_SINCE = (8, 9)
# Tried with TensorRT-RTX 1.7.1: "Cannot compile operation ... for Turing (SM75): FP32 GEMM is not supported".
_RTX_SINCE = (8, 0)


def check_precision(precision: str, here: EngineDevice) -> None:
    """Raise PruneVidError where the GPU at hand cannot compute in a bundle's precision."""
    if precision == "fp8" and _number(here.compute_capability) < _FLOAT8_SINCE:
        raise PruneVidError(
            f"{here.gpu} has compute capability {here.compute_capability}, and float8 needs 8.9 (Ada, Hopper, Thor): "
            "calibrate the bundle by int8-qdq or int4-awq instead"
        )


def check_target(name: str, here: EngineDevice, release: tuple[int, int]) -> None:
    """Raise PruneVidError where the machine at hand is not the device `name`, or its TensorRT is too old.

    `local` is any GPU. release: major and minor number of the TensorRT at hand.
    """
    oldest = tensorrt.OLDEST
    if name != LOCAL:
        if name not in TARGETS:
            raise PruneVidError(f"the device {shown(name)} is none of {', '.join((LOCAL, *TARGETS, RTX))}")
        target = TARGETS[name]
        oldest = max(oldest, target.oldest_tensorrt)
        if here.compute_capability != target.compute_capability:
            raise PruneVidError(
                f"this machine has {here.gpu} of compute capability {here.compute_capability}, and not {target.title} "
                f"({target.compute_capability}): an engine is built on the device that runs it, so copy the bundle "
                "there and build it there, or leave --device out to build for this GPU"
            )
    if release < oldest:
        raise PruneVidError(
            f"TensorRT {here.release} is too old: {oldest[0]}.{oldest[1]} or newer is needed, which comes with "
            + ("JetPack 6.2" if oldest == (10, 3) else "JetPack 7.1")
        )


def rtx_capabilities(asked: Sequence[str], known: Sequence[str], release: str, precision: str) -> tuple[str, ...]:
    """The compute capabilities that TensorRT for RTX is to build for, in the order of those that are `known` to it.

    asked: by the user; nothing for all on which the bundle runs. release: TensorRT-RTX's version. Raises PruneVidError
    for one that the release does not know, on which the bundle cannot run, or that is asked for twice.
    """
    fit = [capability for capability in known if _number(capability) >= _RTX_SINCE]
    for capability in asked:
        if capability not in known:
            raise PruneVidError(
                f"TensorRT-RTX {release} does not build for compute capability {shown(capability)}, but for "
                f"{', '.join(fit)}: other GPUs, Jetsons among them, build with TensorRT, without --device rtx"
            )
        if capability not in fit:
            raise PruneVidError(
                f"TensorRT-RTX does not multiply matrices in float32, as merging does, on compute capability "
                f"{capability}: build for {', '.join(fit)}"
            )
        if asked.count(capability) > 1:
            raise PruneVidError(f"compute capability {capability} is asked for twice: name each once")
    if precision == "fp8":
        fit = [capability for capability in fit if _number(capability) >= _FLOAT8_SINCE]
        if slow := [capability for capability in asked if capability not in fit]:
            raise PruneVidError(
                f"GPUs of compute capability {slow[0]} do not compute in float8, which this bundle has: build for "
                f"{', '.join(fit)}, or calibrate it by int8-qdq or int4-awq instead"
            )
    return tuple(capability for capability in fit if capability in asked or not asked)


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
