"""The TensorRT plugins on TensorRT's real Python bindings, without a GPU, and the nodes that name them."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import needs
import numpy as np
import onnx
import plugin_builder
import pytest
import tensorrt_on_cpu
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from operator_cases import model_of
from operator_cases import run as run_body
from plugin_builder import Input, Launch

from prunevid.errors import PruneVidError
from prunevid.export.engine.plugins.nodes import ATTRIBUTES, PLUGINS, plugin_nodes
from prunevid.methods import clustering, segments, selection

CAPABILITY = 87

DISTANCES = Input("FLOAT", ("G", 196, 196), (64, 196, 196))
VALID = Input("INT32", ("G", 196), (64, 196))
CLUSTERS = Input("INT64", ("G",), (64,))
SCORES = Input("FLOAT", ("V",), (6272,))
GROUP = Input("INT64", ("V",), (6272,))
QUOTA = Input("INT64", ("G",), (64,))


@pytest.fixture(scope="module")
def tensorrt() -> Iterator[Callable[..., Any]]:
    """Calls a function of `plugin_builder` in a process of its own, where the plugins are registered with TensorRT."""
    if reason := tensorrt_on_cpu.missing():
        pytest.skip(reason)
    needs.package("triton")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=plugin_builder.start, initargs=(CAPABILITY,)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def check_kernel(launch: Launch, name: str, arguments: int) -> None:
    """The kernel is for the target, is launched as it was compiled, and takes so many arguments."""
    assert launch.kernel == name
    assert f".target sm_{CAPABILITY}\n" in launch.ptx
    (entry,) = re.findall(rf"\.entry {name}\(\n(.*?)\n\)\n\.reqntid (\d+)", launch.ptx, re.DOTALL)
    assert launch.threads == (entry[1], "1", "1")
    assert entry[0].count(".param") == arguments
    # Sizes stand between inputs and outputs.
    assert [".u32" in line for line in entry[0].splitlines()].index(True) == arguments - 2


@pytest.mark.parametrize("element", ["FLOAT", "HALF"])
def test_clustering_launches_a_program_per_group(tensorrt: Callable[..., Any], element: str) -> None:
    inputs = [DISTANCES._replace(type=element), VALID, CLUSTERS]
    launch = tensorrt(plugin_builder.build, "DpcKnn", inputs, {"neighbours": 7})
    check_kernel(launch, "dpc_knn_kernel", 5)
    assert (launch.types, launch.shapes) == (["INT64"], [["G", "196"]])
    assert (launch.grid, launch.arguments) == (("G", "1", "1"), ["196"])
    assert (launch.threads[0], launch.shared_bytes) == ("256", "1024")


def test_clustering_of_fixed_shapes(tensorrt: Callable[..., Any]) -> None:
    inputs = [
        Input("FLOAT", (4, 20, 20), (4, 20, 20)),
        Input("INT32", (4, 20), (4, 20)),
        Input("INT64", (4,), (4,)),
    ]
    launch = tensorrt(plugin_builder.build, "DpcKnn", inputs, {"neighbours": 3})
    check_kernel(launch, "dpc_knn_kernel", 5)
    assert (launch.shapes, launch.grid, launch.arguments) == ([["4", "20"]], ("4", "1", "1"), ["20"])


def test_clustering_of_a_varying_number_takes_the_largest_kernel_whatever_the_profile(
    tensorrt: Callable[..., Any],
) -> None:
    def of(frames: int) -> Launch:
        inputs = [
            Input("FLOAT", (1, "T", "T"), (1, frames, frames)),
            Input("INT32", (1, "T"), (1, frames)),
            Input("INT64", (1,), (1,)),
        ]
        launch: Launch = tensorrt(plugin_builder.build, "DpcKnn", inputs, {"neighbours": 7})
        return launch

    few, many = of(8), of(256)
    assert few == many
    assert (few.grid, few.arguments, few.threads[0]) == (("1", "1", "1"), ["T"], "512")
    with pytest.raises(PruneVidError, match="up to 1024 .* not 1025"):
        of(1025)


def test_segments_are_one_program(tensorrt: Callable[..., Any]) -> None:
    launch = tensorrt(plugin_builder.build, "RefineSegments", [Input("INT64", ("T",), (32,))], {})
    check_kernel(launch, "refine_segments_kernel", 3)
    assert (launch.types, launch.shapes) == (["INT64"], [["T"]])
    assert (launch.grid, launch.arguments, launch.shared_bytes) == (("1", "1", "1"), ["T"], "0")
    with pytest.raises(PruneVidError, match="up to 256 .* not 257"):
        tensorrt(plugin_builder.build, "RefineSegments", [Input("INT64", ("T",), (257,))], {})


@pytest.mark.parametrize("element", ["FLOAT", "HALF"])
def test_selection_launches_programs_for_all_tokens(tensorrt: Callable[..., Any], element: str) -> None:
    launch = tensorrt(plugin_builder.build, "GroupTopK", [SCORES._replace(type=element), GROUP, QUOTA], {})
    check_kernel(launch, "group_topk_kernel", 5)
    assert (launch.types, launch.shapes) == (["INT64"], [["V"]])
    assert (launch.grid, launch.arguments) == (("CEIL_DIV(V, 16)", "1", "1"), ["V"])


def test_types_that_the_kernels_do_not_read_are_refused(tensorrt: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="is not among"):
        tensorrt(plugin_builder.build, "GroupTopK", [SCORES, GROUP._replace(type="INT32"), QUOTA], {})


def test_plugins_are_registered_once_and_for_one_gpu(tensorrt: Callable[..., Any]) -> None:
    tensorrt(plugin_builder.register_again, CAPABILITY)
    with pytest.raises(PruneVidError, match="builds for sm_87: build for sm_110 in another"):
        tensorrt(plugin_builder.register_again, 110)


# --- Nodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", PLUGINS)
def test_nodes_have_the_attributes_that_tensorrt_asks_for(tensorrt: Callable[..., Any], operator: str) -> None:
    (node,) = model_of(operator, 20).graph.node
    (plugin,) = (made for made in plugin_nodes(node) if made.domain == "prunevid")
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in plugin.attribute}
    assert set(found) == {*ATTRIBUTES, *tensorrt(plugin_builder.attributes, operator)}
    assert (found["plugin_namespace"], found["plugin_version"], found["aot"]) == (b"prunevid", b"1", 1)


class DpcKnn(OpRun):
    """The plugin's interface over the reference."""

    op_domain = "prunevid"

    def _run(self, squared: Any, valid: Any, clusters: Any, neighbours: int, **common: Any) -> Any:
        assert valid.dtype == np.int32
        cluster = np.full(valid.shape, -1)
        for group, mask in enumerate(valid != 0):
            cluster[group, mask] = clustering.dpc_knn(squared[group][np.ix_(mask, mask)], clusters[group], neighbours)
        return (cluster,)


