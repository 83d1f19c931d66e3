"""How weights and activations are quantized, beside a NumPy statement of it and ONNX Runtime's own quantizer."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from prunevid.calibration.quantize.linears import Linear, StoredMatrix, find_linears
from prunevid.calibration.quantize.rewrite import TREATMENTS, put_quantized
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Int4Blocks, Int8PerChannel, sampled_columns
from prunevid.calibration.quantize.store import InputScaling
from prunevid.runtime.backends.ort import ask_for_exact_int8, session_options

RNG = np.random.default_rng(5)


def a_matrix(inputs: int, outputs: int) -> np.ndarray:
    matrix = RNG.standard_normal((inputs, outputs)).astype(np.float32)
    matrix[:, 3] = 0
    return matrix


def in_file(matrix: np.ndarray, folder: Path, *, transposed: bool) -> StoredMatrix:
    stored = np.ascontiguousarray(matrix.T if transposed else matrix)
    path = folder / "weights.data"
    path.write_bytes(b"\0" * 16 + stored.tobytes())
    tensor = ir.ExternalTensor(
        path.name,
        16,
        stored.nbytes,
        ir.DataType.from_numpy(stored.dtype),
        shape=ir.Shape(stored.shape),
        name="w",
        base_dir=folder,
    )
    return StoredMatrix(tensor, transposed)


def test_int8_weights_have_one_scale_per_output() -> None:
    matrix = a_matrix(70, 9)
    arrays = Int8PerChannel().quantize(ArrayMatrix(matrix))
    for column in range(9):
        scale = np.float32(np.abs(matrix[:, column]).max() / np.float32(127)) or np.float32(1)
        assert arrays["scale"][column] == scale
        assert np.array_equal(arrays["codes"][:, column], np.rint(matrix[:, column] / scale))
    assert np.abs(Int8PerChannel().dequantize(arrays, 70) - matrix).max() <= arrays["scale"].max() * 0.5001


@pytest.mark.parametrize(("inputs", "block"), [(96, 32), (70, 32), (300, 128)])
def test_int4_weights_are_those_of_onnx_runtimes_quantizer(inputs: int, block: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    matrix = a_matrix(inputs, 9)
    arrays = Int4Blocks(block).quantize(ArrayMatrix(matrix))
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=4)
    codes, scale, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
    assert np.array_equal(arrays["scale"], scale)
    # What pads the last block is zero here, and left to chance there.
    assert np.array_equal(arrays["codes"].reshape(9, -1)[:, : inputs // 2], codes.reshape(9, -1)[:, : inputs // 2])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scheme", [Int8PerChannel(), Int4Blocks(32)])
def test_a_matrix_read_in_blocks_gives_the_same_arrays(
    scheme: Int8PerChannel | Int4Blocks, transposed: bool, tmp_path: Path
) -> None:
    matrix = a_matrix(1100, 1500)
    stored = in_file(matrix, tmp_path, transposed=transposed)
    assert len(list(stored.blocks())) > 1
    whole, streamed = scheme.quantize(ArrayMatrix(matrix)), scheme.quantize(stored)
    for part in whole:
        assert np.array_equal(whole[part], streamed[part])


@pytest.mark.parametrize("scheme", [Int8PerChannel(), Int4Blocks(32)])
def test_a_matrix_is_never_in_memory_as_floats(scheme: Int8PerChannel | Int4Blocks, tmp_path: Path) -> None:
    matrix = np.ones((8192, 2048), np.float32)
    stored = in_file(matrix, tmp_path, transposed=False)
    tracemalloc.start()
    scheme.quantize(stored)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < matrix.nbytes * 0.7


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("outputs", [1, 512, 513, 5000])
def test_wide_matrices_are_sampled_evenly(outputs: int, dtype: type, tmp_path: Path) -> None:
    # Every value says which column it is of, and half precision holds it.
    matrix: np.ndarray = np.broadcast_to(np.arange(outputs) % 2048, (6, outputs)).astype(dtype)
    sample = ArrayMatrix(matrix).sample()
    assert sample.shape == (6, min(outputs, 512))
    assert sample.dtype == np.float32
    for transposed in (False, True):
        assert np.array_equal(in_file(matrix, tmp_path, transposed=transposed).sample(), sample)
    columns = [column for start, stop in sampled_columns(outputs) for column in range(start, stop)]
    assert np.array_equal(sample[0], np.array(columns) % 2048)
    assert len(set(columns)) == len(columns)
    assert (columns[0], columns[-1]) == (0, outputs - 1)


def one_linear(matrix: np.ndarray, folder: Path, *, transposed: bool) -> ir.Model:
    """A graph x [m, K] -> y [m, N] with one MatMul, or a Gemm whose weight is transposed."""
    tensor = in_file(matrix, folder, transposed=transposed).tensor
    x = ir.Value(name="x", shape=ir.Shape(["m", matrix.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="layer.weight", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    if transposed:
        node = ir.Node("", "Gemm", [x, weight], [ir.AttrInt64("transB", 1)])
    else:
        node = ir.Node("", "MatMul", [x, weight])
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["m", matrix.shape[1]]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 21}, name="one")
    return ir.Model(graph, ir_version=10)


def run_quantized(matrix: np.ndarray, x: np.ndarray, treatment: str, folder: Path, transposed: bool) -> np.ndarray:
    model = one_linear(matrix, folder, transposed=transposed)
    (linear,) = find_linears(model)
    assert isinstance(linear, Linear)
    arrays = TREATMENTS[treatment].quantize(linear.weight, InputScaling())
    tensors = {part: ir.Tensor(array, name=f"layer.{part}") for part, array in arrays.items()}
    put_quantized(model, TREATMENTS[treatment], {"layer": tensors})
    assert not find_linears(model)
    proto, providers = ir.to_proto(model).SerializeToString(), ["CPUExecutionProvider"]
    options = session_options(1)
    ask_for_exact_int8(options, "ort")
    session = ort.InferenceSession(proto, options, providers=providers)
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("largest", [False, True])
def test_dynamic_int8_computes_what_it_says(largest: bool, transposed: bool, tmp_path: Path) -> None:
    """Also where all codes are as large as they get, and two products do not fit into 16 bits.

    On a processor with VNNI that cannot fail; see `prunevid.runtime.machine.has_exact_int8`.
    """
    matrix, x = a_matrix(96, 40), RNG.standard_normal((5, 96)).astype(np.float32)
    if largest:
        matrix, x = np.sign(matrix), np.ones_like(x)
    found = run_quantized(matrix, x, "dynamic-int8", tmp_path, transposed)
    arrays = Int8PerChannel().quantize(ArrayMatrix(matrix))
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / np.float32(255)
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    expected = ((codes - zero) @ arrays["codes"].astype(np.float64)) * scale * arrays["scale"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("transposed", [False, True])
def test_int4_computes_with_the_dequantized_weights(transposed: bool, tmp_path: Path) -> None:
    matrix, x = a_matrix(96, 40), RNG.standard_normal((5, 96)).astype(np.float32)
    found = run_quantized(matrix, x, "int4-block32", tmp_path, transposed)
    scheme = Int4Blocks(32)
    weights = scheme.dequantize(scheme.quantize(ArrayMatrix(matrix)), 96)
    # Where the kernel can, activations become int8 as well: half a step of 1/127 for every input.
    allowed = np.abs(x).max() / 127 * 0.51 * np.abs(weights).sum(axis=0)
    assert (np.abs(found - x @ weights) <= allowed + 1e-5).all()
    assert np.abs(found - x @ weights).max() < 0.1 * np.abs(found - x @ matrix).max()
