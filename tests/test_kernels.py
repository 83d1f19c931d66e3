"""The Triton kernels against the NumPy reference: in Triton's interpreter, and with `-m gpu` on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import needs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import clusterings, is_clear, labelings, selections
from triton_interpreter import interpreter
from triton_interpreter import run as run_on

from prunevid.errors import InvalidValueError, PruneVidError
from prunevid.methods import clustering, segments, selection

needs.package("triton")

Array = npt.NDArray[Any]
# run(operator, arrays, keyword arguments) -> result
Run = Callable[..., Array]

ELEMENTS = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a kernel; see `triton_interpreter.run`."""
    if request.param == "interpreter":
        with interpreter() as call:
            yield lambda *arguments, **options: np.asarray(call(run_on, "cpu", *arguments, **options))
        return
    needs.torch_on_gpu()
    yield lambda *arguments, **options: run_on("cuda", *arguments, **options)


def prove(examples: int) -> settings:
    return settings(derandomize=True, deadline=None, max_examples=examples)


# --- DpcKnn ------------------------------------------------------------------------------------------------


def rounded(values: Array, element: str) -> Array:
    """The float32 values that are left of these in an element type."""
    torch = needs.package("torch")
    return np.asarray(torch.from_numpy(values).to(getattr(torch, element)).to(torch.float32))


def test_clusters_equal_the_reference(run: Run) -> None:
    seen = Counter[str]()

    @prove(50)
    @given(clusterings(), st.sampled_from(ELEMENTS), st.booleans())
    def check(drawn: tuple[Array, Array, Array, int, bool], element: str, poisoned: bool) -> None:
        squared, valid, clusters, neighbours, exact = drawn
        squared = rounded(np.minimum(squared, 6e4), element)
        if poisoned:
            squared[~(valid[:, :, None] & valid[:, None, :])] = np.nan
        found = run("dpc_knn", squared, valid, clusters, element=element, neighbours=neighbours)
        assert found.dtype == np.int64
        for table, mask, number, labels in zip(squared, valid, clusters, found, strict=True):
            assert (labels[~mask] == -1).all()
            if not mask.any():
                seen["empty"] += 1
                continue
            inside = table[np.ix_(mask, mask)].astype(np.float64)
            assert np.unique(labels[mask]).tolist() == list(range(number))
            if not is_clear(inside, int(number), neighbours, exact):
                seen[f"near tie {element}"] += 1
                continue
            np.testing.assert_array_equal(labels[mask], clustering.dpc_knn(inside, int(number), neighbours))
            seen[f"{element} {'on a grid' if exact else 'continuous'}"] += 1
            seen["fewer than k"] += mask.sum() < neighbours
            seen["all kept"] += number == mask.sum()

    check()
    assert seen["near tie float32"] < 0.1 * seen["float32 continuous"], seen
    assert seen["float16 on a grid"] + seen["bfloat16 on a grid"] > 10, seen
    assert min(seen["float32 continuous"], seen["empty"], seen["fewer than k"], seen["all kept"]) > 5, seen


@pytest.mark.parametrize("tokens", [196, 700, 1024])
def test_clusters_of_many_tokens_equal_the_reference(run: Run, tokens: int) -> None:
    clusters, neighbours = tokens // 2, 7
    for seed in count():
        points = np.random.default_rng(seed).integers(0, 4, size=(tokens, 8)).astype(np.float64)
        squared = clustering.squared_distances(points)
        if is_clear(squared, clusters, neighbours, exact=True):
            break
    valid, number = np.ones((1, tokens), np.bool_), np.array([clusters])
    found = run("dpc_knn", squared[None].astype(np.float32), valid, number)
    np.testing.assert_array_equal(found[0], clustering.dpc_knn(squared, clusters, neighbours))


@pytest.mark.parametrize("tokens", [1, 2, 5, 20])
@pytest.mark.parametrize("clusters", [1, 2, 10])
def test_tokens_in_one_place_are_clustered_in_order(run: Run, tokens: int, clusters: int) -> None:
    clusters = min(clusters, tokens)
    squared = np.zeros((1, tokens, tokens), np.float32)
    found = run("dpc_knn", squared, np.ones((1, tokens), np.bool_), np.array([clusters]))[0]
    assert found.tolist() == [index if index < clusters else 0 for index in range(tokens)]


def test_densities_too_low_for_float32_are_told_apart(run: Run) -> None:
    points = np.array([[0.0], [21.0], [43.0], [66.0], [90.0], [115.0]])
    squared = clustering.squared_distances(points)
    expected = clustering.dpc_knn(squared, 3, 3)
    found = run("dpc_knn", squared[None].astype(np.float32), np.ones((1, 6), np.bool_), np.array([3]), neighbours=3)
    np.testing.assert_array_equal(found[0], expected)


