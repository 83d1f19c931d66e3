"""`prunevid build --device rtx`: what a bundle holds afterwards, what is refused, and that nothing is left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from builder_stand_in import ORIN, RtxStandIn, StandIn

from benchmarks.quantize_memory import drawn
from prunevid.bundle import Bundle, open_bundle
from prunevid.bundle.sections.engine_sets import EngineDevice, EngineSet, engines_for
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.questions import Split
from prunevid.calibration.workspace import Workspace
from prunevid.cli import main
from prunevid.console.progress import Silent
from prunevid.errors import PruneVidError
from prunevid.export.engine import cli as build_cli
from prunevid.export.engine.builder import build
from prunevid.export.engine.jobs import BuildSettings
from prunevid.export.engine.targets import RTX, rtx_capabilities

GRAPHS = ("vision_merge", "merge", "llm_pre", "select", "llm_post")
KNOWN = RtxStandIn.capabilities


def build_rtx(path: Path, toolkit: RtxStandIn, *capabilities: str, **options: Any) -> Bundle:
    settings = BuildSettings(capabilities=capabilities)
    return build(path, device=RTX, settings=settings, toolkit=toolkit, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def path(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A portable bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("precision", "asked", "chosen"),
    [
        ("fp16", (), ("8.0", "8.6", "8.9", "12.0", "12.1")),
        ("fp8", (), ("8.9", "12.0", "12.1")),
        ("int4", ("12.0", "8.6"), ("8.6", "12.0")),
        ("fp8", ("8.9",), ("8.9",)),
    ],
)
def test_the_capabilities_that_are_built_for(precision: str, asked: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    assert rtx_capabilities(asked, KNOWN, "1.7.1.116", precision) == chosen


@pytest.mark.parametrize(
    ("precision", "asked", "sentence"),
    [
        *(
            (
                "fp16",
                (unknown,),
                rf"1\.7\.1\.116 does not build for compute capability {shown}, but for 8\.0, 8\.6, 8\.9",
            )
            for unknown, shown in (
                ("8.7", "'8.7'"),
                ("9.0", "'9.0'"),
                ("11.0", "'11.0'"),
                ("", "''"),
                ("8", "'8'"),
                ("08.6", "'08.6'"),
                ("sm_86", "'sm_86'"),
                ("8.6,8.9", "'8.6,8.9'"),
                ("\x1b[2J", r"'\\x1b\[2J'"),
            )
        ),
        ("fp16", ("8.6", "7.5"), "does not multiply matrices in float32, .* on compute capability 7.5"),
        ("fp32", ("8.6", "8.9", "8.6"), "compute capability 8.6 is asked for twice"),
        ("fp8", ("8.6",), "8.6 do not compute in float8, .*: build for 8.9, 12.0, 12.1, or calibrate it by int8-qdq"),
        ("fp8", ("12.0", "8.0"), "8.0 do not compute in float8"),
    ],
)
def test_capabilities_that_cannot_be_built_for_are_refused(
    precision: str, asked: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(PruneVidError, match=sentence) as error:
        rtx_capabilities(asked, KNOWN, "1.7.1.116", precision)
    assert str(error.value).isprintable()


def test_engines_for_rtx_stand_beside_those_for_the_gpu_at_hand(path: Path) -> None:
    (first,) = build(path, toolkit=StandIn()).manifest.engine_sets  # type: ignore[arg-type]
    built = build_rtx(path, RtxStandIn(), "8.6", "12.0").manifest
    beside, for_rtx = built.engine_sets
    assert beside == first
    assert for_rtx == EngineSet("tensorrt-rtx", "1.7.1.116", ("8.6", "12.0"), for_rtx.graphs)
    assert set(for_rtx.graphs) == set(GRAPHS)
    for graph, engine in for_rtx.graphs.items():
        stem, mark, number, suffix = engine.file.split(".")
        assert (stem, mark, len(number), suffix) == (graph, "rtx", 12, "engine")
    assert open_bundle(path).manifest == built
    again = build(path, toolkit=StandIn(), text=64).manifest  # type: ignore[arg-type]
    assert again.engine_sets == (for_rtx, EngineSet.built_on(ORIN, again.engine_sets[-1].graphs))
    assert again.engine_sets[-1] != first
    assert {p.name for p in path.glob("*.engine")} == {engine.file for engine in again.all_engines}


def test_operators_are_written_out_and_nothing_is_a_plugin(path: Path) -> None:
    toolkit = RtxStandIn()
    build_rtx(path, toolkit)
    assert not toolkit.has_plugins
    assert all(not model.functions for model in toolkit.models.values())
    assert {node.domain for model in toolkit.models.values() for node in model.graph.node} == {""}


def test_what_was_built_of_the_same_for_the_same_is_kept(path: Path) -> None:
    build_rtx(path, RtxStandIn(), "8.6", "8.9")
    before = contents(path)
    toolkit = RtxStandIn()
    build_rtx(path, toolkit, "8.9", "8.6")
    assert not toolkit.models
    assert contents(path) == before
    build_rtx(path, toolkit, "8.9", "8.6", text=64)
    assert set(toolkit.models) == {"llm_pre", "select", "llm_post"}


@pytest.mark.parametrize(
    ("release", "capabilities", "options"),
    [("1.7.1.117", ("8.6",), {}), ("1.7.1.116", ("8.6",), {"force": True})],
)
def test_what_was_built_for_something_else_is_built_again(
    path: Path, release: str, capabilities: tuple[str, ...], options: dict[str, Any]
) -> None:
    build_rtx(path, RtxStandIn(), "8.6")
    toolkit = RtxStandIn(release)
    built = build_rtx(path, toolkit, *capabilities, **options).manifest
    assert set(toolkit.models) == set(GRAPHS)
    (engines,) = built.engine_sets
    assert (engines.release, engines.capabilities) == (release, capabilities)
    assert {p.name for p in path.glob("*.engine")} == {engine.file for engine in built.all_engines}


def test_engines_for_other_capabilities_stand_beside_those_that_are_there(path: Path) -> None:
    build_rtx(path, RtxStandIn(), "8.6")
    built = build_rtx(path, RtxStandIn(), "8.6", "8.9").manifest
    assert [engines.capabilities for engines in built.engine_sets] == [("8.6",), ("8.6", "8.9")]
    files = [engine.file for engine in built.all_engines]
    assert len(set(files)) == 2 * len(GRAPHS)
    assert {p.name for p in path.glob("*.engine")} == set(files)
    # Both run on 8.6: what was built last is taken, whether or not anything had to be built for it.
    here = EngineDevice("1.7.1.116", "GPU", "8.6", "13.2")
    assert engines_for(built.engine_sets, "tensorrt-rtx", here).capabilities == ("8.6", "8.9")
    again = build_rtx(path, RtxStandIn(), "8.6").manifest.engine_sets
    assert engines_for(again, "tensorrt-rtx", here).capabilities == ("8.6",)


@pytest.mark.parametrize("error", [PruneVidError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_build_that_fails_leaves_the_bundle_as_it_was(path: Path, error: BaseException) -> None:
    build(path, toolkit=StandIn())  # type: ignore[arg-type]
    build_rtx(path, RtxStandIn(), "8.6")
    before = contents(path)
    with pytest.raises((PruneVidError, KeyboardInterrupt)):
        build_rtx(path, RtxStandIn(failing="select", error=error), "8.9")
    assert contents(path) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--timing-cache", "x.cache"], "--timing-cache does not go with --device rtx"),
        (["--check"], "--check does not go with --device rtx"),
        (["--workspace", "0"], "--workspace must be 1 MiB or more"),
        (["--workspace", "256"], "--workspace does not go with --device rtx"),
        (["--frames", "0"], "frames must be 1 or more"),
        (["--fp16"], "--precision fp16"),
    ],
)
def test_mistakes_are_told_before_tensorrt_is_looked_for(
    path: Path, options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert main(["build", str(path), "--device", "rtx", *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("device", [[], ["--device", "orin"], ["--device", "local"]])
def test_capabilities_go_with_rtx_alone(path: Path, device: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(path), *device, "--capability", "8.6"]) == 2
    assert "--capability goes with --device rtx" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [{"workspace": 256}, {"timing_cache": Path("x.cache")}])
def test_settings_that_it_has_not_are_refused(path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(PruneVidError, match="it has no workspace and no timing cache"):
        build(path, device=RTX, settings=BuildSettings(**setting), toolkit=RtxStandIn())  # type: ignore[arg-type]


def test_capabilities_and_devices_are_not_passed_over(path: Path) -> None:
    settings = BuildSettings(capabilities=("8.9",))
    with pytest.raises(PruneVidError, match="TensorRT builds for the GPU at hand"):
        build(path, settings=settings, toolkit=StandIn())  # type: ignore[arg-type]
    with pytest.raises(PruneVidError, match="the device 'rtxx' is none of local, orin, thor, rtx"):
        build(path, device="rtxx", toolkit=StandIn())  # type: ignore[arg-type]


def test_without_onnx_it_names_the_extra_for_rtx(path: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from prunevid.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "build", str(path), "--device", "rtx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "onnx cannot be loaded" in done.stderr
    assert "pip install 'prunevid[rtx]'" in done.stderr


def test_without_the_package_it_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    before = contents(path)
    assert main(["build", str(path), "--device", "rtx"]) == 2
    told = capsys.readouterr().err
    assert "tensorrt_rtx cannot be loaded" in told
    assert "pip install 'prunevid[rtx]'" in told
    assert contents(path) == before


def test_a_platform_that_it_does_not_exist_for_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prunevid.export.engine.rtx.sys.platform", "darwin")
    assert main(["build", str(path), "--device", "rtx"]) == 2
    assert "TensorRT-RTX is there for Linux and Windows, and this is darwin" in capsys.readouterr().err


def test_a_bundle_that_is_quantized_has_the_engines_of_none(path: Path, tmp_path: Path) -> None:
    build(path, toolkit=StandIn())  # type: ignore[arg-type]
    source = build_rtx(path, RtxStandIn(), "8.9")
    workspace = Workspace(tmp_path / "out", "int8-qdq")
    with patch("prunevid.calibration.quantize.calibrate.observe", drawn):
        made = quantize(source, Split((), ()), Settings("int8-qdq"), workspace, Silent())
    assert made.manifest.engine_sets == ()
    assert not [name for name in made.manifest.files if name.endswith(".engine")]
    assert not list(made.path.glob("*.engine"))


def test_a_bundle_for_onnx_runtime_alone_is_refused(
    tiny_bundle: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle("qwen2", "ort")), "--device", "rtx"]) == 2
    assert "export it with --dialect portable" in capsys.readouterr().err


def test_the_command_says_what_was_built_for_what(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prunevid.export.engine.rtx.RtxToolkit", RtxStandIn)
    command = ["build", str(path), "--device", "rtx", "--capability", "12.0", "--capability", "8.6", "--text", "64"]
    assert main(command) == 0
    told = capsys.readouterr()
    first, *lines = told.out.splitlines()
    assert first == "TensorRT-RTX 1.7.1.116, for compute capability 8.6, 12.0"
    assert len(lines) == len(GRAPHS)
    assert all(line.endswith(", built in 0.5 s") for line in lines)
    assert "select: starting" in told.err
    assert main(command) == 0
    assert capsys.readouterr().out.count(", kept\n") == len(GRAPHS)
    assert build_cli._RTX == RTX
    (listed,) = json.loads((path / "manifest.json").read_text())["engine_sets"]
    assert (listed["product"], listed["capabilities"]) == ("tensorrt-rtx", ["8.6", "12.0"])
