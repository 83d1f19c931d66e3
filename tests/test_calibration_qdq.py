"""Q/DQ for TensorRT: codes and scales beside a NumPy statement of them, and bundles that compute what they say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from activations import activations_of
from builder_stand_in import ORIN, StandIn
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_backend import RecordingBackend, run_in_numpy
from onnx import numpy_helper

from prunevid import PruneVidError
from prunevid.bundle import open_bundle
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.linears import find_linears, load_graph, read_rows
from prunevid.calibration.quantize.recipes import RECIPES
from prunevid.calibration.quantize.rounding.qdq_schemes import (
    Float8Activations,
    Float8PerChannel,
    Int4PerBlock,
    Int8Activations,
)
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Int8PerChannel
from prunevid.calibration.quantize.smooth import candidate_scales, find_smoothing
from prunevid.calibration.questions import AskedVideo
from prunevid.export import export
from prunevid.export.engine.builder import build
from prunevid.export.lint.unsupported import unsupported
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline

QDQ = ("int8-qdq", "fp8-qdq", "int4-awq")
FEW_TOKENS = SamplingConfig(max_new_tokens=3)
FLOATS = [np.dtype(np.float32), np.dtype(np.float16)]


def a_matrix(seed: int, inputs: int, outputs: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((inputs, outputs)) * 10.0 ** rng.integers(-6, 2, outputs)
    matrix[:, 0] = 0
    return matrix.astype(np.float16).astype(np.float32)


def rounded_up(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The least number of the type that is not below, one by one; 1 for zero."""
    scale = np.empty(exact.shape, dtype)
    for index, value in np.ndenumerate(exact):
        near = np.array(value).astype(dtype)
        scale[index] = (near if near >= value else np.nextafter(near, dtype.type(np.inf))) if value else 1
    return scale


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 9), st.sampled_from(FLOATS))
def test_8_bit_weights_are_as_stated(seed: int, inputs: int, outputs: int, dtype: np.dtype) -> None:
    matrix = a_matrix(seed, inputs, outputs)
    largest = np.abs(matrix).max(axis=0)
    int8 = Int8PerChannel().quantize(ArrayMatrix(matrix, dtype))
    assert np.array_equal(int8["scale"], rounded_up(largest / np.float32(127), dtype))
    assert np.array_equal(int8["codes"], np.rint(matrix / int8["scale"].astype(np.float32)))
    fp8 = Float8PerChannel().quantize(ArrayMatrix(matrix, dtype))
    assert np.array_equal(fp8["scale"], rounded_up(largest / np.float32(448), dtype))
    expected = (matrix / fp8["scale"].astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(fp8["codes"].view(np.uint8), expected.view(np.uint8))
    assert np.isfinite(fp8["codes"].astype(np.float32)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([64, 128, 192, 256, 384]), st.integers(1, 4), st.sampled_from(FLOATS))
def test_int4_weights_are_as_stated(seed: int, inputs: int, pairs: int, dtype: np.dtype) -> None:
    matrix = a_matrix(seed, inputs, 2 * pairs)
    arrays = Int4PerBlock().quantize(ArrayMatrix(matrix, dtype))
    block = 128 if inputs % 128 == 0 else 64
    for row in range(0, inputs, block):
        part = matrix[row : row + block]
        exact = np.maximum(part.max(axis=0) / np.float32(7), part.min(axis=0) / np.float32(-8))
        scale = rounded_up(exact, dtype)
        assert np.array_equal(arrays["scale"][row // block], scale)
        codes = np.rint(part / scale.astype(np.float32))
        assert np.array_equal(arrays["codes"][row : row + block].astype(np.float32), codes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0625, 1024, width=32), st.sampled_from(FLOATS))
def test_activations_are_onnx_runtimes(seed: int, largest: float, dtype: np.dtype) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, 16)) * largest).astype(dtype)
    for scheme in (Int8Activations(), Float8Activations()):
        step = scheme.step(largest, dtype)
        kind = ir.DataType.from_numpy(scheme.zero.dtype)
        values = {name: ir.to_proto(ir.Tensor(array, name=name)) for name, array in (("s", step), ("z", scheme.zero))}
        nodes = [
            onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        floats = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        x_info, y_info = (onnx.helper.make_tensor_value_info(name, floats, [3, 16]) for name in "xy")
        graph = onnx.helper.make_graph(nodes, "one", [x_info], [y_info], list(values.values()))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": x})[0].astype(np.float32)
        expected = scheme.restore(x.astype(np.float32), step)
        assert kind in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
        # A quotient that lies between two codes to the last bit may go either way in half precision.
        assert np.mean(found != expected.astype(dtype).astype(np.float32)) <= (0 if dtype == np.float32 else 0.1)


def test_smoothing_helps_where_channels_differ_and_is_left_out_where_not() -> None:
    rng = np.random.default_rng(3)
    matrix, rows = rng.standard_normal((96, 40)).astype(np.float32), rng.standard_normal((64, 96)).astype(np.float32)
    rows[:, ::19] *= 50
    seen = activations_of(rows)
    scale, step = find_smoothing([ArrayMatrix(matrix)], Int8PerChannel(), Int8Activations(), seen)
    assert scale is not None

    def error(scale: np.ndarray, step: np.ndarray) -> float:
        weights = Int8PerChannel().quantize(ArrayMatrix(matrix * scale[:, None]))
        inputs = Int8Activations().restore(rows / scale, step)
        return float(np.square(inputs @ Int8PerChannel().dequantize(weights, 96) - rows @ matrix).sum())

    ones = np.ones(96, np.float32)
    plain = error(ones, Int8Activations().step(float(seen.largest.max()), matrix.dtype))
    assert error(scale, step) < 0.2 * plain
    for candidate in candidate_scales(seen.largest, np.abs(matrix).max(axis=1)):
        whole = Int8Activations().step(float((seen.largest / candidate).max()), matrix.dtype)
        assert error(scale, step) <= error(candidate, whole) * 1.0001


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def source(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    checkpoint, output = str(tiny_checkpoint("qwen2")), tmp_path_factory.mktemp("source") / "bundle"
    return export("llava-ov", output, checkpoint=checkpoint, dialect="portable", precision=str(request.param)).path


@pytest.fixture(scope="module")
def calibrated(
    source: Path, videos: list[AskedVideo], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The source by a recipe; tests must not change it."""

    @cache
    def by(recipe: str) -> Path:
        output = tmp_path_factory.mktemp("calibrated") / recipe
        return calibrate(source, videos, output, Settings(recipe, min_agreement=0, max_new_tokens=2)).bundle.path

    return by


def inverse_of(product: onnx.NodeProto, producers: dict[str, onnx.NodeProto], tensors: dict[str, Any]) -> np.ndarray:
    """What the input of a product is multiplied by, [K, 1]; 1 where it is not."""
    node = producers.get(product.input[0])
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Mul" or not node.input[1].endswith(".inverse"):
        return np.ones((1, 1), np.float32)
    return np.asarray(numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)[:, None])


@pytest.mark.parametrize("recipe", QDQ)
def test_bundles_hold_what_they_say_and_run(
    recipe: str, source: Path, videos: list[AskedVideo], calibrated: Callable[[str], Path]
) -> None:
    made, original = open_bundle(calibrated(recipe)), open_bundle(source)
    assert made.manifest.precision == RECIPES[recipe].precision
    assert made.manifest.float_type == original.manifest.precision
    assert made.manifest.graphs == original.manifest.graphs
    said = made.manifest.quantization
    assert said is not None
    for name in RECIPES[recipe].dialects["portable"]:
        assert said.graphs[name].quantized > 0
        model = onnx.load(made.file(f"{name}.onnx"))
        onnx.checker.check_model(str(made.file(f"{name}.onnx")))
        for release in ("10.3", "10.13", "10.16", "11.1"):
            found = [f for f in unsupported(model, release) if f.operator != "TopK"]
            assert found == [], release
        weights = {linear.name: linear for linear in find_linears(load_graph(source / f"{name}.onnx"))}
        tensors, checked = {tensor.name: tensor for tensor in model.graph.initializer}, 0
        producers = {output: node for node in model.graph.node for output in node.output}
        for product in model.graph.node:
            weight = producers.get(product.input[1]) if product.op_type == "MatMul" else None
            if weight is None or not weight.input[0].endswith(".codes"):
                continue
            # ONNX's own reading of the codes, dequantized, is the original matrix to half a step.
            held = tensors[weight.input[0]]
            codes, scale = (numpy_helper.to_array(tensors[part]).astype(np.float32) for part in weight.input[:2])
            steps = scale.repeat(len(codes) // len(scale), axis=0) if scale.ndim == 2 else scale
            linear = weights[weight.input[0].removesuffix(".codes")].weight
            stored = read_rows(linear.tensor, 0, int(linear.tensor.shape[0])).astype(np.float32)
            matrix = (stored.T if linear.transposed else stored) / inverse_of(product, producers, tensors)
            # What int4 is rounded to depends on activations: see test_calibration_awq.
            if held.data_type == onnx.TensorProto.INT4:
                checked += 1
                continue
            # Of float8, half of the last of three bits, or of the least number.
            is_float8 = held.data_type == onnx.TensorProto.FLOAT8E4M3FN
            half = np.maximum(np.abs(codes) / 15, 2**-10) if is_float8 else 0.5
            assert (np.abs(codes * steps - matrix) <= half * steps * 1.001 + 1e-7).all()
            checked += 1
        assert checked == said.graphs[name].quantized
    answer = load(made).ask(videos[0].path, "what is this", max_new_tokens=2)
    assert answer.pruned


@pytest.mark.parametrize("recipe", QDQ)
def test_graphs_compute_what_numpy_does(
    recipe: str, videos: list[AskedVideo], calibrated: Callable[[str], Path]
) -> None:
    """Pruned, with the inputs that the chain gives them: ONNX Runtime rewrites Q/DQ, and must not change its results.

    An activation that lies between two codes to the last bit may go either way, and all that follows from it: in a few
    of a graph's outputs, by little; in half precision, whose own rounding differs, in more of them. Where weights alone
    are quantized, there is nothing that could.
    """
    bundle, backend = open_bundle(calibrated(recipe)), RecordingBackend()
    # Apart, since what a merge decides hangs on the last bits of its features.
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    session = pipeline.session(pipeline.features(videos[0].path))
    "".join(session.stream("what is this", FEW_TOKENS))
    assert {name for name, _, _ in backend.runs} == set(bundle.manifest.graphs)
    half = bundle.manifest.float_type == "fp16"
    for name, feeds, computed in backend.runs:
        expected = run_in_numpy(bundle.file(f"{name}.onnx"), feeds)
        weights_alone = name in ("merge", "select") or (recipe == "int4-awq" and name != "vision_merge")
        for output, found in computed.items():
            right = expected[output].astype(np.float64)
            if not found.size or not np.issubdtype(found.dtype, np.floating):
                assert np.array_equal(found, right)
                continue
            change = np.abs(found - right) / np.abs(right).max()
            if weights_alone:
                assert change.max() < (1e-2 if half else 1e-5), (name, output)
            assert np.median(change) < (3e-2 if half else 1e-3), (name, output)
            assert change.max() < (0.3 if half else 0.05), (name, output)


@pytest.mark.parametrize("release", ["10.3.0.30", "10.16.0.72"])
@pytest.mark.parametrize("recipe", QDQ)
def test_engines_are_built_of_what_the_bundle_holds(
    recipe: str, release: str, calibrated: Callable[[str], Path], tmp_path: Path
) -> None:
    """By what stands in for the builder: the models that it is given keep their Q/DQ, plugins or not."""
    bundle = open_bundle(shutil.copytree(calibrated(recipe), tmp_path / "bundle"))
    capability = "8.9" if recipe == "fp8-qdq" else ORIN.compute_capability
    toolkit = StandIn(replace(ORIN, release=release, compute_capability=capability))
    built = build(bundle.path, toolkit=toolkit)  # type: ignore[arg-type]
    assert len(built.manifest.engine_sets) == 1
    assert built.manifest.quantization == bundle.manifest.quantization
    assert toolkit.models.keys() == bundle.manifest.graphs.keys()
    for name, model in toolkit.models.items():
        kinds = ("QuantizeLinear", "DequantizeLinear", "MatMul")
        original = onnx.load(bundle.file(f"{name}.onnx"), load_external_data=False)
        for kind in kinds:
            given, held = (sum(node.op_type == kind for node in one.graph.node) for one in (model, original))
            assert given >= held, (name, kind)
        assert (name in ("merge", "select")) == ("DequantizeLinear" not in {node.op_type for node in model.graph.node})


def test_a_recipe_of_another_dialect_names_those_that_are_right(
    tiny_bundle: Callable[[str, str], Path], demo_bundle: Path, videos: list[AskedVideo], tmp_path: Path
) -> None:
    with pytest.raises(PruneVidError, match="int8-qdq is for bundles of the dialect portable.*take cpu-int8"):
        calibrate(demo_bundle, videos, tmp_path / "out", Settings("int8-qdq"))
    with pytest.raises(PruneVidError, match="cpu-int8 is for bundles of the dialect ort.*int4-awq or int8-qdq"):
        calibrate(tiny_bundle("qwen2", "portable"), videos, tmp_path / "out", Settings("cpu-int8"))
