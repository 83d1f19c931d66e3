"""Comparing engines with ONNX Runtime, with a second ONNX Runtime in TensorRT's place."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import numpy as np
import onnx
import pytest

from prunevid.bundle import Bundle, Manifest, open_bundle
from prunevid.bundle.sections.engine_sets import EngineDevice, EngineProfile, EngineSet, EngineSpec
from prunevid.cli import main
from prunevid.errors import PruneVidError
from prunevid.export.engine.check import OutputCheck, check_engines
from prunevid.export.engine.jobs import BuiltEngine, EngineJob
from prunevid.export.engine.profiles import limits_of, profiles_of, recorded
from prunevid.export.engine.rewriting import for_parser

needs.package("polygraphy")

SHAPE_INPUTS = {"llm_pre": ("question_start",), "select": ("video_start",)}


DEVICE = EngineDevice("10.16.0.72", "Orin", "8.7", "13.2")


class StandIn:
    """Runs ONNX files in TensorRT's place."""

    def device(self) -> EngineDevice:
        return DEVICE

    def runner(self, engine: Path, profile: int) -> Any:
        from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

        return OnnxrtRunner(SessionFromOnnx(str(engine)), name="stand-in")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose engines are its graphs, written out in ONNX's own operators."""
    path = shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path_factory.mktemp("check") / "bundle")
    opened = open_bundle(path, verify=False)
    limits = limits_of(opened.manifest, 6, 64)
    specs, files = {}, dict(opened.manifest.files)
    for graph, spec in opened.manifest.graphs.items():
        model = onnx.load(opened.file(spec.file), load_external_data=False)
        name = f"{graph}.engine"
        (path / name).write_bytes(for_parser(model, plugins_too=False).SerializeToString())
        profiles: tuple[EngineProfile, ...] = tuple(
            recorded(opened.manifest, graph, profile, SHAPE_INPUTS.get(graph, ()))
            for profile in profiles_of(opened.manifest, graph, limits)
        )
        specs[graph] = EngineSpec(name, profiles, "")
        files[name] = files[spec.file]
    engines = EngineSet.built_on(DEVICE, specs)
    return Bundle(opened.path, dataclasses.replace(opened.manifest, engine_sets=(engines,), files=files))


def run_check(bundle: Bundle) -> list[OutputCheck]:
    return list(check_engines(bundle, StandIn()))  # type: ignore[arg-type]


def test_every_output_under_every_profile_is_compared(bundle: Bundle) -> None:
    found = run_check(bundle)
    (engines,) = bundle.manifest.engine_sets
    wanted = {
        (graph, profile.name, output.name)
        for graph, engine in engines.graphs.items()
        for profile in engine.profiles
        for output in bundle.manifest.graphs[graph].outputs
    }
    assert {(check.graph, check.profile, check.output) for check in found} == wanted
    assert len(found) == len(wanted)
    assert all(check.passed and check.difference == 0 for check in found)


def scale_norm(model: onnx.ModelProto, factor: float) -> None:
    """Multiply the first norm's weights."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith("norm.weight"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


@pytest.mark.parametrize(("factor", "passes"), [(1.0001, True), (1.05, False)])
def test_an_engine_that_computes_something_else_is_found(bundle: Bundle, factor: float, passes: bool) -> None:
    file = bundle.path / "llm_pre.engine"
    before = file.read_bytes()
    try:
        model = onnx.load(file)
        scale_norm(model, factor)
        onnx.save(model, file)
        found = [check for check in run_check(bundle) if check.graph == "llm_pre"]
    finally:
        file.write_bytes(before)
    hidden = [check for check in found if check.output == "hidden"]
    assert len(hidden) == 1
    for check in hidden:
        assert check.passed == passes
        assert check.difference is not None
        assert check.difference > 0


def test_an_output_of_another_shape_is_found(bundle: Bundle) -> None:
    file = bundle.path / "select.engine"
    before = file.read_bytes()
    model = onnx.load(file)
    for node in model.graph.node:
        if "kept" in node.output:
            node.output[list(node.output).index("kept")] = "all_kept"
    zero = onnx.helper.make_tensor("none", onnx.TensorProto.INT64, [1], [0])
    one = onnx.helper.make_tensor("single", onnx.TensorProto.INT64, [1], [1])
    model.graph.initializer.extend([zero, one])
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            if name == "kept":
                node.input[number] = "all_kept"
    model.graph.node.append(onnx.helper.make_node("Slice", ["all_kept", "none", "single"], ["kept"]))
    try:
        onnx.save(model, file)
        found = {check.output: check for check in run_check(bundle) if check.graph == "select"}
    finally:
        file.write_bytes(before)
    assert not found["kept"].passed
    assert found["kept"].difference is None
    assert found["kept_hidden"].passed


def test_a_bundle_without_engines_has_nothing_to_compare(tiny_bundle: Callable[[str, str], Path]) -> None:
    with pytest.raises(PruneVidError, match="has no engines"):
        run_check(open_bundle(tiny_bundle("qwen2", "portable"), verify=False))


class Runnable(StandIn):
    """A TensorRT whose engines are graphs for ONNX Runtime."""

    version = "10.16.0.72"
    factor = 1.0

    def register_plugins(self) -> None:
        pass

    def build(self, job: EngineJob, output: Path, manifest: Manifest, *_: Any) -> BuiltEngine:
        inlined = for_parser(onnx.load(job.file), plugins_too=False)
        if job.graph == "llm_pre":
            scale_norm(inlined, self.factor)
        shape_inputs = SHAPE_INPUTS.get(job.graph, ())
        known = tuple(recorded(manifest, job.graph, profile, shape_inputs) for profile in job.profiles)
        output.write_bytes(inlined.SerializeToString())
        return BuiltEngine(known, 0.5)


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.05, 1)])
def test_the_command_builds_and_checks(
    tiny_bundle: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    status: int,
) -> None:
    path = shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle")
    monkeypatch.setattr("prunevid.export.engine.toolkit.Toolkit", Runnable)
    monkeypatch.setattr(Runnable, "factor", factor)
    assert main(["build", str(path), "--frames", "6", "--text", "64", "--check"]) == status
    told = capsys.readouterr()
    assert "select: starting" in told.err
    assert told.out.count(".engine: ") == 5
    assert "ok   select groups kept: 0.0e+00 apart" in told.out
    assert ("FAIL llm_pre rows hidden: " in told.out) == (status == 1)
    assert "[I]" not in told.out
    assert ("all outputs agree with ONNX Runtime" in told.out) == (status == 0)
    assert ("outputs differ too much" in told.out) == (status == 1)
