"""Building engines: what is refused before, what the bundle holds after, and that a failure leaves it as it was.

The builder itself needs a GPU. Here a stand-in for it takes down what it is asked to build.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builder_stand_in import ORIN, SHAPE_INPUTS, StandIn
from told import Told

from prunevid import bundle as bundles
from prunevid.bundle import Manifest, open_bundle, sha256_of, write_manifest
from prunevid.bundle.changing import check_unchanged
from prunevid.bundle.sections.engine_sets import EngineDevice, EngineSet, engines_for
from prunevid.cli import main
from prunevid.errors import PruneVidError
from prunevid.export.engine import builder
from prunevid.export.engine import cli as build_cli
from prunevid.export.engine.builder import build
from prunevid.export.engine.jobs import BuildSettings
from prunevid.export.engine.kernels import MAX_FRAMES
from prunevid.export.engine.profiles import TEXT
from prunevid.export.engine.targets import LOCAL, TARGETS
from prunevid.export.lint import tensorrt

GRAPHS = ("vision_merge", "merge", "llm_pre", "select", "llm_post")


def run_build(path: Path, toolkit: StandIn, **options: Any) -> bundles.Bundle:
    return build(path, toolkit=toolkit, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def path(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A portable bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle"))


def test_engines_become_part_of_the_bundle(path: Path) -> None:
    before = contents(path)
    told: list[str] = []
    toolkit = StandIn()
    built = run_build(path, toolkit, progress=Told(lambda what, *_: told.append(what)))
    opened = open_bundle(path)
    assert opened.manifest == built.manifest
    (engines,) = opened.manifest.engine_sets
    assert engines == EngineSet("tensorrt", "10.16.0.72", ("8.7",), engines.graphs, "Orin", "13.2")
    assert set(engines.graphs) == set(GRAPHS) == set(toolkit.models)
    for graph, engine in engines.graphs.items():
        assert json.loads(opened.file(engine.file).read_bytes())[0] == graph
        inputs = [spec.name for spec in opened.manifest.graphs[graph].inputs]
        for profile in engine.profiles:
            assert list(profile.shapes) == inputs
            assert tuple(profile.values) == SHAPE_INPUTS.get(graph, ())
    after = contents(path)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert set(after) - set(before) == {engine.file for engine in engines.graphs.values()}
    assert told == [f"{graph}: {what}" for graph in engines.graphs for what in ("starting", "phase")]


@pytest.mark.parametrize("when", ["building", "checked", "moved", "named"])
def test_a_bundle_that_comes_in_the_place_of_another_is_not_overwritten(
    path: Path, tiny_bundle: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """At every step: while an engine is built, and between the last check and the manifest."""
    other = tiny_bundle("qwen2", "ort")

    def replaced() -> None:
        with bundles.new_bundle(path, overwrite=True) as folder:
            shutil.copytree(other, folder, dirs_exist_ok=True)

    def behind(done: Callable[..., Any], times: int) -> Callable[..., Any]:
        count = 0

        def doing(*given: Any) -> Any:
            nonlocal count
            result, count = done(*given), count + 1
            if count == times:
                replaced()
            return result

        return doing

    toolkit = StandIn()
    if when == "building":
        monkeypatch.setattr(toolkit, "build", behind(toolkit.build, 2))
    elif when == "moved":
        monkeypatch.setattr(builder, "sha256_of", behind(sha256_of, 2))
    elif when == "checked":
        monkeypatch.setattr(builder, "check_unchanged", behind(check_unchanged, 1))
    else:
        monkeypatch.setattr("prunevid.bundle.changing.write_manifest", behind(write_manifest, 1))
    with pytest.raises(PruneVidError, match="was replaced meanwhile: start building engines of it again"):
        run_build(path, toolkit)
    assert contents(path) == contents(other)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_manifest_of_engines_survives_being_written_and_read(path: Path) -> None:
    run_build(path, StandIn())
    data = json.loads((path / "manifest.json").read_text())
    (engines,) = data["engine_sets"]
    assert (engines["gpu"], engines["capabilities"], engines["driver"]) == ("Orin", ["8.7"], "13.2")
    ranges = engines["graphs"]["select"]["profiles"][0]["shapes"]["quota"]
    assert ranges["minimum"] == [2]


def spoil_range(engines: Any) -> None:
    engines["graphs"]["select"]["profiles"][0]["shapes"]["quota"]["minimum"] = ["one"]


def spoil_driver(engines: Any) -> None:
    engines["driver"] = "newest"


def drop_engine(engines: Any) -> None:
    del engines["graphs"]["llm_post"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_range, r"quota.minimum\[0\] is a str"),
        (spoil_driver, "driver is 'newest'"),
        (drop_engine, "not every graph has an engine"),
    ],
)
def test_damaged_entries_are_refused(path: Path, spoil: Callable[[Any], None], sentence: str) -> None:
    run_build(path, StandIn())
    data = json.loads((path / "manifest.json").read_text())
    spoil(data["engine_sets"][0])
    (path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(PruneVidError, match=f"damaged .*{sentence}"):
        open_bundle(path)


def test_models_come_with_plugins_where_tensorrt_takes_them(path: Path) -> None:
    toolkit = StandIn()
    run_build(path, toolkit)
    assert all(not model.functions for model in toolkit.models.values())
    domains = {node.domain for model in toolkit.models.values() for node in model.graph.node}
    assert domains == {"", "prunevid"}
    assert toolkit.has_plugins


def test_models_have_standard_operators_alone_for_jetpack_6(path: Path) -> None:
    toolkit = StandIn(dataclasses.replace(ORIN, release="10.3.0.30"))
    run_build(path, toolkit)
    assert all(not model.functions for model in toolkit.models.values())
    assert {node.domain for model in toolkit.models.values() for node in model.graph.node} == {""}
    assert not toolkit.has_plugins


def test_engines_that_are_there_already_are_kept(path: Path) -> None:
    run_build(path, StandIn())
    before = contents(path)
    again = StandIn()
    run_build(path, again)
    assert not again.models
    assert contents(path) == before
    forced = StandIn()
    run_build(path, forced, force=True)
    assert set(forced.models) == set(GRAPHS)
    assert contents(path) == before


def test_what_did_not_change_is_kept(path: Path) -> None:
    run_build(path, StandIn())
    toolkit = StandIn()
    run_build(path, toolkit, text=64)
    assert set(toolkit.models) == set(GRAPHS) - {"vision_merge", "merge"}
    assert len(list(path.glob("*.engine"))) == len(GRAPHS)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 3},
        {"settings": BuildSettings(workspace=512)},
        {"device": dataclasses.replace(ORIN, driver="13.3")},
        {"device": dataclasses.replace(ORIN, release="10.13.3.9")},
    ],
)
def test_what_changed_is_built_again_and_replaces_the_old(path: Path, change: dict[str, Any]) -> None:
    run_build(path, StandIn())
    toolkit = StandIn(change.pop("device", ORIN))
    run_build(path, toolkit, **change)
    assert set(toolkit.models) == set(GRAPHS)
    (engines,) = open_bundle(path).manifest.engine_sets
    assert {p.name for p in path.glob("*.engine")} == {engine.file for engine in engines.graphs.values()}
    assert engines == EngineSet.built_on(toolkit.device(), engines.graphs)


def test_engines_for_another_gpu_stand_beside_those_that_are_there(path: Path) -> None:
    first = run_build(path, StandIn()).manifest.engine_sets
    nx = dataclasses.replace(ORIN, gpu="Orin NX")
    both = run_build(path, StandIn(nx)).manifest.engine_sets
    assert both == (*first, EngineSet.built_on(nx, both[-1].graphs))
    assert engines_for(both, "tensorrt", ORIN) == first[0]
    assert engines_for(both, "tensorrt", nx) == both[1]
    # Built again on the first, of something else: what is for the other stays, and nothing is left behind.
    again = run_build(path, StandIn(), text=64).manifest
    assert again.engine_sets[0] == both[1]
    assert engines_for(again.engine_sets, "tensorrt", ORIN) != first[0]
    assert {p.name for p in path.glob("*.engine")} == {engine.file for engine in again.all_engines}
    with pytest.raises(
        PruneVidError, match="the 2 sets of engines .* the GPU is Thor .* they need Orin NX .*; the GPU"
    ):
        engines_for(again.engine_sets, "tensorrt", dataclasses.replace(ORIN, gpu="Thor", compute_capability="11.0"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PruneVidError("no"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("has_engines", [False, True])
def test_a_build_that_fails_leaves_the_bundle_as_it_was(path: Path, error: BaseException, has_engines: bool) -> None:
    if has_engines:
        run_build(path, StandIn())
    before = contents(path)
    with pytest.raises((KeyboardInterrupt, PruneVidError)):
        run_build(path, StandIn(failing="llm_post", error=error), frames=2)
    assert contents(path) == before
    assert not list(path.glob(".*"))


def test_a_manifest_that_cannot_be_written_leaves_the_bundle_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(path)

    def fail(folder: Path, manifest: Manifest) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunevid.bundle.changing.write_manifest", fail)
    with pytest.raises(PruneVidError, match="building engines of .* failed: No space left on device"):
        run_build(path, StandIn())
    assert contents(path) == before


def test_other_dialects_are_refused(tiny_bundle: Callable[[str, str], Path]) -> None:
    with pytest.raises(PruneVidError, match="'ort' dialect.*--dialect portable"):
        run_build(tiny_bundle("qwen2", "ort"), StandIn())


def test_half_precision_is_exported_and_not_made_here(path: Path) -> None:
    with pytest.raises(PruneVidError, match="is in fp32.*--precision fp16"):
        run_build(path, StandIn(), fp16=True)


def test_float8_is_refused_where_the_gpu_has_none(path: Path) -> None:
    bundles.write_manifest(path, dataclasses.replace(open_bundle(path).manifest, precision="fp8"))
    with pytest.raises(PruneVidError, match=r"compute capability 8\.7, and float8 needs 8\.9.*int8-qdq or int4-awq"):
        run_build(path, StandIn())
    for capability in ("8.9", "9.0", "11.0"):
        run_build(path, StandIn(dataclasses.replace(ORIN, compute_capability=capability)))


@pytest.mark.parametrize(
    ("name", "device", "sentence"),
    [
        ("orin", dataclasses.replace(ORIN, gpu="NVIDIA H100", compute_capability="9.0"), "not a Jetson Orin"),
        ("thor", ORIN, "not a Jetson Thor"),
        ("thor", EngineDevice("10.3.0.30", "Thor", "11.0", "13.0"), "10.13 or newer is needed.*JetPack 7.1"),
        (LOCAL, dataclasses.replace(ORIN, release="8.6.2.3"), "10.3 or newer is needed.*JetPack 6.2"),
    ],
)
def test_machines_that_are_not_the_device(path: Path, name: str, device: EngineDevice, sentence: str) -> None:
    toolkit = StandIn(device)
    with pytest.raises(PruneVidError, match=sentence):
        run_build(path, toolkit, device=name)
    assert not toolkit.models


@pytest.mark.parametrize("name", [*TARGETS, LOCAL])
def test_the_device_at_hand_is_taken(path: Path, name: str) -> None:
    capability = TARGETS[name].compute_capability if name in TARGETS else "12.0"
    toolkit = StandIn(EngineDevice("10.16.0.72", "GPU", capability, "13.2"))
    run_build(path, toolkit, device=name)
    assert set(toolkit.models) == set(GRAPHS)


def test_a_graph_that_tensorrt_could_not_parse_is_refused_before_anything_is_built(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = tensorrt.operators

    def without_gemm(release: tuple[int, int]) -> dict[str, frozenset[str]]:
        return {name: types for name, types in complete(release).items() if name != "Gemm"}

    monkeypatch.setattr(tensorrt, "operators", without_gemm)
    toolkit = StandIn(dataclasses.replace(ORIN, release="10.3.0.30"))
    with pytest.raises(
        PruneVidError, match=r"TensorRT 10\.3\.0\.30 cannot parse llm_post: Gemm at .* does not have it"
    ):
        run_build(path, toolkit)
    assert not toolkit.models


def test_jetpack_6_takes_any_number_of_frames(path: Path) -> None:
    toolkit = StandIn(dataclasses.replace(ORIN, release="10.3.0.30"))
    run_build(path, toolkit, frames=157, text=100)
    assert len(toolkit.models) == 5


def test_more_frames_than_the_kernels_take_are_refused(path: Path) -> None:
    toolkit = StandIn()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["prompt"]["max_positions"] = 10**6
    (path / "manifest.json").write_text(json.dumps(manifest))
    # The last batch of new frames may stand behind all frames but one.
    most = MAX_FRAMES - manifest["blocks"]["frames"] + 1
    with pytest.raises(PruneVidError, match=f"{most + 1} frames are too many for the plugins, .* up to {MAX_FRAMES}"):
        run_build(path, toolkit, frames=most + 1)
    run_build(path, toolkit, frames=most)


@pytest.mark.parametrize(
    ("here", "sentence"),
    [
        (dataclasses.replace(ORIN, release="10.16.1.11"), r"TensorRT is 10\.16\.1\.11, they need 10\.16\.0\.72"),
        (dataclasses.replace(ORIN, gpu="Thor", compute_capability="11.0"), r"GPU is Thor \(sm_110\).*Orin \(sm_87\)"),
        (dataclasses.replace(ORIN, driver="12.6"), r"CUDA version is 12\.6, they need 13\.2 or newer"),
    ],
)
def test_engines_of_another_device_are_refused(here: EngineDevice, sentence: str) -> None:
    engines = EngineSet.built_on(ORIN, {})
    assert engines_for([engines], "tensorrt", ORIN) == engines
    assert engines_for([engines], "tensorrt", dataclasses.replace(ORIN, driver="13.10")) == engines
    with pytest.raises(PruneVidError, match=f"{sentence}.*build them again"):
        engines_for([engines], "tensorrt", here)


@pytest.mark.parametrize(
    ("release", "capability", "sentence"),
    [
        ("1.7.0.3", "8.6", "TensorRT-RTX is 1.7.0.3, they need 1.7.1.116"),
        ("1.7.1.116", "8.9", "the GPU's compute capability is 8.9, they need 8.6 or 12.0"),
    ],
)
def test_engines_for_rtx_of_another_release_or_gpu_are_refused(release: str, capability: str, sentence: str) -> None:
    engines = EngineSet("tensorrt-rtx", "1.7.1.116", ("8.6", "12.0"), {})
    for known in engines.capabilities:
        assert engines_for([engines], "tensorrt-rtx", EngineDevice("1.7.1.116", "GPU", known, "12.0")) == engines
    with pytest.raises(PruneVidError, match=f"{sentence}: build them again with `prunevid build --device rtx`"):
        engines_for([engines], "tensorrt-rtx", EngineDevice(release, "GPU", capability, "13.2"))


def test_altered_and_unlisted_engines_are_refused(path: Path) -> None:
    built = run_build(path, StandIn())
    (engines,) = built.manifest.engine_sets
    file = path / engines.graphs["select"].file
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"!")
    with pytest.raises(PruneVidError, match="was altered"):
        open_bundle(path)
    file.write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][file.name]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PruneVidError, match="is not in its files"):
        open_bundle(path)


def test_without_tensorrt_the_command_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build", str(path)]) == 2
    assert "tensorrt cannot be loaded" in (told := capsys.readouterr().err)
    assert "python3-libnvinfer" in told
    assert "pip install 'prunevid[tensorrt]'" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workspace", "0"], "--workspace must be 1 MiB or more"),
        (["--timing-cache", "/nowhere/at/all"], "cannot write the timing cache /nowhere/at/all"),
        (["--frames", "0"], "frames must be 1 or more"),
        (["--text", "3"], "text must be 32 or more"),
        (["--fp16"], "--precision fp16"),
    ],
)
def test_mistakes_are_told_before_tensorrt_is_looked_for(
    path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(path), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_knows_the_devices_and_the_text() -> None:
    assert (LOCAL, *TARGETS) == build_cli._DEVICES
    assert TEXT == build_cli._TEXT


def test_building_needs_no_torch() -> None:
    code = (
        "import sys; import prunevid.export.engine.builder, prunevid.export.engine.toolkit; "
        "print([name for name in ('torch', 'transformers', 'onnxscript', 'onnx_ir') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
