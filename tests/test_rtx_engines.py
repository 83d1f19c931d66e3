"""Every engine of the demo bundle in every precision, built by TensorRT for RTX for the GPUs that people have.

An engine is not looked into: without a driver, TensorRT-RTX's runtime opens none, and `get_engine_validity` calls all
invalid. What goes in and out is asked of the network that the engine was built from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import needs
import onnx
import pytest

from benchmarks.quantize_memory import drawn
from prunevid.bundle import Bundle, open_bundle
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.quantize.linears import load_graph
from prunevid.calibration.quantize.store import stored_bytes
from prunevid.calibration.questions import Split
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import Silent
from prunevid.export.engine.builder import build
from prunevid.export.engine.jobs import BuildSettings, EngineJob
from prunevid.export.engine.profiles import Profile, Range, limits_of, profiles_of
from prunevid.export.engine.rewriting import for_parser
from prunevid.export.engine.rtx import RtxToolkit
from prunevid.export.engine.targets import RTX

needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")
needs.package("torch")

PRECISIONS = ("fp32", "fp16", "int8-qdq", "int4-awq", "fp8-qdq")
# Built for these together, as without --capability, and in half precision and float8 for each alone.
FOR: list[tuple[str, tuple[str, ...]]] = [
    (precision, ("8.6", "8.9", "12.0")) for precision in ("fp32", "int8-qdq", "int4-awq")
]
FOR += [("fp16", (each,)) for each in ("8.6", "8.9", "12.0")] + [("fp8-qdq", (each,)) for each in ("8.9", "12.0")]
DTYPES = {"float": "float32", "half": "float16", "int64": "int64", "int32": "int32"}
# What an engine may be larger than its weights: kernels and tables of the graph.
ROOM = 20_000_000


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The demo bundle in a precision, its activations drawn at random where they are quantized."""
    folder = tmp_path_factory.mktemp("demo")

    @cache
    def make(precision: str) -> Bundle:
        from prunevid.export import export

        if precision in ("fp32", "fp16"):
            return export("demo", folder / precision, dialect="portable", precision=precision)
        workspace = Workspace(folder / precision, precision)
        with patch("prunevid.calibration.quantize.calibrate.observe", drawn):
            return quantize(make("fp16"), Split((), ()), Settings(precision), workspace, Silent())

    return make


@pytest.mark.parametrize(("precision", "capabilities"), FOR)
def test_the_demo_is_built_and_holds_its_weights_once(
    bundles: Callable[[str], Bundle], tmp_path: Path, precision: str, capabilities: tuple[str, ...]
) -> None:
    path = shutil.copytree(bundles(precision).path, tmp_path / "bundle")
    settings = BuildSettings(capabilities=capabilities)
    built = build(path, device=RTX, settings=settings)
    assert open_bundle(path).manifest == built.manifest
    (engines,) = built.manifest.engine_sets
    assert engines.capabilities == capabilities
    assert engines.graphs.keys() == built.manifest.graphs.keys()
    for graph, engine in engines.graphs.items():
        file = built.file(engine.file)
        weights = stored_bytes(load_graph(built.file(built.manifest.graphs[graph].file)), frozenset())
        assert weights <= file.stat().st_size <= 1.05 * weights + ROOM, graph
        with file.open("rb") as opened:
            assert opened.read(4) == b"vtrt"


def job_of(bundle: Bundle, graph: str) -> EngineJob:
    file = bundle.file(bundle.manifest.graphs[graph].file)
    model = for_parser(onnx.load(file, load_external_data=False), plugins_too=False)
    profiles = profiles_of(bundle.manifest, graph, limits_of(bundle.manifest))
    return EngineJob(graph, model.SerializeToString(), file, profiles)


@pytest.mark.parametrize("corner", [0, 1, 2], ids=["smallest", "usual", "largest"])
@pytest.mark.parametrize("graph", ["vision_merge", "merge", "llm_pre", "select", "llm_post"])
def test_every_size_that_is_fixed_is_taken(
    bundles: Callable[[str], Bundle], tmp_path: Path, graph: str, corner: int
) -> None:
    """What a compiler does not take at the sizes of a run it tells when they are all that there are."""
    bundle, toolkit = bundles("fp16"), RtxToolkit()
    job = job_of(bundle, graph)
    for profile in job.profiles:
        fixed = [
            {name: Range(*[size[corner]] * 3) for name, size in ranges.items()}
            for ranges in (profile.sizes, profile.values)
        ]
        single = replace(job, profiles=(Profile(profile.name, *fixed),))
        settings = BuildSettings(capabilities=("8.9",))
        toolkit.build(single, tmp_path / "engine", bundle.manifest, settings, Silent())


def test_a_bundle_for_single_frames_is_built(bundles: Callable[[str], Bundle], tmp_path: Path) -> None:
    path = shutil.copytree(bundles("fp16").path, tmp_path / "bundle")
    built = build(path, device=RTX, frames=1, text=64, settings=BuildSettings(capabilities=("8.9",)))
    assert len(built.manifest.engines_of("tensorrt-rtx")) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_are_those_of_the_graphs(bundles: Callable[[str], Bundle], precision: str) -> None:
    bundle, toolkit = bundles(precision), RtxToolkit()
    for graph, spec in bundle.manifest.graphs.items():
        job = job_of(bundle, graph)
        found = toolkit.parse(job)
        for side, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
            seen = {tensor["name"]: tensor for tensor in found[side]}
            assert seen.keys() == {tensor.name for tensor in tensors}, graph
            for tensor in tensors:
                assert DTYPES[seen[tensor.name]["dtype"]] == tensor.dtype, (graph, tensor.name)
                for size, dim in zip(seen[tensor.name]["shape"], tensor.shape, strict=True):
                    # What it does not know before it runs is -1: of outputs, also some sizes that are fixed.
                    assert size == dim or (size == -1 and (isinstance(dim, str) or side == "outputs"))
        shape_inputs = {tensor["name"] for tensor in found["inputs"] if tensor["is_shape"]}
        assert all(shape_inputs <= profile.values.keys() for profile in job.profiles)
        assert shape_inputs == SHAPE_INPUTS.get(graph, set()), graph


# The inputs that shapes are computed from: host values, of which the runtime knows that they are.
SHAPE_INPUTS = {"llm_pre": {"question_start"}, "select": {"video_start", "kept_count"}}
