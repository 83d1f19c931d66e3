"""TensorRT for RTX's own builder and parser, without a GPU: what they are asked for, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import numpy as np
import onnx
import pytest
from told import Told

from prunevid.bundle import Bundle, open_bundle
from prunevid.console.progress import Silent
from prunevid.errors import PruneVidError
from prunevid.export.engine import rtx_worker
from prunevid.export.engine.jobs import BuildSettings, EngineJob
from prunevid.export.engine.profiles import Profile, Range, limits_of, profiles_of
from prunevid.export.engine.rewriting import for_parser
from prunevid.export.engine.rtx import RtxToolkit

trt = needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")

FOR_ADA = BuildSettings(capabilities=("8.9",))


@pytest.fixture(scope="module")
def toolkit() -> RtxToolkit:
    return RtxToolkit()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Bundle:
    return open_bundle(tiny_bundle("qwen2", "portable"), verify=False)


def job_of(bundle: Bundle, graph: str) -> EngineJob:
    file = bundle.file(bundle.manifest.graphs[graph].file)
    model = for_parser(onnx.load(file, load_external_data=False), plugins_too=False)
    profiles = profiles_of(bundle.manifest, graph, limits_of(bundle.manifest))
    return EngineJob(graph, model.SerializeToString(), file, profiles)


def worker_builder() -> rtx_worker.Builder:
    return rtx_worker.Builder(trt, lambda reply: None)


@pytest.mark.parametrize("graph", ["llm_pre", "llm_post"])
def test_an_engine_takes_and_gives_what_its_graph_does(
    toolkit: RtxToolkit, bundle: Bundle, tmp_path: Path, graph: str
) -> None:
    spec, job = bundle.manifest.graphs[graph], job_of(bundle, graph)
    found = toolkit.parse(job)
    for side, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        seen = {tensor["name"]: tensor for tensor in found[side]}
        assert seen.keys() == {tensor.name for tensor in tensors}
        for tensor in tensors:
            assert DTYPES[seen[tensor.name]["dtype"]] == tensor.dtype
            # What it does not know before it runs is -1: of outputs, also some sizes that are fixed.
            pairs = zip(seen[tensor.name]["shape"], tensor.shape, strict=True)
            assert all(
                size == dim or (size == -1 and (isinstance(dim, str) or side == "outputs")) for size, dim in pairs
            )
    told: list[tuple[str, float, float]] = []
    output = tmp_path / "engine"
    built = toolkit.build(job, output, bundle.manifest, FOR_ADA, Told(lambda *step: told.append(step)))
    assert output.read_bytes()[:4] == b"vtrt"
    assert output.stat().st_size > Path(f"{job.file}.data").stat().st_size
    assert [profile.name for profile in built.profiles] == ["rows"]
    shape_inputs = {tensor["name"] for tensor in found["inputs"] if tensor["is_shape"]}
    assert set(built.profiles[0].values) == shape_inputs == ({"question_start"} if graph == "llm_pre" else set())
    assert told
    assert all(0 < done <= total for _, done, total in told)
    assert built.seconds > 0
    assert built.memory is not None
    assert built.memory > output.stat().st_size


DTYPES = {"float": "float32", "half": "float16", "int64": "int64", "int32": "int32"}


def test_tensorfloat_32_is_off_and_all_else_is_as_asked(bundle: Bundle) -> None:
    builder = worker_builder()
    assert builder._builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    config = builder.configured([], ["8.6", "12.0"])
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.flags == 0
    assert config.num_compute_capabilities == 2
    assert [config.get_compute_capability(place).name for place in range(2)] == ["SM86", "SM120"]
    assert builder._network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_what_builds_is_what_was_configured(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags that the builder gets in the end, by way of the worker's own requests."""
    seen: list[tuple[int, list[str]]] = []

    def build(builder: Any, network: Any, config: Any, writer: Any) -> bool:
        places = range(config.num_compute_capabilities)
        seen.append((config.flags, [config.get_compute_capability(place).name for place in places]))
        return bool(writer.write(b"engine"))

    monkeypatch.setattr(trt.Builder, "build_serialized_network_to_stream", build)
    output = tmp_path / "engine"
    arguments = {"profiles": [], "capabilities": ["8.9"], "output": str(output)}
    replies = io.BytesIO()
    rtx_worker.serve(trt, iter([json.dumps({"do": "build", "with": arguments}).encode()]), replies)
    assert json.loads(replies.getvalue())["result"]["memory"] > 0
    assert seen == [(0, ["SM89"])]
    assert output.read_bytes() == b"engine"


def test_the_builder_knows_the_capabilities_that_it_lists(toolkit: RtxToolkit) -> None:
    assert toolkit.version == trt.__version__
    assert toolkit.capabilities[:4] == ("7.5", "8.0", "8.6", "8.9")
    assert toolkit.capabilities[4:] == ("12.0", "12.1")


def model_of(nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: list[str]) -> bytes:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in inputs.items()]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "made", values, results)
    opset = onnx.helper.make_opsetid("", 20)
    made: bytes = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return made


