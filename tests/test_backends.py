"""Every backend gives the answers of ONNX Runtime on the CPU, from arrays that nothing but its graphs can read.

Where there is no GPU, the same code runs on stand-ins (fake_cuda.py, fake_ort.py, fake_tensorrt.py): they show that the
chain reads no array that lies on a device, waits where it must, and binds what the engines were built for; not that a
GPU computes the right numbers. On a machine with a GPU, `pytest -m gpu` and `pytest -m tensorrt` run the backends
themselves.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import needs
import numpy as np
import onnxruntime
import pytest
from conformance import DEMO_QUESTIONS, FRAMES, QUESTIONS, SAMPLING, Record, assert_same, record
from fake_cuda import FakeCuda
from fake_ort import TENSORRT, patch_onnxruntime
from fake_tensorrt import DEVICE, FakeTensorRt, add_engines
from fake_tensorrt_rtx import FakeTensorRtRtx, add_rtx_engines

from prunevid import PruneVidError
from prunevid.bundle import Bundle, open_bundle
from prunevid.bundle.sections.blocks import Blocks
from prunevid.bundle.sections.engine_sets import EngineDevice
from prunevid.bundle.sections.quantization import Quantization
from prunevid.export.engine.inputs import make_inputs, sizes_at
from prunevid.export.engine.profiles import limits_of, profiles_of
from prunevid.runtime.backends.backend import choose_backend
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.backends.ort_gpu import OrtCudaBackend, OrtTensorRtBackend
from prunevid.runtime.backends.tensorrt import TensorRtBackend
from prunevid.runtime.backends.tensorrt_rtx import open_tensorrt_rtx
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline

Bundles = Callable[[str], Bundle]
OnCpu = Callable[[str, int], Record]


@pytest.fixture(scope="module")
def bundles(
    tiny_bundle: Callable[[str, str], Path],
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundles:
    """Bundles by kind. "engines" and "demo engines" have engines of TensorRT, "rtx engines" of TensorRT-RTX; the demo's
    rows of KV are aligned as TensorRT wants them, the tiny model's are not."""

    @cache
    def made(kind: str) -> Bundle:
        from prunevid.export import export

        folder = tmp_path_factory.mktemp("bundles") / "bundle"
        if kind == "ort fp16":
            return export("llava-ov", folder, checkpoint=str(tiny_checkpoint("qwen2")), precision="fp16")
        if kind == "engines":
            shutil.copytree(tiny_bundle("qwen2", "portable"), folder)
            return add_engines(folder, frames=8)
        if kind == "rtx engines":
            shutil.copytree(tiny_bundle("qwen2", "portable"), folder)
            return add_rtx_engines(folder, frames=8)
        if kind == "demo engines":
            return add_engines(export("demo", folder, dialect="portable").path, frames=8)
        return open_bundle(tiny_bundle("qwen2", kind))

    return made


@pytest.fixture(scope="module")
def on_cpu(bundles: Bundles) -> OnCpu:
    """What ONNX Runtime on the CPU makes of a bundle, with so many rows at once."""

    @cache
    def recorded(kind: str, rows: int) -> Record:
        return record(in_blocks(bundles(kind), rows), OrtCpuBackend(threads=1))

    return recorded


def in_blocks(bundle: Bundle, rows: int) -> Bundle:
    """A bundle whose decoder segments take so many rows at once."""
    return replace(bundle, manifest=replace(bundle.manifest, blocks=Blocks(frames=4, rows=rows)))


# --- ONNX Runtime on a GPU ---------------------------------------------------------------------------------


# With 29 rows at once, the prefix, the long question and what is kept come in several blocks.
@pytest.mark.parametrize("rows", [512, 29])
@pytest.mark.parametrize("kind", ["ort fp16", "portable"])
def test_the_chain_reads_no_array_that_lies_on_a_device(
    bundles: Bundles, on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch, kind: str, rows: int
) -> None:
    gpu = FakeCuda()
    patch_onnxruntime(monkeypatch, gpu)
    expected = on_cpu(kind, rows)
    bundle = in_blocks(bundles(kind), rows)
    backend = OrtCudaBackend(bundle, threads=1, cuda=Cuda(gpu))
    assert_same(record(bundle, backend), expected)