class RefineSegments(OpRun):
    """The plugin's interface over the reference."""

    op_domain = "prunevid"

    def _run(self, labels: Any, **common: Any) -> Any:
        return (segments.refine_segments(labels),)


class GroupTopK(OpRun):
    """The plugin's interface over the reference."""

    op_domain = "prunevid"

    def _run(self, scores: Any, group: Any, quota: Any, **common: Any) -> Any:
        marks = np.zeros(scores.shape, np.int64)
        marks[selection.group_topk(scores, group, quota)] = 1
        return (marks,)


def example(operator: str) -> list[Any]:
    rng = np.random.default_rng(3)
    if operator == "DpcKnn":
        squared = np.stack([clustering.squared_distances(points) for points in rng.normal(size=(3, 20, 4))])
        return [squared.astype(np.float32), rng.random((3, 20)) < 0.8, np.array([5, 3, 2])]
    if operator == "RefineSegments":
        return [np.array([0, 0, 0, 2, 1, 1, 0, 1, 1, 1])]
    scores, group = rng.random(30).astype(np.float32), np.sort(rng.integers(0, 3, 30))
    return [scores, group, np.array([4, 0, 40]), np.array([40])]


@pytest.mark.parametrize("operator", PLUGINS)
def test_plugin_nodes_compute_what_the_operator_does(operator: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(model_of(operator, 20))
    nodes = [made for node in model.graph.node for made in plugin_nodes(node)]
    del model.graph.node[:], model.functions[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    inputs = example(operator)
    feeds = {value.name: array for value, array in zip(model.graph.input, inputs, strict=True)}
    (found,) = ReferenceEvaluator(model, new_ops=[DpcKnn, RefineSegments, GroupTopK]).run(None, feeds)
    np.testing.assert_array_equal(found, run_body(operator, *inputs))


def test_an_operator_without_a_plugin_is_refused() -> None:
    node = onnx.helper.make_node("Other", ["x"], ["y"], domain="prunevid")
    with pytest.raises(PruneVidError, match="Other has no TensorRT plugin: known are DpcKnn"):
        plugin_nodes(node)
