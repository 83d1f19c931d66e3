"""The calls into TensorRT and Polygraphy, as far as they go without a GPU.

TensorRT's Python bindings and Polygraphy are the real ones. TensorRT's builder, network and parser cannot be had, so
those three are recorded: what Polygraphy asks of them is what it would ask on a GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import needs
import pytest
import tensorrt_on_cpu
from told import Told

from prunevid.bundle import Bundle, open_bundle
from prunevid.console.progress import Progress, Silent
from prunevid.errors import PruneVidError
from prunevid.export.engine.jobs import BuildSettings, EngineJob
from prunevid.export.engine.profiles import limits_of, profiles_of
from prunevid.export.engine.toolkit import Toolkit

needs.package("polygraphy")
if reason := tensorrt_on_cpu.missing():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tensorrt_on_cpu.import_tensorrt(tmp_path_factory.mktemp("tensorrt"))
    import tensorrt

    return tensorrt


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path_factory.mktemp("toolkit") / "bundle"))


class Cuda:
    """CUDA's runtime on a Jetson Thor; or without a driver."""

    def __init__(self, driver: int) -> None:
        self._driver = driver

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return self._answer(SimpleNamespace(name=b"NVIDIA Thor\0\0", major=11, minor=0))

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._answer(self._driver)

    def _answer(self, value: Any) -> tuple[Any, ...]:
        from enum import IntEnum

        Error = IntEnum("Error", {"cudaSuccess": 0, "cudaErrorInsufficientDriver": 35})
        return (Error(0), value) if self._driver else (Error(35), None)


@pytest.fixture
def toolkit(trt: Any, monkeypatch: pytest.MonkeyPatch) -> Toolkit:
    import sys

    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda(13020))
    return Toolkit()


class Recorder:
    """Stands for TensorRT's builder, network and parser, and keeps what it is told."""

    def __init__(self, trt: Any, bundle: Bundle, graph: str, shape_inputs: tuple[str, ...]) -> None:
        self.shapes: list[dict[str, tuple[Any, ...]]] = []
        self.values: list[dict[str, tuple[Any, ...]]] = []
        self.parsed: tuple[Any, ...] = ()
        self.config = MagicMock(name="IBuilderConfig", int8_calibrator=None)
        inputs = [
            SimpleNamespace(
                name=spec.name, shape=spec.shape, dtype=spec.dtype, is_shape_tensor=spec.name in shape_inputs
            )
            for spec in bundle.manifest.graphs[graph].inputs
        ]
        self.network = MagicMock(name="INetworkDefinition", num_inputs=len(inputs))
        self.network.get_input.side_effect = inputs.__getitem__
        self.network.__iter__.side_effect = lambda: iter(())
        self.builder = MagicMock(name="Builder")
        self.builder.create_builder_config.return_value = self.config
        self.builder.create_optimization_profile.side_effect = self._profile
        self.builder.build_serialized_network.return_value = b"an engine"

    def _profile(self) -> Any:
        shapes: dict[str, tuple[Any, ...]] = {}
        values: dict[str, tuple[Any, ...]] = {}
        self.shapes.append(shapes)
        self.values.append(values)
        profile = MagicMock(name="IOptimizationProfile")
        profile.set_shape.side_effect = lambda name, *corners: shapes.update({name: corners})
        profile.set_shape_input.side_effect = lambda name, *corners: values.update({name: corners})
        return profile

    def parser(self, errors: list[Any]) -> Any:
        def parse(model: bytes, path: str) -> bool:
            self.parsed = (model, path)
            return not errors

        return lambda network, logger: SimpleNamespace(
            parse=parse, num_errors=len(errors), get_error=errors.__getitem__
        )


