"""The merge as a graph against the NumPy reference, on its own and behind a vision tower.

The graph takes distances from a Gram matrix in float32, the reference directly in float64. A decision that noise of
1e-5 would change may fall either way; everything else must be equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    TINY,
    assert_same_merge,
    cpu_session,
    merge_is_clear,
    pixel_values,
    render_frames,
    structured_features,
    video_features,
)

from prunevid import MergedTokens, PruneConfig, merge_tokens
from prunevid.export.graphs import operators
from prunevid.export.graphs.methods.prunevid import merge

Array = npt.NDArray[Any]

TOLERANCE = 1e-5


@cache
def merge_session(neighbours: int) -> ort.InferenceSession:
    """The merge with features as its input: any number of frames, tokens and channels."""
    graph, op = operators.new_graph("merge", 20, (operators.DOMAIN,))
    features = op.builder.input("past_features", ir.DataType.FLOAT, ["frames", "patches", "channels"])
    merge_settings = {
        "segment_counts": op.builder.input("segment_counts", ir.DataType.INT64, ["frame_counts"]),
        "cluster_counts": op.builder.input("cluster_counts", ir.DataType.INT64, ["token_counts"]),
        "static_threshold": op.builder.input("static_threshold", ir.DataType.FLOAT, []),
    }
    merged = merge(op, features, merge_settings, PruneConfig(neighbours=neighbours))
    for value, name, dtype, dims in (
        (merged.tokens, "video_tokens", ir.DataType.FLOAT, ["all", "channels"]),
        (merged.group, "token_group", ir.DataType.INT64, ["all"]),
        (merged.count, "token_count", ir.DataType.INT64, [1]),
        (merged.patch_to_token, "patch_to_token", ir.DataType.INT64, ["frames", "patches"]),
        (merged.segment, "frame_segment", ir.DataType.INT64, ["frames"]),
    ):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(dims)
        op.builder.add_output(value, name)
    model = ir.to_proto(operators.to_model(graph, op))
    onnx.checker.check_model(model, full_check=True)
    return cpu_session(model.SerializeToString())


def feeds(config: PruneConfig, frames: int, tokens: int) -> dict[str, Array]:
    """The graph inputs that carry the settings."""
    return {
        "segment_counts": config.segment_counts(frames),
        "cluster_counts": config.cluster_counts(tokens),
        "static_threshold": np.array(config.static_threshold, np.float32),
    }


def run_merge(session: ort.InferenceSession, inputs: dict[str, Array]) -> MergedTokens:
    names = [value.name for value in session.get_outputs()]
    return as_merged(dict(zip(names, session.run(names, inputs), strict=True)))


def as_merged(outputs: dict[str, Array]) -> MergedTokens:
    """What the outputs say, without what they are filled up with: there is a place for every patch."""
    (count,), patches = outputs["token_count"], outputs["patch_to_token"].size
    tokens, group = outputs["video_tokens"], outputs["token_group"]
    assert (len(tokens), len(group)) == (patches, patches)
    assert not group[count:].any()
    return MergedTokens(tokens[:count], group[:count], outputs["patch_to_token"], outputs["frame_segment"])


def merged_by_graph(features: Array, config: PruneConfig) -> MergedTokens:
    inputs = {"past_features": features, **feeds(config, *features.shape[:2])}
    return run_merge(merge_session(config.neighbours), inputs)


@st.composite
def videos(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    frames = draw(st.integers(1, 20))
    cuts = draw(st.lists(st.integers(1, frames), max_size=3, unique=True).map(sorted))
    return structured_features(
        frames,
        tokens=draw(st.integers(1, 40)),
        channels=draw(st.integers(16, 64)),
        seed=draw(st.integers(0, 2**32 - 1)),
        cuts=tuple(cuts),
        moving=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
    )


@st.composite
def configs(draw: st.DrawFn) -> PruneConfig:
    return PruneConfig(
        segment_ratio=draw(st.sampled_from([0.1, 0.25, 0.5, 1.0])),
        static_threshold=draw(st.sampled_from([-1.0, 0.5, 0.8, 2.0])),
        cluster_ratio=draw(st.sampled_from([0.1, 0.3, 0.5, 1.0])),
        neighbours=draw(st.sampled_from([3, 7])),
        min_cluster_tokens=draw(st.sampled_from([0, 5, 14])),
    )


def test_merged_tokens_equal_the_reference() -> None:
    seen = Counter[str]()

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(videos(), st.one_of(st.just(PruneConfig()), configs()))
    def check(features: Array, config: PruneConfig) -> None:
        expected = merge_tokens(features, config)
        if not merge_is_clear(features, config):
            seen["near tie"] += 1
            return
        assert_same_merge(merged_by_graph(features, config), expected, TOLERANCE)
        seen["equal"] += 1
        seen["cut"] += bool(expected.segments[-1])
        seen["static"] += len(expected.tokens) < features.shape[0] * features.shape[1]

    check()
    assert seen["near tie"] < 0.1 * seen["equal"], seen
    assert min(seen["cut"], seen["static"]) > 20, seen


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 40, 16), (2, 1, 3), (7, 9, 8), (16, 25, 16)])
def test_disabled_settings_give_the_features_back(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    merged = merged_by_graph(features, PruneConfig.disabled())
    np.testing.assert_array_equal(merged.tokens, features.reshape(-1, shape[2]))
    np.testing.assert_array_equal(merged.patch_to_token, np.arange(shape[0] * shape[1]).reshape(shape[:2]))
    np.testing.assert_array_equal(merged.group, merge_tokens(features, PruneConfig.disabled()).group)


@pytest.mark.parametrize("shape", [(1, 20, 8), (2, 16, 8), (6, 20, 8)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_video_of_one_colour_equals_the_reference(shape: tuple[int, int, int], value: float) -> None:
    # All zero: no direction, so nothing is static. All ones: everything is, and every distance is a tie.
    features = np.full(shape, value, np.float32)
    assert_same_merge(merged_by_graph(features, PruneConfig()), merge_tokens(features, PruneConfig()), 0.0)


def test_still_scenes_between_hard_cuts_become_one_token_per_position() -> None:
    scenes = np.random.default_rng(3).normal(size=(3, 9, 16)).astype(np.float32)
    features = scenes[np.searchsorted((8, 16), np.arange(24), side="right")]
    merged = merged_by_graph(features, PruneConfig())
    assert merged.segments.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    np.testing.assert_allclose(merged.tokens, scenes.reshape(27, 16), atol=1e-6)


def test_a_large_common_offset_does_not_hide_the_differences() -> None:
    # What is common to all tokens must cancel before the Gram matrix squares it.
    features = structured_features(12, 20, 32, seed=1, cuts=(6,))
    config = PruneConfig(static_threshold=2.0)
    offset = np.random.default_rng(2).normal(size=32).astype(np.float32) * 100
    moved = features + offset
    assert merge_is_clear(moved, config)
    assert_same_merge(merged_by_graph(moved, config), merge_tokens(moved, config), 1e-3)


# --- behind the tower --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vision(tiny_bundle: Callable[[str, str], Path]) -> ort.InferenceSession:
    return cpu_session(str(tiny_bundle("qwen2", "ort") / "vision_merge.onnx"))


def run_vision(session: ort.InferenceSession, pixels: Array, past: Array, config: PruneConfig) -> dict[str, Array]:
    inputs = {"pixel_values": pixels, "past_features": past}
    inputs |= feeds(config, len(pixels) + len(past), TINY["qwen2"].tokens_per_frame)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 16])
def test_features_equal_transformers_and_merge_equals_the_reference(
    vision: ort.InferenceSession, tiny_model: Callable[[str], Any], frames: int
) -> None:
    pixels = pixel_values(render_frames(frames, TINY["qwen2"].image_size, seed=frames, cuts=(frames // 2,)))
    none = np.zeros((0, TINY["qwen2"].tokens_per_frame, 64), np.float32)
    config = PruneConfig(min_cluster_tokens=4)
    found = run_vision(vision, pixels, none, config)
    np.testing.assert_allclose(found["features"], video_features(tiny_model("qwen2"), pixels), atol=1e-4)
    assert_same_merge(as_merged(found), merge_tokens(found["features"], config), TOLERANCE)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_attention_of_the_tower_is_fused_for_onnxruntime_alone(
    tiny_bundle: Callable[[str, str], Path], tiny_model: Callable[[str], Any], dialect: str
) -> None:
    file = tiny_bundle("qwen2", dialect) / "vision_merge.onnx"
    fused = [node for node in ir.load(file).graph if node.op_type == "MultiHeadAttention"]
    layers = tiny_model("qwen2").config.vision_config.num_hidden_layers
    assert len(fused) == (layers if dialect == "ort" else 0)
    pixels = pixel_values(render_frames(5, TINY["qwen2"].image_size, seed=5))
    none = np.zeros((0, TINY["qwen2"].tokens_per_frame, 64), np.float32)
    found = run_vision(cpu_session(str(file)), pixels, none, PruneConfig())
    np.testing.assert_allclose(found["features"], video_features(tiny_model("qwen2"), pixels), atol=1e-4)


@pytest.mark.parametrize("past", [1, 5, 6, 9])
def test_features_of_earlier_frames_count_like_frames(vision: ort.InferenceSession, past: int) -> None:
    size, patches = TINY["qwen2"].image_size, TINY["qwen2"].tokens_per_frame
    pixels, config = pixel_values(render_frames(10, size, cuts=(4,))), PruneConfig(min_cluster_tokens=4)
    whole = run_vision(vision, pixels, np.zeros((0, patches, 64), np.float32), config)
    assert len(np.unique(whole["frame_segment"])) > 1
    assert whole["token_count"] < 0.8 * 10 * patches
    found = run_vision(vision, pixels[past:], whole["features"][:past], config)
    np.testing.assert_array_equal(found["features"][:past], whole["features"][:past])
    np.testing.assert_allclose(found["features"], whole["features"], atol=1e-5)
    assert_same_merge(as_merged(found), as_merged(whole), TOLERANCE)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("frames", [1, 2, 7, 16])
def test_merge_alone_computes_what_vision_merge_does_behind_its_tower(
    tiny_bundle: Callable[[str, str], Path], dialect: str, frames: int
) -> None:
    bundle, tiny = tiny_bundle("qwen2", dialect), TINY["qwen2"]
    pixels = pixel_values(render_frames(frames, tiny.image_size, seed=frames, cuts=(frames // 2,)))
    config = PruneConfig(min_cluster_tokens=4)
    none = np.zeros((0, tiny.tokens_per_frame, 64), np.float32)
    whole = run_vision(cpu_session(str(bundle / "vision_merge.onnx")), pixels, none, config)
    merge_alone = cpu_session(str(bundle / "merge.onnx"))
    assert [value.name for value in merge_alone.get_outputs()] == list(whole)[1:]
    inputs = {"features": whole["features"], **feeds(config, frames, tiny.tokens_per_frame)}
    found = run_merge(merge_alone, inputs)
    assert_same_merge(found, as_merged(whole), 0.0)
    assert_same_merge(found, merge_tokens(whole["features"], config), TOLERANCE)
