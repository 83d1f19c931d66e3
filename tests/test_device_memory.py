"""Arrays on a device and the memory that they lie in, on a stand-in for CUDA; and CUDA's own errors where it is not."""

from __future__ import annotations

from typing import Any

import needs
import numpy as np
import pytest
from fake_cuda import Error, FakeCuda

from prunevid import PruneVidError
from prunevid.runtime.backends.arrays import DeviceArray
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.device_memory import DeviceMemory

F32 = np.dtype(np.float32)


@pytest.fixture
def gpu() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def memory(gpu: FakeCuda) -> DeviceMemory:
    return DeviceMemory(Cuda(gpu))


def values(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=F32).reshape(shape)


def uploaded(memory: DeviceMemory, array: np.ndarray) -> DeviceArray:
    there = memory.empty(array.shape, array.dtype)
    memory.copy(array, there)
    return there


# --- arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a[1:3],
        lambda a: a[:0],
        lambda a: a[2:],
        lambda a: a[1:2][:, 2:5],
        lambda a: a[1:2][:, 2:5].reshape(3, 6),
        lambda a: a.reshape(8, 15)[3:7].reshape(4, 3, 5),
        lambda a: a[3:99],
    ],
)
def test_a_view_has_the_rows_that_numpy_would_give(memory: DeviceMemory, cut: Any) -> None:
    whole = values(4, 5, 6)
    np.testing.assert_array_equal(memory.download(cut(uploaded(memory, whole))), cut(whole))


def test_numpy_cannot_read_an_array_on_a_device(memory: DeviceMemory) -> None:
    array = uploaded(memory, values(3, 2))
    for read in (np.asarray, np.sum, np.atleast_1d, lambda a: np.concatenate([a, a]), lambda a: np.zeros(2) + a):
        with pytest.raises(TypeError, match="on a device"):
            read(array)


def test_what_is_not_contiguous_says_so(memory: DeviceMemory) -> None:
    middle = uploaded(memory, values(4, 5, 6))[:, 1:3]
    assert not middle.contiguous
    assert middle[:1].contiguous
    assert middle[:, :0].contiguous
    with pytest.raises(ValueError, match="reshape"):
        middle.reshape(8, 6)
    with pytest.raises(ValueError, match="not contiguous"):
        memory.download(middle)
    with pytest.raises(ValueError, match="not contiguous"):
        memory.copy(values(4, 2, 6), middle)


def test_arrays_are_sliced_in_steps_of_one_and_along_one_axis(memory: DeviceMemory) -> None:
    array = memory.empty((4, 5), F32)
    with pytest.raises(IndexError, match="steps of 1"):
        array[::2]
    with pytest.raises(IndexError, match="one axis"):
        array[1:2, 1:2]


# --- memory ------------------------------------------------------------------------------------------------


def test_rows_of_several_planes_are_copied_at_once(memory: DeviceMemory, gpu: FakeCuda) -> None:
    rows, target = values(3, 2, 4), memory.zeros((3, 7, 4), F32)
    memory.copy(uploaded(memory, rows), target[:, 4:6])
    expected = np.zeros((3, 7, 4), F32)
    expected[:, 4:6] = rows
    np.testing.assert_array_equal(memory.download(target), expected)
    longer = memory.zeros((3, 9, 4), F32)
    memory.copy(target[:, :6], longer[:, :6])
    np.testing.assert_array_equal(memory.download(longer)[:, :6], expected[:, :6])


def test_arrays_larger_than_the_staging_memory_arrive_whole(memory: DeviceMemory) -> None:
    large = np.random.default_rng(0).integers(0, 255, 19_000_001, dtype=np.uint8)
    np.testing.assert_array_equal(memory.download(uploaded(memory, large)), large)


def test_uploads_do_not_wait_and_their_source_may_change_at_once(memory: DeviceMemory, gpu: FakeCuda) -> None:
    source, there = values(100), []
    for _ in range(50):
        there.append(uploaded(memory, source))
        source += 1
    assert gpu.calls.count("cudaStreamSynchronize") == 0
    for number, array in enumerate(there):
        np.testing.assert_array_equal(memory.download(array), values(100) + number)


def test_when_the_staging_memory_is_full_of_copies_under_way_the_next_one_waits(
    memory: DeviceMemory, gpu: FakeCuda
) -> None:
    arrays = [np.full(3 << 20, number, np.uint8) for number in range(5)]
    there = [uploaded(memory, array) for array in arrays]
    assert gpu.calls.count("cudaStreamSynchronize") == 2
    for array, found in zip(arrays, there, strict=True):
        np.testing.assert_array_equal(memory.download(found), array)


def test_small_memory_is_handed_out_again_and_large_memory_given_back(memory: DeviceMemory, gpu: FakeCuda) -> None:
    used = gpu.used
    small, large = memory.empty((1000,), F32), memory.empty((1 << 20,), F32)
    at = small.pointer
    view = small[10:]
    del small, large
    assert memory.empty((1000,), F32).pointer != at  # a view holds it
    del view
    assert memory.empty((900,), F32).pointer == at
    assert gpu.used - used <= 3 * 4096


