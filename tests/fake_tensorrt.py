"""TensorRT without a GPU: the part of its Python API that the runtime uses, with ONNX Runtime's CPU as the engine.

An "engine" is a file that names an ONNX graph and the profiles that it was built for. Shapes, addresses, alignment,
profiles and memory are checked as NvInferRuntime.h says. Reads and writes happen at the addresses that were bound, when
the stream (fake_cuda.py) gets there. Names and parameters are the real bindings' (test_tensorrt_bindings.py). What
TensorRT for RTX has beside that is in fake_tensorrt_rtx.py.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Set
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from fake_cuda import FakeCuda

from prunevid.bundle import Bundle, FileRecord, Manifest, open_bundle, sha256_of, write_manifest
from prunevid.bundle.sections.engine_sets import EngineDevice, EngineSet, EngineSpec
from prunevid.export.engine.profiles import limits_of, profiles_of, recorded

VERSION = "10.16.0.72"
DEVICE = EngineDevice(VERSION, "Fake GPU", "8.7", "13.2")
# The inputs from which the builder would find that shapes are computed, and which it therefore wants on the host.
SHAPE_INPUTS = {"llm_pre": ("question_start",), "select": ("kept_count", "video_start")}
_WORKSPACE = 4096
_ALIGNMENT = 256


def add_engines(bundle: Path, frames: int | None = None, text: int = 1024, device: EngineDevice = DEVICE) -> Bundle:
    """Put engines of this kind into a bundle, with the profiles that `prunevid build` would give them."""
    manifest, engines = write_engines(bundle, "engine", frames, text)
    return put_engines(bundle, manifest, EngineSet.built_on(device, engines))


def put_engines(bundle: Path, manifest: Manifest, engines: EngineSet) -> Bundle:
    """Write a manifest with these engines in the place of others by the same product."""
    others = (one for one in manifest.engine_sets if one.product != engines.product)
    write_manifest(bundle, replace(manifest, engine_sets=(*others, engines)))
    return open_bundle(bundle)


def write_engines(bundle: Path, suffix: str, frames: int | None, text: int) -> tuple[Manifest, dict[str, EngineSpec]]:
    """Files that stand for engines of all graphs of a bundle: its manifest with them, and what one says of engines."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    limits = limits_of(manifest, frames, text)
    specs, files = {}, dict(manifest.files)
    for name, graph in manifest.graphs.items():
        shape_inputs = SHAPE_INPUTS.get(name, ())
        profiles = tuple(recorded(manifest, name, each, shape_inputs) for each in profiles_of(manifest, name, limits))
        file = bundle / f"{name}.{suffix}"
        engine = {"graph": str(opened.file(graph.file)), "name": name, "profiles": [asdict(each) for each in profiles]}
        file.write_text(json.dumps(engine))
        specs[name] = EngineSpec(file.name, profiles, "")
        files[file.name] = FileRecord(file.stat().st_size, sha256_of(file))
    return replace(manifest, files=files), specs


class FakeTensorRt:
    """The module `tensorrt`. refuses: engines that it cannot load; uncapturable: those that wait while they run."""

    __version__ = VERSION
    TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(
        self, cuda: FakeCuda, manifest: Manifest, *, refuses: tuple[str, ...] = (), uncapturable: tuple[str, ...] = ()
    ) -> None:
        self.cuda, self.manifest, self.refuses, self.uncapturable = cuda, manifest, refuses, uncapturable
        self.binds = 0

    # What makes an engine's contexts.
    @property
    def engine_type(self) -> type[Engine]:
        return Engine

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def Runtime(self, logger: Any) -> Runtime:
        assert isinstance(logger, self.ILogger)
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        described = json.loads(bytes(serialized_engine))
        if described["name"] in self.trt.refuses:
            self.logger.log(self.trt.ILogger.Severity.ERROR, "Error Code 1: the engine is of another version\n")
            return None
        return self.trt.engine_type(self.trt, self.logger, described)


