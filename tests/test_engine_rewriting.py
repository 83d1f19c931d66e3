"""Graphs as TensorRT's parser gets them: with plugins or with nothing but ONNX's operators, computing the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import cpu_session
from onnx import inliner

from prunevid.bundle import Bundle, open_bundle
from prunevid.export.engine.inputs import make_inputs, sizes_at
from prunevid.export.engine.plugins import is_plugin
from prunevid.export.engine.plugins.nodes import ATTRIBUTES, NAMESPACE, PLUGINS
from prunevid.export.engine.profiles import limits_of, profiles_of
from prunevid.export.engine.rewriting import for_parser, with_plugins

GRAPHS = ("vision_merge", "merge", "llm_pre", "select", "llm_post")
MERGING = {"DpcKnn", "RefineSegments"}
CALLED = {"vision_merge": MERGING, "merge": MERGING, "select": {"GroupTopK"}}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Bundle:
    return open_bundle(tiny_bundle("qwen2", "portable"), verify=False)


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle, where rewritten graphs find the weights beside them."""
    return Path(shutil.copytree(bundle.path, tmp_path_factory.mktemp("rewritten") / "bundle"))


def load(bundle: Bundle, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle.file(bundle.manifest.graphs[graph].file), load_external_data=False)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    file = folder / "rewritten.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def outputs_of(file: Path, bundle: Bundle, graph: str) -> list[np.ndarray[Any, Any]]:
    profile = profiles_of(bundle.manifest, graph, limits_of(bundle.manifest, 6, 64))[-1]
    values = {name: value.optimum for name, value in profile.values.items()}
    feeds = make_inputs(bundle.manifest, graph, sizes_at(profile, "optimum"), values)
    found: list[np.ndarray[Any, Any]] = cpu_session(str(file)).run(None, feeds)
    return found


@pytest.mark.parametrize("graph", GRAPHS)
def test_without_plugins_only_standard_operators_are_left_and_compute_the_same(
    bundle: Bundle, folder: Path, graph: str
) -> None:
    inlined = for_parser(load(bundle, graph), plugins_too=False)
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} == {""}
    file = save(inlined, folder)
    onnx.checker.check_model(str(file), full_check=True)
    expected = outputs_of(bundle.file(bundle.manifest.graphs[graph].file), bundle, graph)
    for a, b in zip(outputs_of(file, bundle, graph), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("graph", GRAPHS)
def test_with_plugins_no_body_is_left(bundle: Bundle, folder: Path, graph: str) -> None:
    rewritten = for_parser(load(bundle, graph), plugins_too=True)
    assert not rewritten.functions
    onnx.checker.check_model(str(save(rewritten, folder)))
    called = [node for node in rewritten.graph.node if is_plugin(node)]
    assert {node.op_type for node in called} == CALLED.get(graph, set())
    for node in called:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"prunevid"
        assert attributes["aot"] == 1


@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_outputs_and_weights_stay_as_they_are(bundle: Bundle, graph: str) -> None:
    original = load(bundle, graph)
    before = original.SerializeToString(deterministic=True)
    for plugins_too in (True, False):
        rewritten = for_parser(original, plugins_too=plugins_too)
        assert list(rewritten.graph.input) == list(original.graph.input)
        assert list(rewritten.graph.output) == list(original.graph.output)
        assert list(rewritten.graph.initializer)[: len(original.graph.initializer)] == list(original.graph.initializer)
    assert original.SerializeToString(deterministic=True) == before


def test_nodes_inside_other_nodes_are_rewritten() -> None:
    node = onnx.helper.make_node("RefineSegments", ["x"], ["z"], domain=NAMESPACE)
    value = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.INT64, ["n"])
    branch = onnx.helper.make_graph([node], "branch", [], [value])
    outer = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = onnx.helper.make_model(onnx.helper.make_graph([outer], "outer", [], []))
    (rewritten,) = with_plugins(model).graph.node
    for attribute in rewritten.attribute:
        assert "plugin_namespace" in [a.name for a in attribute.g.node[0].attribute]


@pytest.mark.parametrize("graph", CALLED)
def test_with_the_bodies_put_back_the_outputs_are_the_same(bundle: Bundle, folder: Path, graph: str) -> None:
    """A plugin takes and gives other types than its operator: functions around the operators' bodies stand in."""
    original = load(bundle, graph)
    rewritten = with_plugins(original)
    for body in original.functions:
        rewritten.functions.append(stand_in(body))
        body.domain = "body"
        rewritten.functions.append(body)
    rewritten.opset_import.append(onnx.helper.make_opsetid("body", 1))
    file = save(inliner.inline_local_functions(rewritten), folder)
    expected = outputs_of(bundle.file(bundle.manifest.graphs[graph].file), bundle, graph)
    for a, b in zip(outputs_of(file, bundle, graph), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def stand_in(body: onnx.FunctionProto) -> onnx.FunctionProto:
    """A function with a plugin's inputs and outputs that calls an operator's body."""
    inputs, read = list(body.input), list(body.input)[: PLUGINS[body.name].inputs]
    before = []
    if body.name == "DpcKnn":
        before = [onnx.helper.make_node("Cast", ["valid"], ["is_valid"], to=onnx.TensorProto.BOOL)]
        inputs = ["squared_distances", "is_valid", "clusters"]
    if body.name == "GroupTopK":
        # No quota exceeds the number of tokens.
        before = [onnx.helper.make_node("Shape", ["group"], ["most"])]
    call = onnx.helper.make_node(body.name, inputs, list(body.output), domain="body")
    return onnx.helper.make_function(
        body.domain,
        body.name,
        read,
        list(body.output),
        [*before, call],
        [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("body", 1)],
        ["neighbours", *ATTRIBUTES],
    )
