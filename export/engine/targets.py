"""The devices that engines are built on, and what each must have.

An engine is built on the kind of device that will run it. ``--device`` states which that is; it compiles for no other
machine than the one at hand.

Sources: JetPack 6.2 has TensorRT 10.3, JetPack 7.1 10.13, JetPack 7.2 10.16 for Orin and Thor (NVIDIA's release notes);
Orin is compute capability 8.7, Thor 11.0 (CUDA's list of GPUs).
"""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.engines import EngineDevice
from prunevid.errors import PruneVidError
from prunevid.export import tensorrt_operators

LOCAL = "local"


@dataclass(frozen=True)
class Target:
    """A device by what ``--device`` calls it: its title, compute capability and oldest TensorRT."""

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


def check_precision(precision: str, here: EngineDevice) -> None:
    """Raise PruneVidError where the GPU at hand cannot compute in a bundle's precision."""
    major, _, minor = here.compute_capability.partition(".")
    if precision == "fp8" and (int(major), int(minor)) < _FLOAT8_SINCE:
        raise PruneVidError(
            f"{here.gpu} has compute capability {here.compute_capability}, and float8 needs 8.9 (Ada, Hopper, Thor): "
            "calibrate the bundle by int8-qdq or int4-awq instead"
        )


def check_target(name: str, here: EngineDevice, release: tuple[int, int]) -> None:
    """Raise PruneVidError where the machine at hand is not the device ``name``, or its TensorRT is too old.

    ``local`` is any GPU. release: major and minor number of the TensorRT at hand.
    """
    oldest = tensorrt_operators.OLDEST
    if name != LOCAL:
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
            f"TensorRT {here.tensorrt} is too old: {oldest[0]}.{oldest[1]} or newer is needed, which comes with "
            + ("JetPack 6.2" if oldest == (10, 3) else "JetPack 7.1")
        )