class Engine:
    device_memory_size_v2 = _WORKSPACE

    def __init__(self, trt: FakeTensorRt, logger: Any, described: dict[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.trt, self.logger, self.name, self.profiles = trt, logger, described["name"], described["profiles"]
        self.session = ort.InferenceSession(described["graph"], options, providers=["CPUExecutionProvider"])
        graph = trt.manifest.graphs[self.name]
        self.inputs = {spec.name: spec for spec in graph.inputs}
        self.outputs = {spec.name: spec for spec in graph.outputs}
        self._names = [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_location(self, name: str) -> Any:
        on_host = name in SHAPE_INPUTS.get(self.name, ())
        return self.trt.TensorLocation.HOST if on_host else self.trt.TensorLocation.DEVICE

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.trt = engine, engine.trt
        self.profile: dict[str, Any] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.workspace = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == 7
        self.profile = self.engine.profiles[profile_index]
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= _WORKSPACE
        self.workspace = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        at = self.profile["shapes"][name]
        if not all(a <= n <= b for a, n, b in zip(at["minimum"], shape, at["maximum"], strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.trt.binds += 1
        if not self._on_host(name) and memory % _ALIGNMENT:
            self.engine.logger.log(self.trt.ILogger.Severity.ERROR, f"{name} is not aligned")
            return False
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        known: dict[bool, Set[str]] = {True: self.addresses.keys(), False: self.shapes.keys()}
        return [name for name in self.engine.inputs if name not in known[self._on_host(name)]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = self._sizes()
        spec = self.engine.outputs.get(name) or self.engine.inputs[name]
        return tuple(dim if isinstance(dim, int) else sizes.get(dim, -1) for dim in spec.shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        assert self.workspace
        # What an engine reads of host memory, it reads now.
        values = {name: self._read(name).copy() for name in self.engine.inputs if self._on_host(name)}
        for name, (low, high) in self._ranges().items():
            assert low <= values[name][0] <= high, f"{name} is {values[name]}, built for {low} to {high}"
        if self.engine.name in self.trt.uncapturable and self.trt.cuda.finish():
            return False
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        outputs = {name: self.get_tensor_shape(name) for name in self.engine.outputs}
        assert all(size >= 0 for shape in outputs.values() for size in shape), outputs
        self.trt.cuda.put(lambda: self._compute(addresses, values, shapes, outputs))
        return True

    def _compute(
        self,
        addresses: dict[str, int],
        values: dict[str, Any],
        shapes: dict[str, tuple[int, ...]],
        outputs: dict[str, tuple[int, ...]],
    ) -> None:
        feeds = {
            name: values[name] if name in values else _array(addresses[name], shapes[name], spec.dtype).copy()
            for name, spec in self.engine.inputs.items()
        }
        for name, result in zip(outputs, self.engine.session.run(list(outputs), feeds), strict=True):
            assert result.shape == outputs[name], (name, result.shape, outputs[name])
            if result.nbytes:
                ctypes.memmove(addresses[name], np.ascontiguousarray(result).ctypes.data, result.nbytes)

    def _on_host(self, name: str) -> bool:
        return bool(self.engine.get_tensor_location(name) == self.trt.TensorLocation.HOST)

    def _read(self, name: str) -> Any:
        return _array(self.addresses[name], (1,), self.engine.inputs[name].dtype)

    def _ranges(self) -> dict[str, tuple[int, int]]:
        assert self.profile is not None
        return {name: (at["minimum"][0], at["maximum"][0]) for name, at in self.profile["values"].items()}

    def _sizes(self) -> dict[str, int]:
        """Sizes of symbolic dimensions, as input shapes and host values tell them."""
        sizes: dict[str, int] = {}
        for name, shape in self.shapes.items():
            sizes.update(
                {d: n for d, n in zip(self.engine.inputs[name].shape, shape, strict=True) if isinstance(d, str)}
            )
        if "frames_new" in sizes:
            sizes["frames"] = sizes["frames_new"] + sizes["frames_past"]
        if "patch_to_token" in self.engine.outputs:
            sizes["patches"] = sizes["frames"] * int(self.engine.outputs["patch_to_token"].shape[1])
        if self.engine.name == "llm_pre" and "rows" in sizes:
            sizes["total"] = sizes["past"] + sizes["rows"]
        if self.engine.name == "select" and {"total", "visual"} <= sizes.keys():
            sizes["kept"] = int(self._read("kept_count")[0])
            sizes["rows"] = sizes["total"] - sizes["visual"] + sizes["kept"]
        return sizes


def _array(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.empty(shape, dtype)
    nbytes = count * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)
