"""What a manifest says of engines: which product built them, where they run, and what each of them takes.

A bundle may have several sets, for several GPUs or by several products. An engine of TensorRT runs only with the
release and on the kind of GPU that it was built with, one of TensorRT for RTX only with its release and on the compute
capabilities that it was built for: `engines_for` chooses the set that runs here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prunevid.errors import InvalidValueError, PruneVidError
from prunevid.validation import LARGEST, require, require_text, shown

__all__ = [
    "PRODUCTS",
    "EngineDevice",
    "EngineProduct",
    "EngineProfile",
    "EngineSet",
    "EngineSpec",
    "InputRange",
    "engines_for",
]

_LONGEST = 200
_MOST_CAPABILITIES = 32


@dataclass(frozen=True)
class EngineProduct:
    """What builds and runs engines.

    Attributes:
        name: What the manifest calls it, and the command line the backend that runs its engines.
        title: What sentences call it.
        build: The command that builds engines for it.
        where: On which machine that is done.
        is_bound_to_gpu: Whether engines run on the kind of GPU alone that they were built on; else on any of their
            compute capabilities.
    """

    name: str
    title: str
    build: str
    where: str
    is_bound_to_gpu: bool


PRODUCTS = {
    product.name: product
    for product in (
        EngineProduct("tensorrt", "TensorRT", "prunevid build", "on this machine", is_bound_to_gpu=True),
        EngineProduct(
            "tensorrt-rtx", "TensorRT-RTX", "prunevid build --device rtx", "on any machine", is_bound_to_gpu=False
        ),
    )
}
"""The products by name."""


@dataclass(frozen=True)
class EngineDevice:
    """A GPU, and the software that runs engines on it.

    Attributes:
        release: The product's full version ("10.16.0.72").
        gpu: The GPU's name.
        compute_capability: "8.7" for Orin, "11.0" for Thor.
        driver: The newest CUDA version that the driver knows ("13.2").

    Raises:
        InvalidValueError: A value is none of those.
    """

    release: str
    gpu: str
    compute_capability: str
    driver: str

    def __post_init__(self) -> None:
        _check_driver(self.driver)
        for name in ("release", "gpu", "compute_capability"):
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
    """Engines of all of a bundle's graphs that run in the same places.

    Attributes:
        product: What built them, one of PRODUCTS.
        release: The product's full version ("10.16.0.72"), which also runs them.
        capabilities: The compute capabilities that they run on ("8.6", "12.0"), ascending; of engines that are bound
            to a GPU its own.
        graphs: By graph.
        gpu: The name of the GPU that they are bound to; None where they are bound to none.
        driver: The newest CUDA version that the driver knew there ("13.2"), which is the oldest that runs them.

    Raises:
        InvalidValueError: A value is out of its range, or does not go with the product.
    """

    product: str
    release: str
    capabilities: tuple[str, ...]
    graphs: dict[str, EngineSpec]
    gpu: str | None = None
    driver: str | None = None

    def __post_init__(self) -> None:
        require("product", self.product, self.product in PRODUCTS, " or ".join(PRODUCTS))
        version = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){2,3}", self.release)
        require("release", self.release, version is not None, f"a version of {self._product.title}, such as 1.7.1.116")
        known = all(re.fullmatch(r"(0|[1-9][0-9]?)\.[0-9]", capability) for capability in self.capabilities)
        numbers = [_number(capability) for capability in self.capabilities] if known else []
        holds = 1 <= len(numbers) <= _MOST_CAPABILITIES and numbers == sorted(set(numbers))
        require("capabilities", self.capabilities, holds, "compute capabilities such as 8.6, each once, ascending")
        if self._product.is_bound_to_gpu:
            require("capabilities", self.capabilities, len(numbers) == 1, "the one of the GPU")
            require_text("gpu", self.gpu, _LONGEST)
            _check_driver(self.driver)
        else:
            require("gpu", self.gpu, self.gpu is None, f"null: engines of {self._product.title} are bound to none")
            require("driver", self.driver, self.driver is None, "null, as gpu is")

    @classmethod
    def built_on(cls, device: EngineDevice, graphs: dict[str, EngineSpec]) -> EngineSet:
        """TensorRT's engines, which run where they were built."""
        capabilities = (device.compute_capability,)
        return cls("tensorrt", device.release, capabilities, graphs, device.gpu, device.driver)

    @property
    def place(self) -> tuple[str, str | None, tuple[str, ...]]:
        """What they are for, whatever the release: a bundle has one set of it, and a build replaces that."""
        return self.product, self.gpu, self.capabilities

    @property
    def _product(self) -> EngineProduct:
        return PRODUCTS[self.product]

    def misfit(self, here: EngineDevice) -> str | None:
        """Why they do not run `here`: the release, the GPU or its driver; None where they do."""
        if self.release != here.release:
            what, ours, theirs = self._product.title, here.release, self.release
        elif self.gpu is not None and (self.gpu, self.capabilities) != (here.gpu, (here.compute_capability,)):
            what, ours, theirs = (
                "the GPU",
                _gpu(here.gpu, here.compute_capability),
                _gpu(self.gpu, self.capabilities[0]),
            )
        elif here.compute_capability not in self.capabilities:
            what, ours = "the GPU's compute capability", here.compute_capability
            theirs = " or ".join(self.capabilities)
        elif self.driver is not None and _number(here.driver) < _number(self.driver):
            what, ours, theirs = "the driver's CUDA version", here.driver, f"{self.driver} or newer"
        else:
            return None
        return f"{what} is {ours}, they need {theirs}"


def engines_for(sets: Sequence[EngineSet], product: str, here: EngineDevice) -> EngineSet:
    """The set of a product that runs here; of several the one that was built last, which stands last.

    Args:
        sets: Of which one at least is the product's.
        product: One of PRODUCTS.
        here: The GPU, and the product's release.

    Raises:
        PruneVidError: None of them runs here.
    """
    spec, found = PRODUCTS[product], [engines for engines in sets if engines.product == product]
    misfits = [engines.misfit(here) for engines in found]
    for engines, misfit in zip(reversed(found), reversed(misfits), strict=True):
        if misfit is None:
            return engines
    title = f"{spec.title} " if not spec.is_bound_to_gpu else ""
    where = f" {spec.where}" if spec.is_bound_to_gpu else ""
    if len(misfits) > 1:
        title = f"{len(misfits)} sets of {title}"
    raise PruneVidError(
        f"the {title}engines of this bundle do not run here: {'; '.join(filter(None, misfits))}: "
        f"build them again{where} with `{spec.build}`"
    )


def _gpu(name: str, capability: str) -> str:
    return f"{name} (sm_{capability.replace('.', '')})"


def _check_driver(version: str | None) -> None:
    if version is None or re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", version) is None:
        raise InvalidValueError(f"driver is {shown(version)}, no CUDA version")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
