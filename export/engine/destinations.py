"""What engines are built for: the GPU at hand, or any RTX GPU of some compute capabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx

from prunevid.bundle import Manifest
from prunevid.bundle.sections.engine_sets import EngineSet, EngineSpec
from prunevid.console.progress import Progress
from prunevid.errors import PruneVidError
from prunevid.export.engine import plugins
from prunevid.export.engine.jobs import BuildSettings, BuiltEngine, EngineJob
from prunevid.export.engine.profiles import BuildLimits, ranges_of
from prunevid.export.engine.targets import check_precision, check_target, rtx_capabilities
from prunevid.export.lint.parsers import RTX
from prunevid.export.lint.unsupported import refuse_unsupported, release_of

if TYPE_CHECKING:
    from prunevid.export.engine.rtx import RtxToolkit
    from prunevid.export.engine.toolkit import Toolkit


class Destination(Protocol):
    """What a build is for.

    Attributes:
        mark: What its engines' files have behind the graph's name.
        plugins_too: Whether the `prunevid` operators are plugins there.
    """

    mark: str
    plugins_too: bool

    def prepare(self, manifest: Manifest, limits: BuildLimits) -> None:
        """Make ready for building. Raises PruneVidError where engines for such videos cannot be built."""

    def check(self, job: EngineJob, model: onnx.ModelProto) -> None:
        """Raise PruneVidError where a graph cannot be parsed. model: as the bundle has it."""

    def ingredients(self) -> dict[str, Any]:
        """What an engine is built from beside its graph, its profiles and the settings that all builders have."""

    def engine_set(self, graphs: dict[str, EngineSpec]) -> EngineSet:
        """These engines, with what they are for."""

    def build(self, job: EngineJob, output: Path, manifest: Manifest, progress: Progress) -> BuiltEngine:
        """Build one engine into the file `output`."""


class ThisGpu:
    """The GPU at hand, by TensorRT. Raises PruneVidError where it is not the device of that name, or too old."""

    mark = ""

    def __init__(self, toolkit: Toolkit, device: str, precision: str, settings: BuildSettings) -> None:
        self._toolkit, self._settings = toolkit, settings
        if settings.capabilities:
            raise PruneVidError("compute capabilities are chosen for TensorRT-RTX: TensorRT builds for the GPU at hand")
        self._here, self._release = toolkit.device(), release_of(toolkit.version)
        check_target(device, self._here, self._release)
        check_precision(precision, self._here)
        self.plugins_too = plugins.available(self._release)

    def prepare(self, manifest: Manifest, limits: BuildLimits) -> None:
        """Register the plugins."""
        if self.plugins_too:
            plugins.check_limits(manifest, limits)
            self._toolkit.register_plugins()

    def check(self, job: EngineJob, model: onnx.ModelProto) -> None:
        """By the lint."""
        _lint(job, model, self._here.release)

    def ingredients(self) -> dict[str, Any]:
        """None: the manifest says for which device its engines are."""
        return {}

    def engine_set(self, graphs: dict[str, EngineSpec]) -> EngineSet:
        """For this GPU and this TensorRT."""
        return EngineSet.built_on(self._here, graphs)

    def build(self, job: EngineJob, output: Path, manifest: Manifest, progress: Progress) -> BuiltEngine:
        """On this GPU."""
        return self._toolkit.build(job, output, manifest, self._settings, progress)


class RtxGpus:
    """RTX GPUs of some compute capabilities, by TensorRT for RTX. Raises PruneVidError for those that cannot be."""

    mark = ".rtx"
    # TensorRT-RTX has none from Python.
    plugins_too = False

    def __init__(self, toolkit: RtxToolkit, precision: str, settings: BuildSettings) -> None:
        self._toolkit = toolkit
        if settings.workspace is not None or settings.timing_cache is not None:
            raise PruneVidError("TensorRT-RTX chooses kernels where they run: it has no workspace and no timing cache")
        chosen = rtx_capabilities(settings.capabilities, toolkit.capabilities, toolkit.version, precision)
        self._settings = replace(settings, capabilities=chosen)

    def prepare(self, manifest: Manifest, limits: BuildLimits) -> None:
        """Nothing to be made ready."""

    def check(self, job: EngineJob, model: onnx.ModelProto) -> None:
        """By the parser itself, and by the lint, which knows what the builder refuses later or at the largest sizes."""
        self._toolkit.parse(job)
        _lint(job, model, RTX + self._toolkit.version)

    def ingredients(self) -> dict[str, Any]:
        """The builder and its targets."""
        return {"release": self._toolkit.version, "capabilities": self._settings.capabilities}

    def engine_set(self, graphs: dict[str, EngineSpec]) -> EngineSet:
        """For GPUs of these compute capabilities and this TensorRT for RTX."""
        return EngineSet("tensorrt-rtx", self._toolkit.version, self._settings.capabilities, graphs)

    def build(self, job: EngineJob, output: Path, manifest: Manifest, progress: Progress) -> BuiltEngine:
        """On any machine."""
        return self._toolkit.build(job, output, manifest, self._settings, progress)


def _lint(job: EngineJob, model: onnx.ModelProto, version: str) -> None:
    """Raise PruneVidError where the lint finds something under one of the profiles."""
    for profile in job.profiles:
        refuse_unsupported(model, version, sizes=ranges_of(profile))