def test_the_tensorrt_provider_gets_the_language_model_and_what_its_inputs_may_be(
    bundles: Bundles, on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, bundle = FakeCuda(), bundles("portable")
    asked = patch_onnxruntime(monkeypatch, gpu)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    backend = OrtTensorRtBackend(bundle, threads=1, cuda=Cuda(gpu))
    assert_same(record(bundle, backend), on_cpu("portable", 512))
    by_graph = dict(zip(bundle.manifest.graphs, asked, strict=True))
    with_tensorrt = {name for name, providers in by_graph.items() if providers[0][0] == TENSORRT}
    assert with_tensorrt == {"llm_pre", "llm_post"}
    for name in with_tensorrt:
        options = by_graph[name][0][1]
        # Engines are code: none is taken from the bundle's folder.
        for kept in ("trt_engine_cache_path", "trt_timing_cache_path"):
            assert Path(options[kept]).is_dir()
            assert Path(options[kept]).is_relative_to(tmp_path / ".cache")
        smallest, usual, largest = (ranges(options[f"trt_profile_{each}_shapes"]) for each in ("min", "opt", "max"))
        assert (
            list(smallest)
            == list(usual)
            == list(largest)
            == [spec.name for spec in bundle.manifest.graphs[name].inputs]
        )
        for spec in bundle.manifest.graphs[name].inputs:
            for least, often, most in zip(smallest[spec.name], usual[spec.name], largest[spec.name], strict=True):
                assert least <= often <= most
        # A whole video of the bundle's frames fits, with a thousand words.
        visual = bundle.manifest.frames * bundle.manifest.token_layout.tokens_per_frame
        first = next(spec.name for spec in bundle.manifest.graphs[name].inputs if spec.name.startswith("past_key"))
        assert largest[first][1] >= visual + 1000


def ranges(text: str) -> dict[str, tuple[int, ...]]:
    named = (each.split(":") for each in text.split(","))
    return {name: tuple(map(int, shape.split("x"))) for name, shape in named}


# --- TensorRT ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What is kept in the user's home is not kept in ours."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def on_fakes(bundle: Bundle, **options: Any) -> tuple[TensorRtBackend, FakeCuda, FakeTensorRt]:
    """The backend for the engines that a bundle has."""
    gpu = FakeCuda()
    if bundle.manifest.engines_of("tensorrt-rtx"):
        rtx = FakeTensorRtRtx(gpu, bundle.manifest, **options)
        return open_tensorrt_rtx(bundle, cuda=Cuda(gpu), trt=rtx), gpu, rtx
    trt = FakeTensorRt(gpu, bundle.manifest, **options)
    return TensorRtBackend(bundle, cuda=Cuda(gpu), trt=trt), gpu, trt


@pytest.mark.parametrize("rows", [512, 29])
@pytest.mark.parametrize("kind", ["engines", "demo engines", "rtx engines"])
def test_engines_get_what_they_were_built_for(bundles: Bundles, on_cpu: OnCpu, kind: str, rows: int) -> None:
    expected, bundle = on_cpu(kind, rows), in_blocks(bundles(kind), rows)
    backend, _, _ = on_fakes(bundle)
    # A decode step sums over more, masked rows than on the CPU.
    assert_same(record(bundle, backend), expected, apart=1e-4)


def test_a_question_waits_once_and_so_does_a_decode_step(bundles: Bundles) -> None:
    bundle = bundles("demo engines")
    backend, gpu, _ = on_fakes(bundle)
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    gpu.calls.clear()
    session = pipeline.open(FRAMES)
    # For the merge: how many tokens there are, which belong together, where each patch went, and which frames are one
    # segment.
    assert gpu.calls.count("cudaStreamSynchronize") == 4
    for question in DEMO_QUESTIONS:
        gpu.calls.clear()
        stream = session.stream(question, SAMPLING)
        pieces = iter(stream)
        next(pieces)
        assert gpu.calls.count("cudaStreamSynchronize") == 1
        gpu.calls.clear()
        list(pieces)
        assert gpu.calls.count("cudaStreamSynchronize") == len(stream.answer.timings.decode)


def test_decode_steps_that_repeat_themselves_are_launches_and_nothing_else(bundles: Bundles) -> None:
    bundle = bundles("demo engines")
    backend, gpu, trt = on_fakes(bundle)
    session = Pipeline(bundle, Chain(bundle, backend)).open(FRAMES)
    steps = SAMPLING.max_new_tokens - 1
    for number in (1, 2):
        session.ask(DEMO_QUESTIONS[0], SAMPLING)
        # The first step runs as it is, the second is captured; both segments of the model.
        assert (gpu.captures, gpu.launches) == (2 * number, 2 * number * (steps - 1))
    pieces = iter(session.stream(DEMO_QUESTIONS[0], SAMPLING))
    for _ in range(3):
        next(pieces)
    trt.binds = 0
    gpu.calls.clear()
    list(pieces)
    assert trt.binds == gpu.calls.count("cudaMalloc") == 0


@pytest.mark.parametrize("graph", ["vision_merge", "merge", "llm_pre", "select", "llm_post"])
@pytest.mark.parametrize("kind", ["engines", "rtx engines"])
def test_a_run_that_repeats_itself_is_a_launch_whatever_the_graph(bundles: Bundles, kind: str, graph: str) -> None:
    bundle = bundles(kind)
    backend, gpu, trt = on_fakes(bundle)
    manifest, memory = bundle.manifest, backend.memory
    profile = profiles_of(manifest, graph, limits_of(manifest, 8, 64))[0]
    feeds = make_inputs(manifest, graph, sizes_at(profile, "optimum"), {})
    session = onnxruntime.InferenceSession(bundle.file(manifest.graphs[graph].file), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in manifest.graphs[graph].outputs]
    loaded = backend.load(bundle, graph)
    targets: dict[str, Any] = {}
    for turn in range(4):
        # What is in the arrays may differ, as long as nothing that shapes follow from does.
        for name, array in feeds.items():
            if array.dtype == np.float32 and array.ndim:
                feeds[name] = array + np.float32(turn / 8)
        expected = dict(zip(names, session.run(names, feeds), strict=True))
        for name, array in expected.items():
            targets.setdefault(name, memory.empty(array.shape, array.dtype))
        if turn == 1:
            trt.binds = 0
        found = loaded.run(feeds, targets)
        for name, array in expected.items():
            np.testing.assert_allclose(memory.download(found[name]), array, atol=1e-5, err_msg=name)
    assert trt.binds == 0
    # TensorRT-RTX captures by itself.
    assert (gpu.captures, gpu.launches) == ((1, 3) if kind == "engines" else (0, 0))


@pytest.mark.parametrize("kind", ["engines", "demo engines"])
@pytest.mark.parametrize("step", [1, 4])
def test_graphs_are_captured_anew_where_more_rows_are_past(
    bundles: Bundles, on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch, kind: str, step: int
) -> None:
    monkeypatch.setattr("prunevid.runtime.backends.tensorrt._PAST_STEP", step)
    backend, gpu, _ = on_fakes(bundles(kind))
    assert_same(record(bundles(kind), backend), on_cpu(kind, 512), apart=1e-4)
    # With another shape at every step, none comes twice.
    assert (gpu.captures > 12) == (step > 1)
    assert bool(gpu.captures) == (step > 1)


def test_an_engine_that_cannot_be_captured_runs_as_it_is(bundles: Bundles, on_cpu: OnCpu) -> None:
    bundle = bundles("engines")
    backend, gpu, _ = on_fakes(bundle, uncapturable=("llm_pre",))
    assert_same(record(bundle, backend), on_cpu("engines", 512), apart=1e-4)
    # Six answers: the steps of llm_post, but for the first one of each. Unpruned, the cache stays where it was, so that
    # the next answer begins with launches.
    assert gpu.launches >= 6 * (SAMPLING.max_new_tokens - 2)
    assert gpu.captures <= 6


@pytest.mark.parametrize("kind", ["engines", "rtx engines"])
def test_blocks_of_a_single_row_are_no_decode_steps(bundles: Bundles, kind: str) -> None:
    bundle = bundles(kind)
    prompt = Pipeline(bundle, Chain(bundle, OrtCpuBackend(threads=1))).prompt
    # The long question's last row comes alone, and it is scored.
    bundle = in_blocks(bundle, len(prompt.encode(QUESTIONS[1]).suffix) - 1)
    expected = record(bundle, OrtCpuBackend(threads=1))
    backend, _, _ = on_fakes(bundle)
    assert_same(record(bundle, backend), expected, apart=1e-4)


def test_memory_that_is_short_is_told(bundles: Bundles) -> None:
    bundle = bundles("demo engines")
    backend, gpu, _ = on_fakes(bundle)
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    gpu.memory = gpu.used + 300_000
    with pytest.raises(PruneVidError, match=r"the GPU has no room for another [\d,]+ MB"):
        pipeline.open(FRAMES)


def test_an_output_of_unknown_size_is_refused(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles("engines")
    backend, _, _ = on_fakes(bundle)
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    monkeypatch.setattr("fake_tensorrt.Context.get_tensor_shape", lambda context, name: (-1, 8))
    with pytest.raises(PruneVidError, match=r"TensorRT does not know the shape of features beforehand while running"):
        pipeline.open(FRAMES)


@pytest.mark.parametrize(
    ("kind", "build"),
    [("demo engines", "prunevid build --frames"), ("rtx engines", "prunevid build --device rtx --fra")],
)
def test_a_video_that_is_too_large_for_the_engines_is_refused(bundles: Bundles, kind: str, build: str) -> None:
    bundle = bundles(kind)
    backend, _, _ = on_fakes(bundle)
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    with pytest.raises(PruneVidError, match=f"vision_merge was built for less: .*`{build}"):
        pipeline.open(np.concatenate([FRAMES, FRAMES]), frames=12)


@pytest.mark.parametrize(("kind", "title"), [("engines", "TensorRT 10"), ("rtx engines", "TensorRT-RTX 1")])
def test_engines_that_tensorrt_refuses_are_told_in_its_words(bundles: Bundles, kind: str, title: str) -> None:
    bundle = bundles(kind)
    backend, _, _ = on_fakes(bundle, refuses=("select",))
    with pytest.raises(
        PruneVidError,
        match=rf"{title}.* cannot load .*select.*\.engine: Error Code 1: the engine is of another version",
    ):
        Chain(bundle, backend)


@pytest.mark.parametrize(
    ("built_on", "what"),
    [
        (replace(DEVICE, release="10.3.0.30"), r"TensorRT is 10\.16\.0\.72, they need 10\.3\.0\.30"),
        (replace(DEVICE, gpu="Orin"), r"the GPU is Fake GPU \(sm_87\), they need Orin"),
        (replace(DEVICE, driver="13.9"), r"the driver's CUDA version is 13\.2, they need 13\.9"),
    ],
)
def test_engines_of_another_device_are_refused(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, built_on: EngineDevice, what: str
) -> None:
    shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle")
    bundle = add_engines(tmp_path / "bundle", device=built_on)
    with pytest.raises(PruneVidError, match=what):
        on_fakes(bundle)


@pytest.mark.parametrize(
    ("built_for", "what"),
    [
        ({"release": "1.5.0.114"}, r"TensorRT-RTX is 1\.7\.1\.116, they need 1\.5\.0\.114"),
        ({"capabilities": ("8.6", "12.0")}, r"the GPU's compute capability is 8\.7, they need 8\.6 or 12\.0"),
    ],
)
def test_engines_for_other_rtx_gpus_are_refused_before_any_is_loaded(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, built_for: dict[str, Any], what: str
) -> None:
    shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle")
    bundle = add_rtx_engines(tmp_path / "bundle", **built_for)
    with pytest.raises(
        PruneVidError, match=rf"TensorRT-RTX engines of this bundle do not run here: {what}: build them"
    ):
        on_fakes(bundle)


# --- the choice --------------------------------------------------------------------------------------------


def test_without_a_gpu_it_is_the_cpu(bundles: Bundles) -> None:
    assert choose_backend("auto", bundles("ort")).name == "ort-cpu"


def test_a_gpu_that_is_passed_over_is_told_of(bundles: Bundles, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        assert choose_backend("auto", bundles("engines")).name == "ort-cpu"
    assert "not running on tensorrt: TensorRT's Python package cannot be loaded" in caplog.text


def test_auto_prefers_engines_then_onnx_runtime_on_the_gpu(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, gpu = bundles("engines"), FakeCuda()
    patch_onnxruntime(monkeypatch, gpu)
    monkeypatch.setattr("prunevid.runtime.backends.cuda._import_runtime", lambda: gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(gpu, bundle.manifest))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRtRtx(gpu, bundle.manifest))
    assert choose_backend("auto", bundle).name == "tensorrt"
    assert choose_backend("auto", bundles("rtx engines")).name == "tensorrt-rtx"
    assert choose_backend("auto", bundles("portable")).name == "ort-cuda"
    assert not caplog.text
    assert choose_backend("auto", bundles("ort")).name == "ort-cpu"
    assert "not running on ort-cuda" in caplog.text


def test_of_two_kinds_of_engines_auto_takes_those_that_run_here(
    tiny_bundle: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("prunevid.runtime.backends.cuda._import_runtime", FakeCuda)
    shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle")
    add_rtx_engines(tmp_path / "bundle")
    both = add_engines(tmp_path / "bundle")
    for module, fake in (("tensorrt", FakeTensorRt), ("tensorrt_rtx", FakeTensorRtRtx)):
        monkeypatch.setitem(sys.modules, module, fake(FakeCuda(), both.manifest))
    assert choose_backend("auto", both).name == "tensorrt"
    assert not caplog.text
    moved = add_engines(tmp_path / "bundle", device=replace(DEVICE, gpu="Orin"))
    assert choose_backend("auto", moved).name == "tensorrt-rtx"
    assert "not running on tensorrt: the engines of this bundle do not run here" in caplog.text
    caplog.clear()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert choose_backend("auto", moved).name == "ort-cpu"
    assert "not running on tensorrt-rtx: TensorRT-RTX's Python package cannot be loaded" in caplog.text
    with pytest.raises(PruneVidError, match=r"pip install 'prunevid\[rtx\]'$"):
        choose_backend("tensorrt-rtx", moved)


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("ort-cuda", "ort", r"runs on CUDA in fp16 only: export it with --precision fp16"),
        ("ort-tensorrt", "ort", "export it with --dialect portable"),
        ("tensorrt", "portable", "has no TensorRT engines: build them on this machine with `prunevid build /"),
        (
            "tensorrt-rtx",
            "engines",
            "has no TensorRT-RTX engines: build them on any machine with `prunevid build --dev",
        ),
    ],
)
def test_bundles_that_a_backend_cannot_run_are_refused(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, sentence: str
) -> None:
    patch_onnxruntime(monkeypatch, FakeCuda())
    with pytest.raises(PruneVidError, match=sentence):
        choose_backend(name, bundles(kind))


def test_a_bundle_quantized_for_cpus_is_refused_on_a_gpu(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_onnxruntime(monkeypatch, FakeCuda())
    bundle = bundles("ort")
    quantized = replace(bundle.manifest, quantization=Quantization("cpu-int8", {}, 8, 1.0, 0.0))
    with pytest.raises(PruneVidError, match=r"was quantized for CPUs \(cpu-int8\): run it with --backend ort-cpu"):
        choose_backend("ort-cuda", replace(bundle, manifest=quantized))


@pytest.mark.parametrize("name", ["ort-cuda", "ort-tensorrt"])
def test_an_onnx_runtime_without_gpus_says_which_one_is_wanted(bundles: Bundles, name: str) -> None:
    provider = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": TENSORRT}[name]
    if provider in onnxruntime.get_available_providers():
        pytest.skip("this one has the provider")
    with pytest.raises(PruneVidError, match=f"has no {provider}: .*pip install onnxruntime-gpu"):
        choose_backend(name, bundles("portable"))


def test_a_provider_that_onnx_runtime_leaves_out_is_missed(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda()
    patch_onnxruntime(monkeypatch, gpu)
    monkeypatch.setattr("fake_ort.FakeSession.get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(PruneVidError, match="CUDAExecutionProvider cannot be loaded: its libraries"):
        Chain(bundles("portable"), OrtCudaBackend(bundles("portable"), cuda=Cuda(gpu)))


@pytest.mark.parametrize("threads", [1025, 2**31, 10**30])
def test_threads_are_bounded(bundles: Bundles, threads: int) -> None:
    with pytest.raises(PruneVidError, match="threads must be 1024 or fewer"):
        choose_backend("ort-cpu", bundles("portable"), threads)


# --- real GPUs ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ort-cuda", "ort-tensorrt"])
def test_onnx_runtime_on_a_gpu_answers_as_on_the_cpu(bundles: Bundles, on_cpu: OnCpu, name: str) -> None:
    bundle = bundles("portable")
    needs.gpu()
    provider = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": TENSORRT}[name]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    if name == "ort-tensorrt" and not find_library("nvinfer"):
        needs.package("tensorrt")
    backend = choose_backend(name, bundle)
    assert_same(record(bundle, backend), on_cpu("portable", 512), apart=1e-2)


@pytest.mark.tensorrt
def test_engines_on_a_gpu_answer_as_onnx_runtime_on_the_cpu(
    tiny_bundle: Callable[[str, str], Path], on_cpu: OnCpu, tmp_path: Path
) -> None:
    from prunevid.export.engine.builder import build

    needs.gpu()
    for package in ("tensorrt", "polygraphy", "cuda.bindings"):
        needs.package(package)
    shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle")
    bundle = build(tmp_path / "bundle", frames=8)
    backend = choose_backend("tensorrt", bundle)
    assert_same(record(bundle, backend), on_cpu("portable", 512), apart=1e-2)


@pytest.mark.tensorrt
def test_engines_of_tensorrt_rtx_answer_on_a_gpu_as_onnx_runtime_on_the_cpu(
    tiny_bundle: Callable[[str, str], Path], on_cpu: OnCpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from prunevid.export.engine.builder import build
    from prunevid.export.engine.jobs import BuildSettings
    from prunevid.runtime.fit.devices.device import RTX_CAPABILITIES

    needs.gpu()
    needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")
    needs.package("cuda.bindings", "cuda-python")
    name, capability = Cuda().gpu()
    if capability not in RTX_CAPABILITIES:
        pytest.skip(f"no GPU that TensorRT-RTX builds for: {name} has compute capability {capability}")
    shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "bundle")
    bundle = build(tmp_path / "bundle", device="rtx", frames=8, settings=BuildSettings(capabilities=(capability,)))
    for start in ("first", "second"):
        caplog.clear()
        assert_same(record(bundle, choose_backend("tensorrt-rtx", bundle)), on_cpu("portable", 512), apart=1e-2)
        # Kernels are compiled once, and then found in a home of the test's own.
        assert ("TensorRT-RTX compiles kernels" in caplog.text) == (start == "first")
