"""What stands in for TensorRT's builder, which needs a GPU: it takes down what it is asked to build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx

from prunevid.bundle import Manifest
from prunevid.engines import EngineDevice
from prunevid.export.engine import profiles as build_profiles
from prunevid.export.engine.profiles import Profile
from prunevid.export.engine.toolkit import BuildProgress, BuildSettings, BuiltEngine

ORIN = EngineDevice("10.16.0.72", "Orin", "8.7", "13.2")
SHAPE_INPUTS = {"llm_pre": ("question_start",), "select": ("video_start",)}


class StandIn:
    """Takes TensorRT's place: notes every model that it is to build, and fails at ``failing`` if told to."""

    def __init__(self, device: EngineDevice = ORIN, failing: str = "", error: BaseException | None = None) -> None:
        self.version = device.tensorrt
        self.models: dict[str, onnx.ModelProto] = {}
        self.settings: list[BuildSettings] = []
        self.has_plugins = False
        self._device, self._failing, self._error = device, failing, error

    def device(self) -> EngineDevice:
        return self._device

    def register_plugins(self) -> None:
        self.has_plugins = True

    def build(
        self,
        model: bytes,
        path: Path,
        manifest: Manifest,
        graph: str,
        profiles: Sequence[Profile],
        settings: BuildSettings,
        progress: BuildProgress,
    ) -> BuiltEngine:
        if graph == self._failing and self._error is not None:
            raise self._error
        assert path.is_file()
        self.models[graph] = onnx.load_from_string(model)
        self.settings.append(settings)
        progress("phase", 1, 2)
        data = json.dumps([graph, [profile.name for profile in profiles], self.version, settings.workspace]).encode()
        known = tuple(
            build_profiles.recorded(manifest, graph, profile, SHAPE_INPUTS.get(graph, ())) for profile in profiles
        )
        return BuiltEngine(memoryview(data), known)
