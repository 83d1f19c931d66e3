"""The lint: what a release of TensorRT could not parse is found wherever it is, and the bundles have none of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from builder_stand_in import RtxStandIn
from onnx import TensorProto, helper

from prunevid.bundle import open_bundle
from prunevid.errors import PruneVidError
from prunevid.export import export
from prunevid.export.engine import plugins
from prunevid.export.engine.destinations import RtxGpus
from prunevid.export.engine.jobs import BuildSettings, EngineJob
from prunevid.export.engine.profiles import Profile, Range, limits_of, profiles_of, ranges_of
from prunevid.export.graphs import operators
from prunevid.export.lint import tensorrt
from prunevid.export.lint.unsupported import RELEASES, refuse_unsupported, unsupported

OPSET = helper.make_opsetid("", 20)
# Name: element type and dimensions.
Inputs = dict[str, tuple[int, list[int | str]]]


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: Inputs,
    outputs: list[str],
    constants: dict[str, tuple[int, list[int]]] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model of these nodes; outputs get their types from shape inference, float32 where there is none."""
    tensors = [
        helper.make_tensor(name, kind, [len(values)], values) for name, (kind, values) in (constants or {}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "example",
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("prunevid", 1), helper.make_opsetid("other", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [])


FLOATS: Inputs = {"x": (TensorProto.FLOAT, ["n"])}


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("release", ["10.3", *RELEASES])
def test_portable_bundles_parse_everywhere(tiny_bundle: Callable[[str, str], Path], name: str, release: str) -> None:
    bundle = open_bundle(tiny_bundle(name, "portable"), verify=False)
    limits = limits_of(bundle.manifest)
    for graph, spec in bundle.manifest.graphs.items():
        model = onnx.load(bundle.file(spec.file), load_external_data=False)
        for profile in profiles_of(bundle.manifest, graph, limits):
            assert unsupported(model, release, sizes=ranges_of(profile)) == [], graph


def test_fused_operators_are_found(tiny_bundle: Callable[[str, str], Path]) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", "ort"), verify=False)
    model = onnx.load(bundle.file(bundle.manifest.graphs["llm_pre"].file), load_external_data=False)
    found = {(finding.operator, finding.why) for finding in unsupported(model, "10.16")}
    assert ("GroupQueryAttention", "the parser has no operators of domain com.microsoft") in found


def test_an_export_that_tensorrt_would_not_take_fails(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = tensorrt.operators

    def without_gemm(release: tuple[int, int]) -> dict[str, frozenset[str]]:
        return {name: types for name, types in complete(release).items() if name != "Gemm"}

    monkeypatch.setattr(tensorrt, "operators", without_gemm)
    checkpoint, output = str(tiny_checkpoint("qwen2")), tmp_path / "bundle"
    with pytest.raises(PruneVidError, match=r"TensorRT 10\.13 cannot parse llm_post: Gemm at .*does not have it"):
        export("llava-ov", output, checkpoint=checkpoint, dialect="portable")
    assert not output.exists()


@pytest.mark.parametrize(
    ("operator", "since"), [("Attention", "10.14"), ("RMSNormalization", "10.15"), ("Swish", "11.0"), ("Unique", None)]
)
def test_an_operator_is_missing_until_it_came(operator: str, since: str | None) -> None:
    model = make_model([helper.make_node(operator, ["x"], ["y"], name="it")], FLOATS, ["y"])
    for release in ("10.3", "10.13", "10.14", "10.15", "11.0", "11.5"):
        known = since is not None and [int(n) for n in release.split(".")] >= [int(n) for n in since.split(".")]
        found = unsupported(model, release)
        assert (("it", operator, "the parser does not have it") not in found) == known, release


def test_bodies_are_looked_into_only_where_there_are_no_plugins() -> None:
    body = helper.make_function(
        "prunevid", "GroupTopK", ["x"], ["y"], [helper.make_node("Unique", ["x"], ["y"], name="inside")], [OPSET]
    )
    node = helper.make_node("GroupTopK", ["x"], ["y"], domain="prunevid")
    model = make_model([node], FLOATS, ["y"], functions=[body])
    assert [finding.operator for finding in unsupported(model, "10.3")] == ["Unique"]
    assert unsupported(model, "10.13") == []


def test_functions_without_a_plugin_are_always_looked_into() -> None:
    body = helper.make_function("other", "F", ["x"], ["y"], [helper.make_node("Unique", ["x"], ["y"])], [OPSET])
    model = make_model([helper.make_node("F", ["x"], ["y"], domain="other")], FLOATS, ["y"], functions=[body])
    for release in ("10.3", "10.13"):
        assert [finding.operator for finding in unsupported(model, release)] == ["Unique"]


def test_graphs_inside_nodes_are_looked_into() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        inner = helper.make_node(operator, ["x"], ["z"], name=f"in {operator}")
        return helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"])])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Neg"), else_branch=branch("Det"))
    model = make_model([node], {**FLOATS, "c": (TensorProto.BOOL, [])}, ["y"])
    assert unsupported(model, "11.1") == [("in Det", "Det", "the parser does not have it")]


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.DOUBLE, TensorProto.STRING])
def test_types_that_no_operator_takes(kind: int) -> None:
    node = helper.make_node("Identity", ["x"], ["y"], name="it")
    found = unsupported(make_model([node], {"x": (kind, ["n"])}, ["y"]), "10.16")
    assert any(finding.node == "it" and finding.why.startswith("does not take") for finding in found)
    assert any(finding.operator == "input or output" for finding in found) == (kind != TensorProto.UINT8)