def test_wrong_shapes_are_refused(run: Run) -> None:
    valid = np.ones((1, 4), np.bool_)
    with pytest.raises(InvalidValueError, match=r"\[G, N, N\]"):
        run("dpc_knn", np.zeros((1, 3, 4), np.float32), valid, np.array([2]))
    with pytest.raises(InvalidValueError, match="up to 1024 tokens"):
        run("dpc_knn", np.zeros((0, 1025, 1025), np.float32), np.ones((0, 1025), np.bool_), np.zeros(0, np.int64))
    with pytest.raises(InvalidValueError, match="from 1 to 256"):
        run("refine_segments", np.zeros(257, np.int64))
    with pytest.raises(InvalidValueError, match=r"\[V\]"):
        run("group_topk", np.zeros(3, np.float32), np.zeros(2, np.int64), np.zeros(1, np.int64))


# --- RefineSegments ----------------------------------------------------------------------------------------


def test_segments_equal_the_reference(run: Run) -> None:
    @prove(25)
    @given(labelings())
    def check(labels: list[int]) -> None:
        found = run("refine_segments", np.array(labels, np.int64))
        assert found.dtype == np.int64
        assert found.tolist() == segments.refine_segments(labels).tolist()

    check()


def test_segments_of_the_longest_video_equal_the_reference(run: Run) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 40, size=256), rng.integers(1, 9, size=256))[:256]
    found = run("refine_segments", labels)
    assert found.max() > 10
    assert found.tolist() == segments.refine_segments(labels).tolist()


# --- GroupTopK ---------------------------------------------------------------------------------------------


def test_kept_tokens_equal_the_reference(run: Run) -> None:
    @prove(60)
    @given(selections(), st.sampled_from(ELEMENTS))
    def check(drawn: tuple[Array, Array, Array], element: str) -> None:
        scores, group, quota = drawn
        scores = rounded(scores, element)
        found = run("group_topk", scores, group, quota, element=element)
        assert found.dtype == np.int64
        assert found.tolist() == selection.group_topk(scores, group, quota).tolist()

    check()


@pytest.mark.parametrize("groups", [1, 40])
def test_kept_tokens_of_many_equal_the_reference(run: Run, groups: int) -> None:
    rng = np.random.default_rng(1)
    # Few different scores: most decisions are ties.
    scores = rng.integers(0, 50, size=1000).astype(np.float32)
    group, quota = np.sort(rng.integers(0, groups, size=1000)), rng.integers(0, 60, size=groups)
    quota[0] = 300
    assert run("group_topk", scores, group, quota).tolist() == selection.group_topk(scores, group, quota).tolist()


def test_nothing_to_choose_from_keeps_nothing(run: Run) -> None:
    assert run("group_topk", np.zeros(0, np.float32), np.zeros(0, np.int64), np.array([3])).tolist() == []


# --- Compilation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [87, 89, 90, 110, 120])
def test_kernels_compile_for_every_target_without_spilling(capability: int) -> None:
    from prunevid.export.engine.kernels.__main__ import cases
    from prunevid.export.engine.kernels.compiler import GPUS, resources_of

    assert capability in GPUS
    found = list(cases(capability))
    assert {case.operator for case in found} == {"DpcKnn", "RefineSegments", "GroupTopK"}
    for case in found:
        kernel = case.kernel
        taken = resources_of(kernel)
        print(f"sm_{capability} {case.operator} {case.size}: {kernel.threads} threads, {taken}")
        assert f".target sm_{capability}" in kernel.ptx
        assert taken.spilled_bytes == 0, case
        # A program fits: its registers, and the shared memory that needs no special launch.
        assert taken.registers * kernel.threads <= 65536
        assert taken.shared_bytes <= 48 * 1024


def test_kernels_compile_for_half_precision() -> None:
    from prunevid.export.engine.kernels.__main__ import cases
    from prunevid.export.engine.kernels.compiler import resources_of

    assert all(resources_of(case.kernel).spilled_bytes == 0 for case in cases(87, "bf16"))


def test_ptx_has_the_arguments_of_the_kernel_and_no_trace_of_this_machine() -> None:
    from prunevid.export.engine.kernels.__main__ import cases

    for case, arguments in zip(cases(90), (5, 5, 3, 5), strict=True):
        ptx = case.kernel.ptx
        assert ptx.count(f".entry {case.kernel.name}(") == 1
        assert ptx.count(f"{case.kernel.name}_param_{arguments - 1}") >= 2
        assert f"{case.kernel.name}_param_{arguments}" not in ptx
        assert ".file" not in ptx
        assert "dpc_knn.py" not in ptx


def test_a_gpu_without_kernels_is_refused() -> None:
    from prunevid.export.engine.kernels.__main__ import cases

    with pytest.raises(PruneVidError, match="no kernels for sm_72: known are sm_80"):
        next(cases(72))
