"""What stands in for TensorRT's builder, which needs a GPU: it takes down what it is asked to build."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from prunevid.bundle import Manifest
from prunevid.bundle.sections.engine_sets import EngineDevice
from prunevid.console.progress import Progress
from prunevid.export.engine import profiles as build_profiles
from prunevid.export.engine.jobs import BuildSettings, BuiltEngine, EngineJob

ORIN = EngineDevice("10.16.0.72", "Orin", "8.7", "13.2")
SHAPE_INPUTS = {"llm_pre": ("question_start",), "select": ("kept_count", "video_start")}


class StandIn:
    """Takes TensorRT's place: notes every model that it is to build, and fails at `failing` if told to."""

    def __init__(self, device: EngineDevice = ORIN, failing: str = "", error: BaseException | None = None) -> None:
        self.version = device.release
        self.models: dict[str, onnx.ModelProto] = {}
        self.settings: list[BuildSettings] = []
        self.has_plugins = False
        self._device, self._failing, self._error = device, failing, error

    def device(self) -> EngineDevice:
        return self._device

    def register_plugins(self) -> None:
        self.has_plugins = True

    def build(
        self, job: EngineJob, output: Path, manifest: Manifest, settings: BuildSettings, progress: Progress
    ) -> BuiltEngine:
        graph = job.graph
        if graph == self._failing and self._error is not None:
            raise self._error
        assert job.file.is_file()
        self.models[graph] = onnx.load_from_string(job.model)
        self.settings.append(settings)
        progress.step(f"{graph}: phase", 2, 1)
        profiles = [profile.name for profile in job.profiles]
        output.write_text(json.dumps([graph, profiles, self.version, settings.workspace]))
        known = tuple(
            build_profiles.recorded(manifest, graph, profile, SHAPE_INPUTS.get(graph, ())) for profile in job.profiles
        )
        return BuiltEngine(known, 0.5)


class RtxStandIn(StandIn):
    """Takes the place of TensorRT for RTX in the same way."""

    capabilities = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")

    def __init__(self, version: str = "1.7.1.116", failing: str = "", error: BaseException | None = None) -> None:
        super().__init__(failing=failing, error=error)
        self.version = version

    def parse(self, job: EngineJob) -> dict[str, list[dict[str, object]]]:
        return {"inputs": [], "outputs": []}