def test_a_type_is_told_behind_other_nodes() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BOOL),
        helper.make_node("Not", ["b"], ["n"]),
        helper.make_node("ReduceMax", ["n"], ["y"], name="it"),
    ]
    found = unsupported(make_model(nodes, FLOATS, ["y"]), "10.3")
    assert ("it", "ReduceMax", "does not take bool") in found


@pytest.mark.parametrize(("k", "parses"), [(3839, True), (3840, False)])
def test_topk_has_a_limit(k: int, parses: bool) -> None:
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"], name="it")
    model = make_model([node], FLOATS, ["y"], {"k": (TensorProto.INT64, [k])})
    assert (unsupported(model, "10.3") == []) == parses


def test_topk_is_bounded_by_the_largest_sizes() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["k"]), helper.make_node("TopK", ["x", "k"], ["y", "i"], name="it")]
    model = make_model(nodes, FLOATS, ["y"])
    assert unsupported(model, "10.13") == [("it", "TopK", "nothing bounds its K, which must be below 3840")]
    assert unsupported(model, "10.13", sizes={"n": 3839}) == []
    assert unsupported(model, "10.13", sizes={"n": 6272}) == [
        ("it", "TopK", "its K can be 6272: it must be below 3840")
    ]
    with pytest.raises(PruneVidError, match=r"TensorRT 10\.13 cannot parse example: TopK at it.*use fewer frames"):
        refuse_unsupported(model, "10.13", sizes={"n": 6272})


def test_inputs_that_must_be_constants() -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], name="it")
    model = make_model([node], {**FLOATS, "axis": (TensorProto.INT64, [1])}, ["y"])
    assert ("it", "CumSum", "its input 1 must be a constant") in unsupported(model, "10.16")
    assert unsupported(make_model([node], FLOATS, ["y"], {"axis": (TensorProto.INT64, [0])}), "10.16") == []


def test_outputs_and_attributes_that_are_not_taken() -> None:
    norm = helper.make_node("LayerNormalization", ["x", "x"], ["y", "mean"], name="norm")
    scatter = helper.make_node("ScatterND", ["x", "i", "x"], ["z"], name="scatter", reduction="add")
    model = make_model([norm, scatter], {**FLOATS, "i": (TensorProto.INT64, ["n", 1])}, ["y", "z"])
    found = unsupported(model, "10.13")
    assert ("norm", "LayerNormalization", "only its first output is taken") in found
    assert ("scatter", "ScatterND", "its attribute reduction must be none") in found


def test_opsets() -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    taken = [(21, "10.13"), (21, "10.3"), (20, "10.3"), (24, "10.16")]
    for opset, release, parses in (*((*one, True) for one in taken), (22, "10.13", False), (25, "11.1", False)):
        assert (unsupported(make_model([node], FLOATS, ["y"], opset=opset), release) == []) == parses


@pytest.mark.parametrize("version", ["8.6.1", "10.2", "ten"])
def test_versions_that_are_not_known(version: str) -> None:
    with pytest.raises(PruneVidError, match="too old|no version"):
        unsupported(make_model([helper.make_node("Neg", ["x"], ["y"])], FLOATS, ["y"]), version)


def test_later_releases_only_add() -> None:
    releases = [(10, 3), (10, 5), (10, 8), (10, 13), (10, 14), (10, 16), (11, 1)]
    tables = [tensorrt.operators(release) for release in releases]
    for before, after in zip(tables, tables[1:], strict=False):
        assert all(types <= after[name] for name, types in before.items())
    assert len(tables[0]) == 150


def test_the_plugins_are_the_operators_of_the_graphs() -> None:
    bodies = (operators.dpc_knn(20, 7), operators.refine_segments(20), operators.group_topk(20, 196))
    assert {(body.domain, body.name) for body in bodies} == plugins.OPERATORS


