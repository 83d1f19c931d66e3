"""What the runtime asks of TensorRT's Python bindings, against the real ones: they have it, and take it that way.

Nothing is run: that needs a GPU. It keeps the stand-in (fake_tensorrt.py) from having what TensorRT has not.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
import tensorrt_on_cpu
from fake_cuda import FakeCuda

from prunevid.runtime.backend_tensorrt import make_logger
from prunevid.runtime.cuda import Cuda
from prunevid.runtime.device_memory import DeviceMemory
from prunevid.runtime.engine_context import output_allocator

if reason := tensorrt_on_cpu.missing():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tensorrt_on_cpu.import_tensorrt(tmp_path_factory.mktemp("tensorrt"))
    import tensorrt

    return tensorrt


@pytest.mark.parametrize(
    ("real", "fake"), [("ICudaEngine", "Engine"), ("IExecutionContext", "Context"), ("Runtime",) * 2]
)
def test_the_stand_in_has_nothing_that_tensorrt_has_not(trt: Any, real: str, fake: str) -> None:
    members = {name: member for name, member in vars(getattr(fake_tensorrt, fake)).items() if not name.startswith("_")}
    assert members
    for name, member in members.items():
        assert hasattr(getattr(trt, real), name)
        if inspect.isfunction(member):
            # pybind11 writes signatures into docstrings.
            documented = re.search(rf"{name}\((self: .*?)\) ->", getattr(getattr(trt, real), name).__doc__ or "")
            assert documented is not None
            taken = re.findall(r"(?:^|, )(\w+): ", documented[1])
            assert len(taken) == len(inspect.signature(member).parameters), name


def test_what_the_runtime_names_is_there(trt: Any) -> None:
    assert trt.TensorLocation.HOST != trt.TensorLocation.DEVICE
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert callable(trt.init_libnvinfer_plugins)
    assert re.fullmatch(r"[\d.]+", trt.__version__)


def test_tensorrt_can_ask_for_memory_and_tell_shapes(trt: Any) -> None:
    memory = DeviceMemory(Cuda(FakeCuda()))
    allocator = output_allocator(trt, memory)
    assert isinstance(allocator, trt.IOutputAllocator)
    allocator.offer(None, wanted=True)
    pointer = allocator.reallocate_output_async("x", 0, 48, 256, 7)
    allocator.notify_shape("x", trt.Dims([3, 4]))
    found = allocator.taken(np.dtype(np.float32))
    assert (found.pointer, found.shape) == (pointer, (3, 4))


def test_the_logger_keeps_the_last_error(trt: Any) -> None:
    logger = make_logger(trt)
    assert isinstance(logger, trt.ILogger)
    assert logger.last_error() == "it gives no reason"
    logger.log(trt.ILogger.Severity.ERROR, "an error\n")
    logger.log(trt.ILogger.Severity.WARNING, "a warning")
    assert logger.last_error() == "an error"
