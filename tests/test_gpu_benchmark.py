"""The GPU benchmark on the CPU, with tiny shapes and interpreted kernels: all of it but its speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import needs
import numpy as np
import pytest
import torch
from models import (
    TINY,
    build_model,
    merge_is_clear,
    pixel_values,
    structured_features,
)
from torch_method import generate_pruned
from triton_interpreter import Call, interpreter

from prunevid import PruneConfig, merge_tokens

needs.package("triton")

CPU = torch.device("cpu")
PREFIX, SUFFIX = [1, 2, 3], [7, 8, 9, 10, 11]
STEPS = 4


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    with interpreter() as call:
        yield call


def checked(frames: int, tokens: int, seed: int) -> dict[str, int]:
    from benchmarks.gpu.kernels import Shape, check

    return check(Shape("tiny", frames, tokens, 8), seed, CPU)


def test_kernels_are_checked_against_the_reference(call: Call) -> None:
    found = call(checked, 6, 30, 0)
    assert "wrong" not in found
    assert found["groups"] > 5
    assert (found["videos"], found["selections"]) == (5, 1)


def merged(features: Any, config: PruneConfig) -> tuple[Any, Any]:
    from benchmarks.gpu.merging import Merger

    frames, tokens, _ = features.shape
    found = Merger(config, frames, tokens, CPU).merge(torch.from_numpy(features))
    return found.tokens.numpy(), found.group.numpy()


@pytest.mark.parametrize("cuts", [(), (3,), (2, 5)])
def test_merging_equals_the_reference(call: Call, cuts: tuple[int, ...]) -> None:
    config = PruneConfig(segment_ratio=0.5, min_cluster_tokens=4)
    features = structured_features(8, 20, 16, seed=len(cuts), cuts=cuts)
    assert merge_is_clear(features, config)
    tokens, group = call(merged, features, config)
    expected = merge_tokens(features, config)
    np.testing.assert_array_equal(group, expected.group)
    np.testing.assert_allclose(tokens, expected.tokens, atol=1e-5)


def answered(pixels: Any, config: PruneConfig) -> tuple[list[int], tuple[int, int, int]]:
    from benchmarks.gpu.merging import Merger
    from benchmarks.gpu.model import Question, answer

    model = build_model(TINY["qwen2"])
    model.config._attn_implementation = model.config.text_config._attn_implementation = "sdpa"
    merger = Merger(config, len(pixels), TINY["qwen2"].tokens_per_frame, CPU)
    question = Question(torch.tensor(PREFIX), torch.tensor(SUFFIX))
    outcome = answer(model, torch.from_numpy(pixels), question, merger, STEPS)
    return outcome.ids, outcome.visual


def test_the_pruned_model_answers_as_the_torch_method_does(call: Call) -> None:
    tiny = TINY["qwen2"]
    config = PruneConfig(segment_ratio=0.5, min_cluster_tokens=4, keep_ratio=0.5, prune_layer=2)
    rng = np.random.default_rng(0)
    pixels = pixel_values(rng.integers(0, 256, (5, tiny.image_size, tiny.image_size, 3), dtype=np.uint8))
    trace = generate_pruned(build_model(tiny), pixels, PREFIX, SUFFIX, config, STEPS)
    ids, visual = call(answered, pixels, config)
    assert visual == (5 * tiny.tokens_per_frame, len(trace.tokens), len(trace.kept))
    assert len(trace.ids) > 1
    assert ids[: len(trace.ids)] == trace.ids


def reported() -> str:
    from benchmarks.gpu import kernels, method
    from benchmarks.gpu.timing import copy_bandwidth

    shape = kernels.Shape("tiny", 4, 20, 8)
    bandwidth = copy_bandwidth(CPU, 1 << 20, 2)
    model = build_model(TINY["qwen2"])
    report = {
        "card": "none",
        "copy bytes per second": bandwidth,
        "checks": {shape.name: kernels.check(shape, 0, CPU)},
        "kernels": kernels.measure(shape, bandwidth, CPU, 2),
        "method": method.compare(model, 4, 3, 1),
    }
    return method.table(report)


def test_the_report_has_a_row_for_every_kernel_and_system(call: Call) -> None:
    text = call(reported)
    rows = {line.split("|")[2].strip(): line for line in text.splitlines() if line.startswith("| 4 x 20 x 8")}
    assert set(rows) == {"DpcKnn", "RefineSegments", "GroupTopK", "whole merge"}
    systems = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith(("| unpruned", "| pruned"))]
    unpruned, pruned = ([float(cell) for cell in row[1:]] for row in systems)
    assert unpruned[1] == 0 < pruned[1]
    assert min(unpruned[2:5] + pruned[2:5]) > 0


def test_the_model_is_the_shipped_one_in_half_precision() -> None:
    from benchmarks.gpu.model import random_model

    model = random_model("llava-ov", torch.device("meta"), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert 7.9e9 < sum(parameter.numel() for parameter in model.parameters()) < 8.2e9
    assert model.config.text_config._attn_implementation == "sdpa"
    assert torch.get_default_dtype() == torch.float32