def test_what_the_parser_refuses_is_named(toolkit: RtxToolkit, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Unique", ["x"], ["y"], name="only_once")
    job = EngineJob("select", model_of([node], {"x": [4]}, ["y"]), tmp_path / "x.onnx", ())
    sentence = r"^TensorRT-RTX [\d.]+ cannot parse select: Unique at only_once: .+"
    with pytest.raises(PruneVidError, match=sentence):
        toolkit.parse(job)


def test_what_the_builder_refuses_is_named(toolkit: RtxToolkit, bundle: Bundle, tmp_path: Path) -> None:
    """More than 3840 of TopK is found when kernels are chosen, not by the parser."""
    count = onnx.helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.array([4000])))
    top = onnx.helper.make_node("TopK", ["x", "k"], ["y", "place"], name="the_best")
    job = EngineJob("select", model_of([count, top], {"x": [5000]}, ["y"]), tmp_path / "x.onnx", ())
    manifest = bundle.manifest
    graphs = {**manifest.graphs, "select": replace(manifest.graphs["select"], inputs=())}
    job = replace(job, profiles=(Profile("all", {}, {}),))
    output = tmp_path / "engine"
    with pytest.raises(PruneVidError, match=r"^TensorRT-RTX [\d.]+ (cannot parse|failed to build) select: .*") as error:
        toolkit.build(job, output, replace(manifest, graphs=graphs), FOR_ADA, Silent())
    assert "the_best" in str(error.value)
    assert "3840" in str(error.value)
    assert "/_src/" not in str(error.value)


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(
    toolkit: RtxToolkit, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        toolkit.build(job_of(bundle, "llm_post"), tmp_path / "none" / "engine", bundle.manifest, FOR_ADA, Silent())
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space left"):
            toolkit.build(job_of(bundle, "llm_post"), Path("/dev/full"), bundle.manifest, FOR_ADA, Silent())


def test_a_builder_that_is_killed_takes_nobody_along(toolkit: RtxToolkit, bundle: Bundle, tmp_path: Path) -> None:
    def kill(what: str, done: float, total: float) -> None:
        for process in children():
            os.kill(process, signal.SIGKILL)

    with pytest.raises(PruneVidError, match="failed to build llm_post: its process was killed, most likely since mem"):
        toolkit.build(job_of(bundle, "llm_post"), tmp_path / "engine", bundle.manifest, FOR_ADA, Told(kill))
    assert not children()


def test_an_error_while_it_is_told_of_progress_ends_the_builder(
    toolkit: RtxToolkit, bundle: Bundle, tmp_path: Path
) -> None:
    def stop(what: str, done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toolkit.build(job_of(bundle, "llm_post"), tmp_path / "engine", bundle.manifest, FOR_ADA, Told(stop))
    assert not children()


def test_a_builder_ends_with_whoever_asked_it() -> None:
    """Its parent is killed: the pipe to it closes while it waits, or in the midst of its work."""
    code = (
        "import os, sys; from prunevid.export.engine.rtx import _Worker; worker = _Worker('TensorRT', 'select'); "
        "print(worker._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(600):
        if not is_running(worker):
            return
        time.sleep(0.05)
    raise AssertionError("it is still there")


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def children() -> list[int]:
    """The builders that this process has."""
    thread = threading.get_native_id()
    found = Path(f"/proc/self/task/{thread}/children").read_text().split()
    return [int(each) for each in found if b"rtx_worker" in Path(f"/proc/{each}/cmdline").read_bytes()]


def test_a_profile_that_does_not_fit_is_told(toolkit: RtxToolkit, bundle: Bundle, tmp_path: Path) -> None:
    job = job_of(bundle, "llm_post")
    sizes = {**job.profiles[0].sizes, "past": Range(0, 9, 9)}
    # Not the builder's fault: the largest number of rows is below the usual one.
    broken = replace(job, profiles=(Profile("rows", {**sizes, "rows": Range(1, 8, 4)}, {}),))
    with pytest.raises(PruneVidError):
        toolkit.build(broken, tmp_path / "engine", bundle.manifest, FOR_ADA, Silent())


@pytest.mark.usefixtures("ordinary_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_command_and_its_builder_and_leaves_nothing(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, number: signal.Signals
) -> None:
    path = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle"))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    command = [sys.executable, "-m", "prunevid.cli", "build", str(path), "--device", "rtx"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    assert any("Building engine" in line for line in process.stderr)
    # As a terminal sends it: to all processes, the builder among them. Killed alone, the command cannot end it.
    (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
    told = process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in told[1]
    assert told[0] == ""
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the builder is still there")
    if number != signal.SIGKILL:
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    opened = open_bundle(path)
    assert opened.manifest.engine_sets == ()


def test_the_command_needs_neither_torch_nor_cuda_and_prints_what_it_built(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle"))
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'cuda', 'polygraphy', 'tensorrt', 'triton', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from prunevid.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["build", str(path), "--device", "rtx", "--capability", "12.0", "--capability", "8.6"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count(": starting")) == (0, 5), done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == f"TensorRT-RTX {trt.__version__}, for compute capability 8.6, 12.0"
    manifest = open_bundle(path).manifest
    assert [line.split(":")[0] for line in lines] == [str(path / engine.file) for engine in manifest.all_engines]
    assert all(" MB, " in line and ", built in " in line and line.endswith(" s") for line in lines)
