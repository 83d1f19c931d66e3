"""What a manifest says of TensorRT engines: which devices they are for, and what each of them takes.

An engine of TensorRT runs only with the release and on the kind of GPU that it was built with, one of TensorRT for RTX
only with its release and on the compute capabilities that it was built for. Whoever loads one asks :func:`check_device`
or :func:`check_rtx_device` first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunevid.errors import InvalidValueError, PruneVidError
from prunevid.validation import LARGEST, require, require_text, shown

_LONGEST = 200
_MOST_CAPABILITIES = 32


@dataclass(frozen=True)
class EngineDevice:
    """What an engine is bound to.

    tensorrt: its full version ("10.16.0.72"). gpu: the GPU's name; compute_capability: "8.7" for Orin, "11.0" for Thor.
    driver: the newest CUDA version that the driver knows ("13.2").
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str

    def __post_init__(self) -> None:
        version = re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", self.driver)
        if version is None:
            raise InvalidValueError(f"driver is {shown(self.driver)}, no CUDA version")
        for name in ("tensorrt", "gpu", "compute_capability"):
            require_text(name, getattr(self, name), _LONGEST)


@dataclass(frozen=True)
class InputRange:
    """Smallest, usual and largest shape of an engine's input; of an input that shapes depend on, its values."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = self.minimum, self.optimum, self.maximum
        holds = len(set(map(len, shapes))) == 1 and all(
            0 <= least <= usual <= most <= LARGEST for least, usual, most in zip(*shapes, strict=True)
        )
        require("a range", shapes, holds, "a smallest, a usual and a largest shape")


@dataclass(frozen=True)
class EngineProfile:
    """One optimization profile of an engine; its number is its place in the engine's list.

    shapes: of every input. values: of those inputs from which TensorRT computes shapes, which it reads from host
    memory.
    """

    name: str
    shapes: dict[str, InputRange]
    values: dict[str, InputRange]


@dataclass(frozen=True)
class EngineSpec:
    """The engine of one graph: its file in the bundle and its profiles. Inputs and outputs are called as the graph's.

    source: SHA-256 of everything that went into it, by which a later build knows that it can be kept.
    """

    file: str
    profiles: tuple[EngineProfile, ...]
    source: str

    def __post_init__(self) -> None:
        require("source", self.source, len(self.source) <= _LONGEST, f"a text of up to {_LONGEST} characters")


@dataclass(frozen=True)
class EngineSet:
    """The engines of a bundle's graphs, by graph, all built on one device."""

    device: EngineDevice
    graphs: dict[str, EngineSpec]


@dataclass(frozen=True)
class RtxEngineSet:
    """The engines of a bundle's graphs, by graph, all built by one release of TensorRT for RTX, on whatever machine.

    release: its full version ("1.7.1.116"). capabilities: the GPUs that the engines are for ("8.6", "12.0"), ascending.
    """

    release: str
    capabilities: tuple[str, ...]
    graphs: dict[str, EngineSpec]

    def __post_init__(self) -> None:
        version = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){2,3}", self.release)
        require("release", self.release, version is not None, "a version of TensorRT for RTX, such as 1.7.1.116")
        known = all(re.fullmatch(r"(0|[1-9][0-9]?)\.[0-9]", capability) for capability in self.capabilities)
        numbers = [_number(capability) for capability in self.capabilities] if known else []
        holds = 1 <= len(numbers) <= _MOST_CAPABILITIES and numbers == sorted(set(numbers))
        require("capabilities", self.capabilities, holds, "compute capabilities such as 8.6, each once, ascending")


def check_device(engines: EngineSet, here: EngineDevice) -> None:
    """Raise PruneVidError where these engines cannot run: another TensorRT or GPU, or a driver older than theirs."""
    built = engines.device
    if built.tensorrt != here.tensorrt:
        what, ours, theirs = "TensorRT", here.tensorrt, built.tensorrt
    elif (built.gpu, built.compute_capability) != (here.gpu, here.compute_capability):
        what, ours, theirs = "the GPU", _gpu(here), _gpu(built)
    elif _number(here.driver) < _number(built.driver):
        what, ours, theirs = "the driver's CUDA version", here.driver, f"{built.driver} or newer"
    else:
        return
    raise PruneVidError(
        f"the engines of this bundle do not run here: {what} is {ours}, they need {theirs}: "
        "build them again on this machine with `prunevid build`"
    )


def check_rtx_device(engines: RtxEngineSet, release: str, capability: str) -> None:
    """Raise PruneVidError where these engines cannot run: another release, or a GPU that they were not built for.

    release: TensorRT for RTX's full version here. capability: the GPU's compute capability ("8.9").
    """
    if engines.release != release:
        what, ours, theirs = "TensorRT-RTX", release, engines.release
    elif capability not in engines.capabilities:
        what, ours, theirs = "the GPU's compute capability", capability, " or ".join(engines.capabilities)
    else:
        return
    raise PruneVidError(
        f"the TensorRT-RTX engines of this bundle do not run here: {what} is {ours}, they need {theirs}: "
        "build them again with `prunevid build --device rtx`"
    )


def _gpu(device: EngineDevice) -> str:
    return f"{device.gpu} (sm_{device.compute_capability.replace('.', '')})"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