def test_memory_that_was_freed_is_not_overwritten_before_it_was_read(gpu: FakeCuda) -> None:
    memory = DeviceMemory(Cuda(gpu))
    source, target = uploaded(memory, values(1 << 19)), memory.empty((1 << 19,), F32)
    memory.copy(source, target)
    del source
    np.testing.assert_array_equal(memory.download(target), values(1 << 19))


@pytest.mark.parametrize("pools", [True, False])
def test_with_and_without_memory_pools(pools: bool) -> None:
    gpu = FakeCuda(pools=pools)
    memory = DeviceMemory(Cuda(gpu))
    used = gpu.used
    array = uploaded(memory, values(1 << 19))
    np.testing.assert_array_equal(memory.download(array), values(1 << 19))
    del array
    assert gpu.used == used
    assert ("cudaFree" in gpu.calls) == (not pools)


def test_an_array_without_elements_has_an_address(memory: DeviceMemory) -> None:
    empty = memory.zeros((0, 3), F32)
    assert empty.pointer
    memory.copy(values(0, 3), empty)
    assert memory.download(empty).shape == (0, 3)


def test_what_is_copied_must_fit(memory: DeviceMemory) -> None:
    target = memory.empty((2, 3), F32)
    for source in (values(3, 2), values(2, 3).astype(np.float16)):
        with pytest.raises(ValueError, match="cannot copy"):
            memory.copy(source, target)


def test_moments_are_those_of_the_stream(gpu: FakeCuda) -> None:
    cuda = Cuda(gpu)
    begin = cuda.now()
    gpu.put(lambda: np.linalg.svd(np.ones((300, 300))) and None)
    middle, end = cuda.now(), cuda.now()
    assert middle - begin > end - middle >= 0


# --- errors ------------------------------------------------------------------------------------------------


def test_memory_that_is_short_is_told_with_what_there_is() -> None:
    memory = DeviceMemory(Cuda(FakeCuda(memory=100_000_000)))
    with pytest.raises(PruneVidError, match=r"no room for another 200 MB \(100 of 100 MB are free\): use fewer frames"):
        memory.empty((50_000_000,), F32)


def test_cudas_errors_come_with_their_names(gpu: FakeCuda) -> None:
    cuda = Cuda(gpu)
    with pytest.raises(PruneVidError, match=r"cudaMemsetAsync: cudaErrorInvalidValue \(the text of"):
        cuda.clear(1234, 5)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(gpu: FakeCuda) -> None:
    cuda = Cuda(gpu)
    done: list[int] = []
    with pytest.raises(PruneVidError, match="cudaErrorStreamCapture"):
        cuda.capture(cuda.synchronize)
    with pytest.raises(ZeroDivisionError):
        cuda.capture(lambda: print(1 / 0))
    captured = cuda.capture(lambda: gpu.put(lambda: done.append(1)))
    assert done == []
    captured.launch()
    captured.launch()
    cuda.synchronize()
    assert done == [1, 1]


class WithoutGpu(FakeCuda):
    """A machine where CUDA's first call gives an error."""

    def __init__(self, error: str, driver: int) -> None:
        super().__init__(driver=driver)
        self.error = error

    def cudaGetDeviceCount(self) -> Any:
        return type("Error", (int,), {"name": self.error})(35), None

    def cudaRuntimeGetVersion(self) -> Any:
        return Error.cudaSuccess, 13020


@pytest.mark.parametrize(
    ("error", "driver", "sentence"),
    [
        ("cudaErrorNoDevice", 13020, "there is no NVIDIA GPU here"),
        ("cudaErrorInsufficientDriver", 0, "there is no NVIDIA driver here"),
        ("cudaErrorInsufficientDriver", 12060, r"knows CUDA up to 12\.6.* pip install 'cuda-python==12\.\*'"),
        ("cudaErrorSystemDriverMismatch", 13020, "cudaGetDeviceCount: cudaErrorSystemDriverMismatch"),
    ],
)
def test_a_machine_without_a_gpu_is_told_so(error: str, driver: int, sentence: str) -> None:
    with pytest.raises(PruneVidError, match=sentence):
        Cuda(WithoutGpu(error, driver))


def test_the_real_cuda_python_without_a_gpu_is_one_sentence() -> None:
    runtime = needs.package("cuda.bindings.runtime", "cuda-python")
    if not int(runtime.cudaGetDeviceCount()[0]):
        pytest.skip("there is a GPU here")
    with pytest.raises(PruneVidError, match=r"there is no NVIDIA (GPU|driver) here .*--backend ort-cpu"):
        Cuda()


def test_without_cuda_python_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunevid.runtime.backends.cuda._MODULE", "cuda_that_is_not_there.runtime")
    with pytest.raises(PruneVidError, match="pip install cuda-python"):
        Cuda()


def test_every_function_that_is_called_is_one_of_cuda_python() -> None:
    runtime = needs.package("cuda.bindings.runtime", "cuda-python")
    used = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert len(used) > 25
    assert [name for name in used if not hasattr(runtime, name)] == []
    kinds = vars(FakeCuda.cudaMemcpyKind)
    assert all(hasattr(runtime.cudaMemcpyKind, kind) for kind in kinds)
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    assert hasattr(runtime.cudaDeviceAttr, "cudaDevAttrMemoryPoolsSupported")
