"""TensorRT-RTX compiles kernels where it runs: they are kept for the next start, and whatever is wrong with them costs
another compilation and nothing more.

The GPU and TensorRT-RTX are stand-ins; files, folders and processes are real.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import pytest
from conformance import FRAMES, QUESTIONS, SAMPLING, assert_same, record
from fake_cuda import FakeCuda
from fake_tensorrt_rtx import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    FakeTensorRtRtx,
    RtxEngine,
    RuntimeConfig,
    add_rtx_engines,
)

from prunevid import PruneVidError
from prunevid.bundle import Bundle
from prunevid.runtime.backends import kernel_store
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.kernel_store import KernelStore
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.backends.tensorrt_rtx import open_tensorrt_rtx
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline

CLIP = Path(__file__).parents[1] / "runtime" / "demo" / "clip.mp4"
GRAPHS = {"vision_merge", "merge", "llm_pre", "select", "llm_post"}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    return add_rtx_engines(shutil.copytree(tiny_bundle("qwen2", "portable"), folder), frames=8)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def start(bundle: Bundle) -> tuple[Chain, FakeTensorRtRtx, FakeCuda]:
    """As a process would that starts."""
    cuda = FakeCuda()
    trt = FakeTensorRtRtx(cuda, bundle.manifest)
    return Chain(bundle, open_tensorrt_rtx(bundle, cuda=Cuda(cuda), trt=trt)), trt, cuda


def kept(home: Path) -> dict[str, bytes]:
    folder = home / ".cache" / "prunevid" / "tensorrt-rtx"
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}


# --- what is compiled, and when ----------------------------------------------------------------------------


def test_the_second_start_compiles_nothing(bundle: Bundle, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {file: file.stat().st_mtime_ns for file in bundle.path.iterdir()}
    chain, trt, _ = start(bundle)
    # An engine's two profiles share what was compiled.
    assert sorted(trt.compiled) == sorted(f"{graph}: any size" for graph in GRAPHS)
    assert len(kept(home)) == len(GRAPHS)
    assert caplog.messages == ["note: TensorRT-RTX compiles kernels for Fake GPU, which the next start finds again"]
    expected = record(bundle, OrtCpuBackend(threads=1))
    caplog.clear()
    pipeline = Pipeline(bundle, chain)
    pipeline.open(FRAMES).ask(QUESTIONS[0], SAMPLING)
    sizes = trt.compiled[len(GRAPHS) :]
    # For what was run, but for select, whose sizes never come again.
    assert {size.split(":")[0] for size in sizes} == {"vision_merge", "llm_pre", "llm_post"}
    del chain, pipeline
    gc.collect()
    assert trt.dangling == 0

    cuda = FakeCuda()
    again = FakeTensorRtRtx(cuda, bundle.manifest)
    backend = open_tensorrt_rtx(bundle, cuda=Cuda(cuda), trt=again)
    session = Pipeline(bundle, Chain(bundle, backend)).open(FRAMES)
    session.ask(QUESTIONS[0], SAMPLING)
    assert again.compiled == []
    assert_same(record(bundle, backend), expected, apart=1e-4)
    assert caplog.messages == []
    assert {file: file.stat().st_mtime_ns for file in bundle.path.iterdir()} == before


def test_repeated_runs_are_left_to_tensorrt_rtx(bundle: Bundle) -> None:
    chain, trt, gpu = start(bundle)
    strategies, graphs = DynamicShapesKernelSpecializationStrategy, CudaGraphStrategy
    assert {name: config.cuda_graph_strategy for name, config in trt.configs.items()} == {
        **dict.fromkeys(GRAPHS, graphs.WHOLE_GRAPH_CAPTURE),
        "select": graphs.DISABLED,
    }
    specialized = {name: each.dynamic_shapes_kernel_specialization_strategy for name, each in trt.configs.items()}
    assert specialized == {**dict.fromkeys(GRAPHS, strategies.LAZY), "select": strategies.NONE}
    pieces = iter(Pipeline(bundle, chain).open(FRAMES).stream(QUESTIONS[0], SAMPLING))
    for _ in range(3):
        next(pieces)
    trt.binds = 0
    list(pieces)
    # A step like the one before is enqueued as it is: nothing is bound again, and nothing captured around it.
    assert (trt.binds, gpu.captures, gpu.launches) == (0, 0, 0)


AT_EXIT = """
import sys
from pathlib import Path
Path.home = lambda: Path(sys.argv[2])
from conformance import FRAMES, QUESTIONS, SAMPLING
from fake_cuda import FakeCuda
from fake_tensorrt_rtx import FakeTensorRtRtx
from prunevid.bundle import open_bundle
from prunevid.runtime.backends.tensorrt_rtx import open_tensorrt_rtx
from prunevid.runtime.chain import Chain
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.pipeline import Pipeline
bundle, gpu = open_bundle(Path(sys.argv[1])), FakeCuda()
trt = FakeTensorRtRtx(gpu, bundle.manifest)
pipeline = Pipeline(bundle, Chain(bundle, open_tensorrt_rtx(bundle, cuda=Cuda(gpu), trt=trt)))
pipeline.open(FRAMES).ask(QUESTIONS[0], SAMPLING)
if sys.argv[3] == "error":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(("ending", "status"), [("end", 0), ("error", 3)])
def test_what_came_up_is_kept_when_the_process_ends(bundle: Bundle, home: Path, ending: str, status: int) -> None:
    command = [sys.executable, "-c", AT_EXIT, str(bundle.path), str(home), ending]
    done = subprocess.run(command, cwd=Path(__file__).parent, check=False, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    chain, trt, _ = start(bundle)
    Pipeline(bundle, chain).open(FRAMES).ask(QUESTIONS[0], SAMPLING)
    assert trt.compiled == []


@pytest.mark.parametrize("what", ["driver", "gpu", "capability", "release", "engine"])
def test_kernels_are_for_one_engine_gpu_driver_and_release(
    bundle: Bundle, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    start(bundle)
    other, gpu = bundle, FakeCuda()
    if what == "driver":
        gpu.driver = 13030
    elif what in ("gpu", "capability"):
        properties = gpu.cudaGetDeviceProperties(0)[1]
        properties.name, properties.minor = (b"Another GPU", 7) if what == "gpu" else (b"Fake GPU", 6)
        monkeypatch.setattr(gpu, "cudaGetDeviceProperties", lambda device: (0, properties))
    elif what == "release":
        monkeypatch.setattr(FakeTensorRtRtx, "__version__", "1.8.0.1")
        (rtx,) = bundle.manifest.engine_sets
        sets = (replace(rtx, release="1.8.0.1"),)
        other = replace(bundle, manifest=replace(bundle.manifest, engine_sets=sets))
    else:
        other = add_rtx_engines(shutil.copytree(bundle.path, tmp_path / "other"), frames=7)
    trt = FakeTensorRtRtx(gpu, other.manifest)
    Chain(other, open_tensorrt_rtx(other, cuda=Cuda(gpu), trt=trt))
    assert len(trt.compiled) == len(GRAPHS)
    assert len(kept(home)) == 2 * len(GRAPHS)


# --- files and folders that are wrong ----------------------------------------------------------------------


def a_folder(file: Path) -> None:
    file.unlink()
    (file / "in it").mkdir(parents=True)


def a_link(file: Path) -> None:
    file.rename(file.with_suffix(".moved"))
    file.symlink_to(file.with_suffix(".moved"))


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def of_another_engine(file: Path) -> None:
    others = sorted(each for each in file.parent.iterdir() if each != file)
    shutil.copy(others[0], file)


def too_large(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(1 << 40)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "a bit differs": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"),
    "foreign": lambda file: file.write_bytes(b"\x7fELF" + bytes(1000)),
    "of another engine": of_another_engine,
    "too large": too_large,
    "a folder": a_folder,
    "a link": a_link,
    "a pipe": a_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_thrown_away(home: Path, damage: str) -> None:
    store, key = KernelStore("tensorrt-rtx"), {"engine": "x"}
    store.write(key, b"some kernels")
    (file,) = (home / ".cache" / "prunevid" / "tensorrt-rtx").iterdir()
    store.write({"engine": "y"}, b"others")
    DAMAGES[damage](file)
    assert store.read(key) is None
    assert os.path.lexists(file) == (damage == "a folder")
    store.write(key, b"made again")
    # Not even a link is followed; where a folder is, no file can be.
    assert store.read(key) == (None if damage == "a folder" else b"made again")
    assert store.read({"engine": "y"}) == b"others"


def test_what_was_thrown_away_is_compiled_again(bundle: Bundle, home: Path) -> None:
    start(bundle)
    files = sorted((home / ".cache" / "prunevid" / "tensorrt-rtx").iterdir())
    DAMAGES["truncated"](files[-1])
    _, trt, _ = start(bundle)
    assert len(trt.compiled) == 1
    _, trt, _ = start(bundle)
    assert trt.compiled == []


def test_what_tensorrt_rtx_does_not_take_is_thrown_away(bundle: Bundle, home: Path) -> None:
    start(bundle)
    before = kept(home)
    cuda = FakeCuda()
    trt = FakeTensorRtRtx(cuda, bundle.manifest)
    # It checks more than the key tells.
    trt.environment.append("another compiler")
    chain = Chain(bundle, open_tensorrt_rtx(bundle, cuda=Cuda(cuda), trt=trt))
    assert len(trt.compiled) == len(GRAPHS)
    assert kept(home).keys() == before.keys()
    assert all(kept(home)[name] != content for name, content in before.items())
    Pipeline(bundle, chain).open(FRAMES)


@pytest.mark.parametrize("home_is", ["a file", "full", "none", "a loop"])
def test_a_cache_that_cannot_be_written_is_a_note(
    bundle: Bundle, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home_is: str
) -> None:
    if home_is == "a file":
        (home / ".cache").write_text("")
    elif home_is == "a loop":
        (home / ".cache").symlink_to(home / ".cache")
    elif home_is == "full":

        def full(*arguments: Any, **options: Any) -> Any:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("prunevid.files.tempfile.NamedTemporaryFile", full)
    else:

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", nobody)
    chain, _, _ = start(bundle)
    assert Pipeline(bundle, chain).open(FRAMES).ask(QUESTIONS[0], SAMPLING).text
    del chain
    gc.collect()
    notes = [message for message in caplog.messages if "are not kept for the next start" in message]
    # Once, and not once for each engine.
    assert len(notes) == 1
    reason = {"none": "no home folder", "full": "No space left", "a loop": "symbolic links", "a file": ""}[home_is]
    assert reason in notes[0]


def test_kernels_without_end_are_not_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernel_store, "_LARGEST", 1 << 20)
    store, key = KernelStore("tensorrt-rtx"), {"engine": "x"}
    store.write(key, b"some")
    store.write(key, bytes(1 << 20))
    assert store.read(key) == b"some"
    assert caplog.messages == ["note: compiled kernels are not kept for the next start: those of one engine are 1 MB"]


WRITER = """
import sys
from pathlib import Path
Path.home = lambda: Path(sys.argv[1])
from prunevid.runtime.backends.kernel_store import KernelStore
store, mark = KernelStore("tensorrt-rtx"), int(sys.argv[2])
for number in range(40):
    store.write({"engine": "x"}, bytes([mark]) * (100_000 + 1000 * mark))
    found = store.read({"engine": "x"})
    assert found is not None
    assert len(set(found)) == 1 and len(found) == 100_000 + 1000 * found[0], len(found)
"""


def test_several_processes_may_keep_kernels_at_once(home: Path) -> None:
    # Each reads after it has written: there is always a file, and it is always one of those that were written.
    command = [sys.executable, "-c", WRITER, str(home)]
    writers = [subprocess.Popen([*command, str(mark)], stderr=subprocess.PIPE) for mark in range(3)]
    errors = [writer.communicate()[1] for writer in writers]
    assert errors == [b""] * 3
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(kept(home)) == 1


def test_the_folder_is_the_users_alone(bundle: Bundle, home: Path) -> None:
    start(bundle)
    assert (home / ".cache" / "prunevid" / "tensorrt-rtx").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("failing", ["create_runtime_cache", "set_runtime_cache"])
def test_without_a_cache_of_tensorrt_rtx_it_runs_all_the_same(
    bundle: Bundle, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    monkeypatch.setattr(RuntimeConfig, failing, lambda *arguments: None)
    chain, trt, _ = start(bundle)
    # Once for each context: nothing is shared.
    assert len(trt.compiled) == len(GRAPHS) + 1
    assert Pipeline(bundle, chain).open(FRAMES).ask(QUESTIONS[0], SAMPLING).text
    assert kept(home) == {}
    assert any("not kept for the next start: TensorRT-RTX takes no cache for them" in each for each in caplog.messages)


def test_an_engine_that_cannot_be_prepared_is_one_sentence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RtxEngine, "create_runtime_config", lambda engine: None)
    with pytest.raises(PruneVidError, match=r"^TensorRT-RTX cannot prepare the engine of vision_merge\.onnx: it gives"):
        start(bundle)


# --- TensorRT-RTX itself, and the command ------------------------------------------------------------------

REAL_RUNTIME = """
import sys
from pathlib import Path
from fake_cuda import FakeCuda
import tensorrt_rtx
from prunevid import PruneVidError
from prunevid.bundle import open_bundle
from prunevid.runtime.backends.tensorrt_rtx import open_tensorrt_rtx
from prunevid.runtime.backends.cuda import Cuda
bundle = open_bundle(Path(sys.argv[1]))
backend = open_tensorrt_rtx(bundle, cuda=Cuda(FakeCuda()), trt=tensorrt_rtx)
try:
    backend.load(bundle, "merge")
except PruneVidError as error:
    print(error)
"""


def test_what_tensorrt_rtx_itself_does_not_load_is_told_in_its_words(bundle: Bundle, tmp_path: Path) -> None:
    trt = needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")
    other = add_rtx_engines(shutil.copytree(bundle.path, tmp_path / "other"), frames=8, release=trt.__version__)
    # In a process of its own: it is native code, here without its driver. The engine is a stand-in's.
    command = [sys.executable, "-c", REAL_RUNTIME, str(other.path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"TensorRT-RTX {trt.__version__} cannot load {other.path / 'merge.rtx.engine'}: ")
    assert "it gives no reason" not in done.stdout


@pytest.mark.parametrize("command", ["run", "profile"])
def test_a_bundle_without_such_engines_is_one_sentence(tiny_bundle: Callable[[str, str], Path], command: str) -> None:
    bundle = tiny_bundle("qwen2", "portable")
    arguments = [command, str(bundle), "--video", str(CLIP), "--question", "Why?", "--backend", "tensorrt-rtx"]
    line = [sys.executable, "-m", "prunevid.cli", *arguments]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"prunevid {command}: error: {bundle} has no TensorRT-RTX engines: build them on any machine with "
        f"`prunevid build --device rtx {bundle}`\n"
    )