@pytest.fixture
def record(trt: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    def start(graph: str, shape_inputs: tuple[str, ...] = (), errors: list[Any] | None = None) -> Recorder:
        recorder = Recorder(trt, bundle, graph, shape_inputs)

        def create_network(strongly_typed: bool) -> tuple[Any, Any]:
            assert strongly_typed
            return recorder.builder, recorder.network

        monkeypatch.setattr("polygraphy.backend.trt.create_network", create_network)
        monkeypatch.setattr(trt, "OnnxParser", recorder.parser(errors or []))
        # Of the library that is a stub here.
        monkeypatch.setattr(trt, "init_libnvinfer_plugins", lambda logger, namespace: True)
        monkeypatch.setattr("polygraphy.backend.trt.util.str_from_config", lambda config, network: "")
        return recorder

    return start


def build(
    toolkit: Toolkit,
    bundle: Bundle,
    graph: str,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> Any:
    profiles = profiles_of(bundle.manifest, graph, limits_of(bundle.manifest))
    job = EngineJob(graph, b"a model", bundle.file(bundle.manifest.graphs[graph].file), profiles)
    return toolkit.build(job, bundle.path / "built", bundle.manifest, settings or BuildSettings(), progress or Silent())


def test_the_device_is_what_cuda_says(toolkit: Toolkit, trt: Any) -> None:
    found = toolkit.device()
    assert (found.gpu, found.compute_capability, found.driver) == ("NVIDIA Thor", "11.0", "13.2")
    assert found.release == trt.__version__


def test_without_a_driver_it_says_so(toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "_cuda", Cuda(0))
    with pytest.raises(PruneVidError, match=r"no NVIDIA GPU can be used here .*cudaErrorInsufficientDriver"):
        toolkit.device()


def test_a_builder_that_does_not_start_is_told(toolkit: Toolkit, bundle: Bundle) -> None:
    """The stub's builder is NULL, as it is on a machine whose driver is too old."""
    with pytest.raises(PruneVidError, match="cannot start its builder for select"):
        build(toolkit, bundle, "select")


def test_profiles_tell_shapes_and_values(toolkit: Toolkit, bundle: Bundle, record: Callable[..., Recorder]) -> None:
    recorder = record("llm_pre", ("question_start",))
    built = build(toolkit, bundle, "llm_pre")
    assert (bundle.path / "built").read_bytes() == b"an engine"
    assert [(profile.name, list(profile.values)) for profile in built.profiles] == [("rows", ["question_start"])]
    assert recorder.parsed == (b"a model", str(bundle.path / "llm_pre.onnx"))
    inputs = {spec.name for spec in bundle.manifest.graphs["llm_pre"].inputs}
    assert len(recorder.shapes) == recorder.config.add_optimization_profile.call_count == 1
    assert all(set(shapes) == inputs - {"question_start"} for shapes in recorder.shapes)
    assert recorder.values == [{"question_start": ((0,), (0,), (511,))}]
    width = bundle.manifest.model.decoder.hidden_size
    assert recorder.shapes[0]["inputs_embeds"] == ((1, 1, width), (1, 512, width), (1, 512, width))


def test_an_input_without_a_range_that_makes_shapes_is_refused(
    toolkit: Toolkit, bundle: Bundle, record: Callable[..., Recorder]
) -> None:
    record("select", ("quota",))
    with pytest.raises(PruneVidError, match="computes shapes of select from its input quota"):
        build(toolkit, bundle, "select")


def test_the_configuration(
    toolkit: Toolkit, trt: Any, bundle: Bundle, record: Callable[..., Recorder], tmp_path: Path
) -> None:
    recorder = record("llm_post")
    recorder.config.get_timing_cache.return_value.serialize.return_value.__enter__.return_value = b"timings"
    cache = tmp_path / "timing.cache"
    build(toolkit, bundle, "llm_post", BuildSettings(workspace=256, timing_cache=cache))
    recorder.config.clear_flag.assert_called_once_with(trt.BuilderFlag.TF32)
    recorder.config.set_flag.assert_not_called()
    recorder.config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 256 << 20)
    assert cache.read_bytes() == b"timings"
    build(toolkit, bundle, "llm_post", BuildSettings(timing_cache=cache))
    assert recorder.config.create_timing_cache.call_args_list[-2].args == (b"timings",)
    assert isinstance(recorder.config.progress_monitor, trt.IProgressMonitor)


def test_what_the_parser_refuses_is_told_with_its_node(
    toolkit: Toolkit, bundle: Bundle, record: Callable[..., Recorder]
) -> None:
    error = SimpleNamespace(node_name=lambda: "n7", node_operator=lambda: "Unique", desc=lambda: "no importer")
    record("select", errors=[error])
    with pytest.raises(PruneVidError, match=r"cannot parse select: n7 \(Unique\): no importer"):
        build(toolkit, bundle, "select")


def test_an_engine_that_is_not_built_is_told(toolkit: Toolkit, bundle: Bundle, record: Callable[..., Recorder]) -> None:
    record("select").builder.build_serialized_network.return_value = None
    with pytest.raises(PruneVidError, match="failed to build select: Invalid Engine"):
        build(toolkit, bundle, "select")


def test_progress_is_passed_on_and_an_interrupt_stops_the_build(
    toolkit: Toolkit, bundle: Bundle, record: Callable[..., Recorder]
) -> None:
    recorder = record("select")
    seen: list[tuple[str, float, float]] = []
    answers: list[bool] = []

    def heard(what: str, done: float, total: float) -> None:
        seen.append((what, done, total))
        if done == 2:
            raise KeyboardInterrupt

    def run(network: Any, config: Any) -> bytes:
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 3)
        monitor.phase_start("Tactic", "Building Engine", 100)
        answers.append(monitor.step_complete("Tactic", 0))
        answers.append(monitor.step_complete("Building Engine", 0))
        answers.append(monitor.step_complete("Building Engine", 1))
        monitor.phase_finish("Tactic")
        monitor.phase_finish("Building Engine")
        return b"half"

    recorder.builder.build_serialized_network.side_effect = run
    with pytest.raises(KeyboardInterrupt):
        build(toolkit, bundle, "select", progress=Told(heard))
    assert seen == [("select: Building Engine", 1, 3), ("select: Building Engine", 2, 3)]
    assert answers == [True, True, False]
