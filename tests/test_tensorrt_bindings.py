"""What the runtime asks of TensorRT's Python bindings, against the real ones: they have it, and take it that way.

It keeps the stand-ins (fake_tensorrt.py, fake_tensorrt_rtx.py) from having what TensorRT and TensorRT-RTX have not. An
engine runs on a GPU only; what works without one is done for real.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any

import fake_tensorrt
import fake_tensorrt_rtx
import needs
import pytest
import tensorrt_on_cpu

from prunevid.runtime.backends.tensorrt import make_logger

RTX = "tensorrt_rtx"
CLASSES = [
    ("tensorrt", "ICudaEngine", fake_tensorrt.Engine),
    ("tensorrt", "IExecutionContext", fake_tensorrt.Context),
    ("tensorrt", "Runtime", fake_tensorrt.Runtime),
    (RTX, "ICudaEngine", fake_tensorrt_rtx.RtxEngine),
    (RTX, "IExecutionContext", fake_tensorrt_rtx.RtxContext),
    (RTX, "Runtime", fake_tensorrt.Runtime),
    (RTX, "IRuntimeConfig", fake_tensorrt_rtx.RuntimeConfig),
    (RTX, "IRuntimeCache", fake_tensorrt_rtx.RuntimeCache),
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real modules by name; skips the test where there is none."""

    def named(name: str) -> Any:
        if name == RTX:
            return needs.package(RTX, "tensorrt-rtx-cu13")
        if reason := tensorrt_on_cpu.missing():
            pytest.skip(reason)
        tensorrt_on_cpu.import_tensorrt(tmp_path_factory.mktemp("tensorrt"))
        import tensorrt

        return tensorrt

    return named


def parameters_of(real: Any, name: str) -> list[list[str]]:
    """The parameters of a method of the bindings, of each overload: pybind11 writes them into docstrings."""
    signatures = re.findall(rf"{name}\((self: .*?)\) ->", getattr(real, name).__doc__ or "")
    return [re.findall(r"(?:^|, )(\w+): ", signature) for signature in signatures]


@pytest.mark.parametrize(("module", "real", "fake"), CLASSES)
def test_the_stand_in_has_nothing_that_tensorrt_has_not(modules: Any, module: str, real: str, fake: type) -> None:
    found = getattr(modules(module), real)
    # What the stand-in is asked for by the runtime: not what it needs itself, and not what it holds.
    members = {name: getattr(fake, name) for name in dir(fake) if not name.startswith("_")}
    assert members
    for name, member in members.items():
        assert hasattr(found, name), name
        if inspect.isfunction(member):
            taken = list(inspect.signature(member).parameters)
            assert taken in parameters_of(found, name), name


@pytest.mark.parametrize(
    "enum", [fake_tensorrt_rtx.CudaGraphStrategy, fake_tensorrt_rtx.DynamicShapesKernelSpecializationStrategy]
)
def test_the_strategies_are_those_of_tensorrt_rtx(modules: Any, enum: Any) -> None:
    real = getattr(modules(RTX), enum.__name__).__members__
    assert {name: int(member) for name, member in real.items()} == {each.name: each.value for each in enum}


def test_a_configuration_takes_both_strategies(modules: Any) -> None:
    config = modules(RTX).IRuntimeConfig
    assert {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"} <= set(dir(config))


@pytest.mark.parametrize("module", ["tensorrt", RTX])
def test_what_the_runtime_names_is_there(modules: Any, module: str) -> None:
    trt = modules(module)
    assert trt.TensorLocation.HOST != trt.TensorLocation.DEVICE
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert callable(trt.init_libnvinfer_plugins)
    assert re.fullmatch(r"[\d.]+", trt.__version__)


@pytest.mark.parametrize("module", ["tensorrt", RTX])
def test_the_logger_keeps_the_last_error(modules: Any, module: str) -> None:
    trt = modules(module)
    logger = make_logger(trt)
    assert isinstance(logger, trt.ILogger)
    assert logger.last_error() == "it gives no reason"
    logger.log(trt.ILogger.Severity.ERROR, "an error\n")
    logger.log(trt.ILogger.Severity.WARNING, "a warning")
    assert logger.last_error() == "an error"


ENGINE_WITHOUT_GPU = """
import tensorrt_rtx as trt
from prunevid.runtime.backends.tensorrt import make_logger
logger = make_logger(trt)
assert trt.init_libnvinfer_plugins(logger, "")
assert trt.Runtime(logger).deserialize_cuda_engine(bytes(1000)) is None
print(logger.last_error())
"""


def test_tensorrt_rtx_says_why_it_loads_no_engine(modules: Any) -> None:
    modules(RTX)
    # In a process of its own: it is native code without its driver.
    done = subprocess.run([sys.executable, "-c", ENGINE_WITHOUT_GPU], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Serialization assertion|cudaError|CUDA driver", done.stdout)
