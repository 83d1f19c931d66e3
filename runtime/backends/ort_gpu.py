"""ONNX Runtime on NVIDIA GPUs: its CUDA and its TensorRT execution providers.

Graphs are bound to device memory, and run on the stream on which everything else happens; ONNX Runtime waits for each
run itself. Sources of what the providers can do: ONNX Runtime's OperatorKernels.md and the page of its TensorRT
execution provider; GroupQueryAttention's types are registered in contrib_ops/cuda/bert/group_query_attention.cc.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnxruntime as ort

from prunevid.bundle import Bundle, GraphSpec, Manifest
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.device_memory import DeviceMemory
from prunevid.runtime.backends.ort import OrtGraph, open_session, session_options

_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PLACE = "cuda"
# Engines are built for videos of the bundle's frames and this many rows of text, as `prunevid build` does by default.
_TEXT = 1024
# The provider wants the ranges of all sizes of a graph; those of the others are worked out by `prunevid build` alone.
_WHOLE_IN_TENSORRT = ("llm_pre", "llm_post")


class OrtCudaBackend:
    """ONNX Runtime's CUDA execution provider. Raises PruneVidError where it is missing or cannot run the bundle."""

    name = "ort-cuda"

    def __init__(self, bundle: Bundle, threads: int | None = None, *, cuda: Cuda | None = None) -> None:
        _check_provider(_CUDA)
        manifest = bundle.manifest
        dialect = DIALECTS[manifest.dialect]
        if manifest.quantization is not None and dialect.has_fused_quantization:
            raise PruneVidError(
                f"{bundle.path} was quantized for CPUs ({manifest.quantization.recipe}): "
                "run it with --backend ort-cpu, or take the bundle that it was made of"
            )
        if dialect.has_fused_attention and manifest.precision != "fp16":
            raise PruneVidError(
                f"{bundle.path} is in {manifest.precision}, and its operator GroupQueryAttention runs on CUDA in fp16 "
                "only: export it with --precision fp16, or with --dialect portable"
            )
        self._cuda = cuda or Cuda()
        self._options = session_options(threads)
        self.memory = DeviceMemory(self._cuda)
        self.now = self._cuda.now

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """Load a graph of the bundle."""
        return _load(bundle, name, self._options, [(_CUDA, _cuda_options(self._cuda.stream))], self._cuda)

    def past_rows(self, length: int) -> int:
        """Just those in use."""
        return length


class OrtTensorRtBackend:
    """ONNX Runtime's TensorRT execution provider for the language model, CUDA for the rest.

    It builds engines when a graph runs for the first time, which takes minutes, and keeps them in the user's home
    under `.cache/prunevid/ort-tensorrt`. Raises PruneVidError where it is missing or cannot run the bundle.
    """

    name = "ort-tensorrt"

    def __init__(self, bundle: Bundle, threads: int | None = None, *, cuda: Cuda | None = None) -> None:
        _check_provider(_TENSORRT)
        if not DIALECTS[bundle.manifest.dialect].runs_on_tensorrt:
            raise PruneVidError(
                f"{bundle.path} is written in ONNX Runtime's own operators, which TensorRT does not have: export it "
                "with --dialect portable"
            )
        self._cuda = cuda or Cuda()
        self._options = session_options(threads)
        self.memory = DeviceMemory(self._cuda)
        self.now = self._cuda.now

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """Load a graph of the bundle."""
        stream = self._cuda.stream
        providers = [(_CUDA, _cuda_options(stream))]
        if name in _WHOLE_IN_TENSORRT:
            providers.insert(0, (_TENSORRT, _tensorrt_options(bundle, name, stream)))
        return _load(bundle, name, self._options, providers, self._cuda)

    def past_rows(self, length: int) -> int:
        """Just those in use."""
        return length


def _check_provider(provider: str) -> None:
    if provider not in ort.get_available_providers():
        raise PruneVidError(
            f"this ONNX Runtime ({ort.__version__}) has no {provider}: pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu (on a Jetson, NVIDIA's wheel for its JetPack)"
        )


def _load(bundle: Bundle, name: str, options: Any, providers: list[tuple[str, dict[str, str]]], cuda: Cuda) -> OrtGraph:
    file = bundle.file(bundle.manifest.graphs[name].file)
    session = open_session(file, options, [*providers, "CPUExecutionProvider"])
    for provider, _ in providers:
        # ONNX Runtime goes on without a provider that it cannot load, and says so in its log only.
        if provider not in session.get_providers():
            raise PruneVidError(
                f"ONNX Runtime's {provider} cannot be loaded: its libraries (CUDA, cuDNN, for TensorRT its own) are "
                "missing or of another version than this onnxruntime-gpu wants"
            )
    return OrtGraph(session, file, _PLACE, cuda.lock)


def _cuda_options(stream: int) -> dict[str, str]:
    return {
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        # Trying all algorithms, the default, would be done again for every batch size.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The merge's decisions hang on float32 distances: TensorFloat-32 would change them.
        "use_tf32": "0",
    }


def _engine_cache(bundle: Bundle) -> Path:
    """Where this user keeps the engines of such a bundle: not in its folder, which could bring some along."""
    files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    try:
        folder = Path.home() / ".cache" / "prunevid" / "ort-tensorrt" / digest[:32]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise PruneVidError(f"cannot make a folder for ONNX Runtime's engines: {error}") from error
    return folder


def _tensorrt_options(bundle: Bundle, name: str, stream: int) -> dict[str, str]:
    cache = _engine_cache(bundle)
    ranges = _ranges(bundle.manifest, bundle.manifest.graphs[name])
    return {
        "user_compute_stream": str(stream),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_engine_cache_prefix": name,
        "trt_fp16_enable": "1" if bundle.manifest.float_type == "fp16" else "0",
        **{f"trt_profile_{corner}_shapes": shapes for corner, shapes in ranges.items()},
    }


def _ranges(manifest: Manifest, graph: GraphSpec) -> dict[str, str]:
    """The smallest, usual and largest shapes of a decoder segment's inputs, in the provider's notation.

    Of the inputs with one number, it takes this for the number where it computes shapes from it.
    """
    rows = min(manifest.token_layout.most_rows(manifest.frames) + _TEXT, manifest.prompt.max_positions)
    block = min(manifest.blocks.rows, rows)
    corners = {
        "min": {"rows": 1, "past": 0, "past_length": 0, "question_start": 0},
        "opt": {"rows": block, "past": rows // 2, "past_length": rows // 2, "question_start": 0},
        "max": {"rows": block, "past": rows - 1, "past_length": rows - 1, "question_start": block - 1},
    }
    found = {}
    for corner, sizes in corners.items():
        shapes = []
        for spec in graph.inputs:
            dims = (spec.name,) if spec.name in sizes else spec.shape
            shapes.append(f"{spec.name}:" + "x".join(str(sizes.get(str(dim), dim)) for dim in dims))
        found[corner] = ",".join(shapes)
    return found
