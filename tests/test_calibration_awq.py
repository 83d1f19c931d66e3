"""Activation-aware scales: what they are, that they help where activations have outliers, how a bundle has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from activations import activations_of
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid.bundle import open_bundle
from prunevid.calibration.quantize.activations import input_groups, observe
from prunevid.calibration.quantize.awq import POWERS, ScaledMatrix, candidate_scales, find_scale, output_errors
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.linears import find_linears, load_graph
from prunevid.calibration.quantize.recipes import RECIPES
from prunevid.calibration.quantize.rewrite import TREATMENTS
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Int4Blocks
from prunevid.calibration.quantize.watched import watch_input
from prunevid.calibration.questions import AskedVideo, split
from prunevid.runtime import load

RNG = np.random.default_rng(7)


def test_candidates_are_powers_of_the_magnitude() -> None:
    magnitude = np.array([0.25, 1.0, 4.0], np.float32)
    scales = candidate_scales(magnitude)
    assert scales.shape == (len(POWERS), 3)
    assert np.array_equal(scales[0], np.ones(3))
    assert scales[-1] == pytest.approx(magnitude)
    assert scales[5] == pytest.approx(np.sqrt(magnitude))


def test_scales_are_found_that_help_where_channels_differ() -> None:
    scheme = Int4Blocks(32)
    matrix = RNG.standard_normal((128, 48)).astype(np.float32)
    rows = RNG.standard_normal((64, 128)).astype(np.float32)
    rows[:, ::17] *= 30
    seen, units = activations_of(rows), rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scales = candidate_scales(seen.magnitude)
    errors = output_errors(ArrayMatrix(matrix), scheme, scales, seen.moments)
    for scale, error in zip(scales, errors, strict=True):
        restored = scheme.dequantize(scheme.quantize(ArrayMatrix(matrix * scale[:, None])), 128) / scale[:, None]
        assert error == pytest.approx(np.square(units @ restored - units @ matrix).sum(axis=1).mean(), rel=1e-3)
    found = find_scale([ArrayMatrix(matrix)], scheme, seen)
    assert np.array_equal(found, scales[errors.argmin()])
    assert errors.min() < 0.6 * errors[0]
    (block,) = ScaledMatrix(ArrayMatrix(matrix), found).blocks()
    assert np.array_equal(block.values, matrix * found[:, None])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(0, 2**32))
def test_the_error_is_that_of_all_rows_summed_over_blocks_of_channels(inputs: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((inputs, outputs)).astype(np.float32)
    rows = rng.standard_normal((40, inputs)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scheme, scales = Int4Blocks(128), np.ones((1, inputs), np.float32)
    (error,) = output_errors(ArrayMatrix(matrix), scheme, scales, activations_of(rows).moments)
    change = scheme.dequantize(scheme.quantize(ArrayMatrix(matrix)), inputs) - matrix
    starts = range(0, inputs, 128)
    by_block = [rows[:, start : start + 128] @ change[start : start + 128] for start in starts]
    assert error == pytest.approx(sum(np.square(block).sum() for block in by_block) / len(rows), rel=1e-3)


def test_a_sample_of_many_outputs_tells_the_error_of_all() -> None:
    matrix = RNG.standard_normal((128, 5000)).astype(np.float32)
    seen = activations_of(RNG.standard_normal((200, 128)).astype(np.float32) * RNG.lognormal(size=128))
    scheme, scales = Int4Blocks(128), candidate_scales(seen.magnitude)
    found = output_errors(ArrayMatrix(matrix), scheme, scales, seen.moments)
    parts = [
        output_errors(ArrayMatrix(matrix[:, start : start + 500]), scheme, scales, seen.moments)
        for start in range(0, 5000, 500)
    ]
    assert found == pytest.approx(np.sum(parts, axis=0), rel=0.05)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("count", "inputs"), [(0, 8), (1, 128), (90, 200)])
def test_a_watched_graph_tells_of_its_inputs_what_numpy_does(
    count: int, inputs: int, dtype: type, tmp_path: Path
) -> None:
    floats = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = onnx.numpy_helper.from_array(RNG.standard_normal((inputs, 3)).astype(dtype), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, floats, [1, "n", n]) for name, n in (("x", inputs), ("y", 3)))
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([product], "one", [x], [y], [weight])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    ir.save(ir.from_proto(proto), tmp_path / "one.onnx", external_data="one.data", size_threshold_bytes=0)
    model = load_graph(tmp_path / "one.onnx")
    (linear,) = find_linears(model)
    watch_input(model.graph, linear, 5)
    ir.save(model, tmp_path / "watched.onnx")
    session = ort.InferenceSession(tmp_path / "watched.onnx", providers=["CPUExecutionProvider"])
    rows: np.ndarray = RNG.standard_normal((count, inputs)).astype(dtype)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"x": rows[None]}), strict=True))
    wide = rows.astype(np.float32)
    assert found["watched_count.5"].tolist() == [count]
    assert np.array_equal(found["watched_rows.5"], wide[::37])
    assert found["watched_total.5"] == pytest.approx(np.abs(wide).sum(axis=0), rel=1e-5)
    assert np.array_equal(found["watched_largest.5"], np.abs(wide).max(axis=0, initial=0))
    if count:
        assert found["watched_moments.5"] / count == pytest.approx(activations_of(wide).moments, rel=1e-4, abs=1e-4)
    else:
        assert found["watched_moments.5"].shape == (1, 128, 128)
        assert not found["watched_moments.5"].any()


def test_what_goes_into_layers_is_observed(tiny_bundle: Callable[[str, str], Path], videos: list[AskedVideo]) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", "ort"))
    seen = observe(bundle, "llm_pre", videos[:2], 1, lambda: None)
    groups = input_groups(load_graph(bundle.file("llm_pre.onnx")))
    assert seen.keys() == groups.keys()
    for source, group in groups.items():
        inputs = group[0].weight.shape[0]
        assert seen[source].magnitude.shape == (inputs,)
        assert 0 < len(seen[source].rows) <= 128
        assert seen[source].rows.shape[1] == inputs
        assert seen[source].moments.shape == (-(-inputs // 128), 128, 128)
        beyond = -inputs % 128
        assert not beyond or not seen[source].moments[-1, -beyond:].any()
        # Every row has length one.
        assert np.trace(seen[source].moments, axis1=1, axis2=2).sum() == pytest.approx(1.0, rel=1e-4)
    # The first layers' input is a norm's: but for its weight, the mean square of a row is one, whatever the video.
    source = next(iter(groups))
    norm = groups[source][0].node.inputs[0].producer()
    assert norm.op_type == "SimplifiedLayerNormalization"
    plain = seen[source].rows / norm.inputs[1].const_value.numpy()
    assert np.square(plain).mean(axis=1) == pytest.approx(1.0, abs=0.01)
    assert seen[source].magnitude.mean() == pytest.approx(np.abs(seen[source].rows).mean(), rel=0.2)


@pytest.mark.parametrize(
    ("dialect", "product"), [("ort", "MatMulNBits"), ("portable", "MatMul")], ids=["ort", "portable"]
)
def test_the_bundle_scales_weights_up_and_inputs_down(
    dialect: str, product: str, tiny_bundle: Callable[[str, str], Path], videos: list[AskedVideo], tmp_path: Path
) -> None:
    source = tiny_bundle("qwen2", dialect)
    made = calibrate(source, videos, tmp_path / "out", Settings("int4-awq", min_agreement=0, max_new_tokens=2))
    treatment = TREATMENTS[RECIPES["int4-awq"].dialects[dialect]["llm_pre"]]
    scaled = 0
    for name in ("llm_pre", "llm_post"):
        values = load_graph(tmp_path / "out" / f"{name}.onnx").graph.initializers
        seen = observe(open_bundle(source), name, split(videos).calibration, None, lambda: None)
        groups = input_groups(load_graph(source / f"{name}.onnx"))
        for entered, group in groups.items():
            taken = [linear for linear in group if treatment.takes(linear.weight)]
            fitted = treatment.fit([linear.weight for linear in taken], seen[entered])
            assert fitted.rounding is not None
            users = []
            for linear in taken:
                weight = linear.weight if fitted.scale is None else ScaledMatrix(linear.weight, fitted.scale)
                for part, array in treatment.quantize(weight, fitted).items():
                    assert np.array_equal(values[f"{linear.name}.{part}"].const_value.numpy(), array)
                (user,) = (node for node, _ in values[f"{linear.name}.codes"].uses())
                if user.op_type == "DequantizeLinear":
                    ((user, _),) = user.outputs[0].uses()
                assert user.op_type == product
                users.append(user.inputs[0])
            # Layers that share an input share its scaling.
            assert len(set(users)) == 1
            if fitted.scale is not None:
                inverse = users[0].producer().inputs[1].const_value.numpy()
                assert np.array_equal(inverse, np.float32(1) / fitted.scale)
                scaled += 1
    assert scaled
    answer = load(made.bundle).ask(videos[0].path, "what is this", max_new_tokens=2)
    assert answer.pruned