@pytest.mark.parametrize(
    ("dims", "blocks", "why"),
    [
        ([256, 4], [2, 4], None),
        ([192, 4], [3, 4], None),
        ([256, 4], [8, 4], "blocks must be of 64 or 128"),
        ([256, 4], [2, 2], "blocks must be of 64 or 128"),
        ([256, 3], [2, 3], "an even last dimension"),
        ([256, 4], [4], "a scale per block"),
    ],
)
def test_int4_weights_must_have_blocks(dims: list[int], blocks: list[int], why: str | None) -> None:
    size = {"axis": 0} if len(blocks) > 1 else {"axis": 1}
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], name="it", **size)
    count, scales = dims[0] * dims[1], helper.make_tensor("s", TensorProto.FLOAT, blocks, [1.0] * int(np.prod(blocks)))
    codes = helper.make_tensor("w", TensorProto.INT4, dims, [1] * count)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)
    graph = helper.make_graph([node], "example", [], [output], [codes, scales])
    found = unsupported(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), "10.13")
    assert [finding.why for finding in found if why is None or why in finding.why] == [f.why for f in found]
    assert bool(found) == (why is not None)


def test_zero_points_are_zero_and_codes_signed() -> None:
    for kind, zero, refused in (
        (TensorProto.INT8, 0, False),
        (TensorProto.INT8, 3, True),
        (TensorProto.UINT8, 0, True),
    ):
        tensors = [helper.make_tensor("z", kind, [], [zero]), helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
        graph = helper.make_graph(nodes, "example", [x], [y], tensors)
        found = unsupported(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), "10.3")
        assert bool(found) == refused


def test_group_normalization_of_opset_21_waits_for_its_release() -> None:
    node = helper.make_node("GroupNormalization", ["x", "x", "x"], ["y"], name="it", num_groups=2)
    for opset, release, parses in ((20, "10.3", True), (21, "10.13", False), (21, "10.14", True)):
        found = [finding.why for finding in unsupported(make_model([node], FLOATS, ["y"], opset=opset), release)]
        assert ("changed in opset 21, which is not known yet" not in found) == parses


def test_builds_for_rtx_are_linted_under_every_profile() -> None:
    """The real builder looks at a profile's usual sizes alone."""
    destination = RtxGpus(RtxStandIn(), "fp32", BuildSettings())  # type: ignore[arg-type]
    nodes = [helper.make_node("Shape", ["x"], ["k"]), helper.make_node("TopK", ["x", "k"], ["y", "i"], name="it")]
    model = make_model(nodes, FLOATS, ["y"])
    short, long = (Profile(f"to {most}", {"n": Range(1, 9, most)}, {}) for most in (3840, 3841))
    destination.check(EngineJob("select", b"", Path(), (short,)), model)
    with pytest.raises(PruneVidError, match=r"TensorRT-RTX 1\.7\.1\.116 cannot parse example: TopK at it: .* 3841"):
        destination.check(EngineJob("select", b"", Path(), (short, long)), model)


def test_bounds_of_what_is_computed_from_shapes_and_host_inputs() -> None:
    """A K of min(x's length, most), but of three if there is one group."""
    nodes = [
        helper.make_node("Shape", ["x"], ["length"]),
        helper.make_node("Shape", ["g"], ["groups"]),
        helper.make_node("Equal", ["groups", "one"], ["alone"]),
        helper.make_node("Min", ["length", "most"], ["fewer"]),
        helper.make_node("Where", ["alone", "three", "fewer"], ["k"]),
        helper.make_node("TopK", ["x", "k"], ["y", "i"], name="it"),
    ]
    int64 = TensorProto.INT64
    inputs: dict[str, tuple[int, list[int | str]]] = {**FLOATS, "g": (int64, ["m"]), "most": (int64, [1])}
    model = make_model(nodes, inputs, ["y"], {"one": (int64, [1]), "three": (int64, [3])})
    for n, groups, most, largest in (
        ((1, 9000), (2, 8), (0, 9000), 9000),
        ((1, 5000), (2, 8), (0, 9000), 5000),
        ((1, 9000), (1, 8), (0, 4000), 4000),
        ((1, 9000), (2, 8), (0, 100), None),
        ((1, 9000), (1, 1), (0, 9000), None),
    ):
        found = unsupported(model, "rtx-1.7", sizes={"n": n, "m": groups, "most": most})
        assert [finding.why for finding in found] == (
            [f"its K can be {largest}: it must be below 3841"] if largest else []
        )


@pytest.mark.parametrize("version", ["rtx-1.6.0", "rtx-", "rtx-ten"])
def test_versions_of_rtx_that_are_not_known(version: str) -> None:
    with pytest.raises(PruneVidError, match="TensorRT-RTX 1.6.0 is too old|no version"):
        unsupported(make_model([helper.make_node("Neg", ["x"], ["y"])], FLOATS, ["y"]), version)
