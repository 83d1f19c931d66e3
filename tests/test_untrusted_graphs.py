"""Graphs of bundles from strangers: what is refused when the bundle is opened, before any reader of ONNX sees it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hostile import edit_graph, edit_manifest, external_tensor, peak_of_opening, record, replace_file
from hypothesis import given, settings
from hypothesis import strategies as st
from models import structured_features
from onnx import helper, numpy_helper

from prunevid import PruneVidError
from prunevid.bundle import Bundle, open_bundle
from prunevid.bundle.operators import BODY_OPERATORS, FUNCTION_OPERATORS, GRAPH_OPERATORS, OPSETS, full_name
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.recipes import RECIPES
from prunevid.calibration.questions import AskedVideo
from prunevid.onnx_file import OnnxError, OnnxNode, read_onnx
from prunevid.runtime import load
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.chain import Chain

SECRET = b"what a stranger must not get"


@pytest.fixture
def copy(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A bundle to be changed, beside a file that is not its own."""
    (tmp_path / "secret").write_bytes(SECRET)
    return Path(shutil.copytree(tiny_bundle("qwen2", "ort"), tmp_path / "copy"))


def refused(folder: Path, match: str | None = None, *, verify: bool = False) -> str:
    """The sentence with which a bundle is refused; the same without hashing, and by what loads it."""
    with pytest.raises(PruneVidError, match=match) as error:
        open_bundle(folder, verify=verify)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    with pytest.raises(PruneVidError, match=match):
        load(folder)
    return sentence


def add_initializer(tensor: onnx.TensorProto) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.initializer.append(tensor)


# --- weights in other files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["vision_merge", "llm_pre", "select", "llm_post"])
@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "{outside}/secret",
        "./llm_pre.onnx.data",
        "a/../llm_pre.onnx.data",
        "llm_pre.onnx.data/",
        "/llm_pre.onnx.data",
        "..\\secret",
        "unlisted",
        "link",
        "linked/secret",
        "manifest.json",
        "",
        "llm_pre.onnx.data\0",
        "LLM_PRE.ONNX.DATA",
        "*/_ORT_MEM_ADDR_/*",
        "file:../secret",
    ],
)
def test_a_weight_outside_the_listed_files_is_refused(copy: Path, graph: str, location: str) -> None:
    (copy / "unlisted").write_bytes(SECRET)
    (copy / "link").symlink_to(copy.parent / "secret")
    (copy / "linked").symlink_to(copy.parent)
    # No node uses it: runtimes pass it over, and a copy of the graph's weights does not.
    location = location.replace("{outside}", str(copy.parent))
    edit_graph(copy, graph, add_initializer(external_tensor("unused", location, len(SECRET))))
    assert f"{graph}.onnx" in refused(copy, "is not in the manifest's files")


def test_a_weight_in_the_bundles_own_file_is_not_refused(copy: Path) -> None:
    edit_graph(copy, "select", add_initializer(external_tensor("unused", "embeddings.bin", 16, 8)))
    edit_manifest(copy, lambda data: data["graphs"]["select"]["files"].append("embeddings.bin"))
    open_bundle(copy)


def test_weights_elsewhere_than_the_manifest_has_them_are_refused(copy: Path) -> None:
    edit_graph(copy, "select", add_initializer(external_tensor("unused", "embeddings.bin", 16, 8)))
    refused(copy, "cannot load .*select.onnx, since its weights are not in the files that the manifest has for them")


def test_weights_that_the_manifest_does_not_list_are_refused(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["files"].pop("llm_pre.onnx.data"))
    assert "llm_pre.onnx.data" in refused(copy, "is not in its files")
    edit_manifest(copy, lambda data: data["graphs"]["llm_pre"].update(files=[]))
    assert "llm_pre.onnx.data" in refused(copy, "is not in the manifest's files")


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1},
        {"offset": 10**15},
        {"offset": 69_880},
        {"length": 69_889},
    ],
)
def test_a_weight_behind_the_end_of_its_file_is_refused(copy: Path, change: dict[str, Any]) -> None:
    values = {"length": 16, "offset": 0, **change}
    edit_graph(copy, "select", add_initializer(external_tensor("unused", "embeddings.bin", **values)))
    refused(copy, "cannot load .*select.onnx")


@pytest.mark.parametrize(
    "more",
    [
        {"offset": "٣"},
        {"offset": "1e3"},
        {"offset": " 8"},
        {"offset": ""},
        {"length": "9" * 5000},
        {"checksum": "x"},
        {"basepath": "/etc"},
    ],
)
def test_a_place_that_is_said_in_another_way_is_refused(copy: Path, more: dict[str, str]) -> None:
    tensor = external_tensor("unused", "embeddings.bin", 16)
    for entry in list(tensor.external_data):
        if entry.key in more:
            tensor.external_data.remove(entry)
    for key, value in more.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    edit_graph(copy, "select", add_initializer(tensor))
    refused(copy, "does not say in full where it lies")


def test_a_place_that_is_said_twice_is_refused(copy: Path) -> None:
    tensor = external_tensor("unused", "../secret", 16)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "embeddings.bin"
    edit_graph(copy, "select", add_initializer(tensor))
    refused(copy, "does not say in full where it lies")


def test_a_tensor_that_lies_in_two_places_is_refused(copy: Path) -> None:
    inside = external_tensor("unused", "../secret", 16)
    inside.data_location = onnx.TensorProto.DEFAULT
    inside.raw_data = bytes(16)
    edit_graph(copy, "select", add_initializer(inside))
    refused(copy, "does not have the bytes that its shape needs")


def in_constant(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["secret"], value=tensor))


def in_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.functions[0].node.append(helper.make_node("Constant", [], ["secret"], value=tensor))


def in_body(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    scan = next(node for f in model.functions for node in f.node if node.op_type == "Scan")
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    body.initializer.append(tensor)


def in_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_training(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


def in_sparse_constant(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    sparse = onnx.SparseTensorProto(values=tensor, dims=[16])
    model.graph.node.append(helper.make_node("Constant", [], ["secret"], sparse_value=sparse))


def in_tensors(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    attribute = onnx.AttributeProto(name="all", type=onnx.AttributeProto.TENSORS, tensors=[tensor])
    model.graph.node[0].attribute.append(attribute)


def in_default(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.functions[0].attribute_proto.append(helper.make_attribute("hidden", tensor))


def in_two_holders(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    attribute = helper.make_attribute("hidden", 1)
    attribute.t.CopyFrom(tensor)
    model.graph.node[0].attribute.append(attribute)


@pytest.mark.parametrize(
    "hide",
    [
        in_constant,
        in_function,
        in_body,
        in_sparse,
        in_training,
        in_sparse_constant,
        in_tensors,
        in_default,
        in_two_holders,
    ],
)
@pytest.mark.parametrize("location", ["../secret", "embeddings.bin"])
def test_a_tensor_elsewhere_in_the_file_lies_in_no_other(
    copy: Path, hide: Callable[[onnx.ModelProto, onnx.TensorProto], None], location: str
) -> None:
    edit_graph(copy, "vision_merge", lambda model: hide(model, external_tensor("hidden", location, 16)))
    refused(copy, "cannot load .*vision_merge.onnx")


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
def test_what_is_no_plain_file_is_refused_without_being_opened(copy: Path, kind: str) -> None:
    path = copy / "llm_pre.onnx.data"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(copy)  # the path of a socket is short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    refused(copy, "is no plain file" if kind != "device" else "lies outside it", verify=True)


def test_calibrate_publishes_nothing_that_is_not_the_bundles(
    copy: Path, videos: list[AskedVideo], tmp_path: Path
) -> None:
    edit_graph(copy, "llm_pre", add_initializer(external_tensor("unused", "../secret", len(SECRET))))
    with pytest.raises(PruneVidError, match="is not in the manifest's files"):
        calibrate(copy, videos, tmp_path / "published", Settings("cpu-int8", min_agreement=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "secret"]


def test_files_that_the_manifest_does_not_list_stay_where_they_are(
    copy: Path, videos: list[AskedVideo], tmp_path: Path
) -> None:
    (copy / "extra.txt").write_bytes(SECRET)
    os.mkfifo(copy / "fifo")
    written = calibrate(copy, videos, tmp_path / "published", Settings("cpu-int8", min_agreement=0, max_new_tokens=1))
    assert set(written.bundle.manifest.files) < set(os.listdir(copy))
    for path in (tmp_path / "published").iterdir():
        assert SECRET not in path.read_bytes()


# --- operators -------------------------------------------------------------------------------------------------


def endless_loop() -> onnx.NodeProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("round", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", onnx.TensorProto.BOOL, [])],
    )
    return helper.make_node("Loop", ["", "always"], [], body=body)


def scan_in(model: onnx.ModelProto) -> onnx.GraphProto:
    scan = next(node for f in model.functions for node in f.node if node.op_type == "Scan")
    return next(attribute.g for attribute in scan.attribute if attribute.name == "body")


@pytest.mark.parametrize(
    ("graph", "change"),
    [
        ("llm_pre", lambda m: m.graph.node.append(endless_loop())),
        ("vision_merge", lambda m: m.functions[0].node.append(endless_loop())),
        ("vision_merge", lambda m: scan_in(m).node.append(endless_loop())),
        ("vision_merge", lambda m: scan_in(m).node.append(m.functions[1].node[-1])),
        ("vision_merge", lambda m: m.graph.node.append(next(n for n in m.functions[1].node if n.op_type == "Scan"))),
        ("vision_merge", lambda m: m.functions[0].node.append(m.graph.node[-1].__class__(domain="prunevid", op_type="GroupTopK"))),  # noqa: E501
        ("select", lambda m: m.functions.append(onnx.FunctionProto(domain="", name="Add"))),
        ("select", lambda m: m.functions.append(onnx.FunctionProto(domain="other", name="Anything"))),
        ("select", lambda m: m.functions.append(m.functions[0])),
        ("select", lambda m: m.graph.node.append(helper.make_node("Add", ["a", "b"], ["c"], domain="ai.onnx"))),
        ("select", lambda m: m.graph.node.append(helper.make_node("EPContext", [], ["c"], domain="com.microsoft"))),
        ("select", lambda m: m.graph.node.append(helper.make_node("Identity", ["quota"], ["c"]))),
        ("select", lambda m: setattr(m.graph.node[0], "overload", "x")),
        ("select", lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))),
        ("select", lambda m: setattr(m.opset_import[0], "version", 22)),
        ("select", lambda m: setattr(m.opset_import[0], "version", -1)),
        ("select", lambda m: setattr(m.functions[0].opset_import[0], "version", 1)),
        ("select", lambda m: m.opset_import.append(m.opset_import[0])),
        ("select", lambda m: setattr(m, "ir_version", 9)),
        ("select", lambda m: m.metadata_props.add(key="ort_config", value="{}")),
        ("select", lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        ("select", lambda m: m.graph.output.pop()),
        ("select", lambda m: m.graph.input.pop()),
        ("select", lambda m: setattr(m.graph.input[0], "name", "other")),
        ("select", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 10)),
        ("select", lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 10**9)),
        ("select", lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
        ("select", lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.ClearField("shape")),
    ],
)  # fmt: skip
def test_what_no_export_writes_is_refused(copy: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    before = (copy / f"{graph}.onnx").read_bytes()
    edit_graph(copy, graph, change)
    assert (copy / f"{graph}.onnx").read_bytes() != before
    refused(copy, f"cannot load .*{graph}.onnx")


def test_operators_of_another_dialect_are_refused(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "copy"))
    node = helper.make_node("MatMulNBits", ["a", "b", "c"], ["d"], domain="com.microsoft")
    edit_graph(folder, "llm_pre", lambda model: model.graph.node.append(node))
    refused(folder, "holds the operator 'com.microsoft.MatMulNBits'")


def test_another_count_of_neighbours_than_the_manifests_is_refused(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["prune"].update(neighbours=5))
    refused(copy, "clusters by 7 neighbours, and the manifest says 5")


@pytest.mark.parametrize("suffix", [".ort", ".onnxtxt", ".json", ".textproto", ""])
def test_a_graph_by_another_ending_is_refused(copy: Path, suffix: str) -> None:
    """ONNX Runtime reads .ort files, and onnx several others, in formats of their own."""
    (copy / "llm_pre.onnx").rename(copy / f"llm_pre{suffix}")

    def change(data: dict[str, Any]) -> None:
        data["graphs"]["llm_pre"]["file"] = f"llm_pre{suffix}"
        data["files"][f"llm_pre{suffix}"] = data["files"].pop("llm_pre.onnx")

    edit_manifest(copy, change)
    refused(copy, "does not end in .onnx")


@pytest.fixture(scope="module")
def every_export(
    tiny_checkpoint: Callable[[str], Path], demo_bundle: Path, videos: list[AskedVideo],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Path]]:  # fmt: skip
    """By dialect, bundles of every precision, recipe and kind of KV cache, of decoders that are written differently."""
    from prunevid.export import export

    folder = tmp_path_factory.mktemp("exports")
    found: dict[str, list[Path]] = {"ort": [demo_bundle], "portable": []}
    for dialect in found:
        for name, precision in (("qwen2", "fp32"), ("qwen3", "fp16"), ("next-video", "fp32"), ("llava", "fp16")):
            output = folder / f"{name}-{dialect}"
            made = export(
                "llava-ov", output, checkpoint=str(tiny_checkpoint(name)), dialect=dialect, precision=precision
            )
            found[dialect].append(made.path)
    for recipe in RECIPES.values():
        for dialect in recipe.dialects:
            kv_cache = "int8" if dialect == "ort" else "float"
            how = Settings(recipe.name, min_agreement=0, force=True, max_new_tokens=1, kv_cache=kv_cache)
            output = folder / f"{dialect}-{recipe.name}"
            found[dialect].append(calibrate(folder / f"qwen2-{dialect}", videos, output, how).bundle.path)
    return found


def test_the_list_of_operators_is_what_exports_write(every_export: dict[str, list[Path]]) -> None:
    """Complete, since every export opens, and tight."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    opsets: dict[str, set[int]] = defaultdict(set)

    def walk(nodes: tuple[OnnxNode, ...], at: tuple[str, str]) -> None:
        for node in nodes:
            found[at].add(full_name(node.domain, node.operator))
            for body in node.bodies:
                walk(body, ("inside", node.operator))

    for dialect, bundles in every_export.items():
        for bundle in bundles:
            for graph in open_bundle(bundle).manifest.graphs.values():
                file = read_onnx((bundle / graph.file).read_bytes())
                walk(file.nodes, ("graph", dialect))
                for function in file.functions:
                    walk(function.nodes, ("function", full_name(function.domain, function.name)))
                for domain, version in file.opsets.items():
                    opsets[domain].add(version)
    listed = {("graph", dialect): set(names) for dialect, names in GRAPH_OPERATORS.items()}
    listed |= {("function", name): set(names) for name, names in FUNCTION_OPERATORS.items()}
    listed |= {("inside", name): set(names) for name, names in BODY_OPERATORS.items()}
    assert found == listed
    assert opsets == {domain: set(versions) for domain, versions in OPSETS.items()}


def test_what_is_read_of_a_graph_is_what_onnx_reads(every_export: dict[str, list[Path]]) -> None:
    for bundle in (bundle for bundles in every_export.values() for bundle in bundles):
        for graph in open_bundle(bundle).manifest.graphs.values():
            file = read_onnx((bundle / graph.file).read_bytes())
            model = onnx.load(str(bundle / graph.file), load_external_data=False)
            assert [(n.domain, n.operator) for n in file.nodes] == [(n.domain, n.op_type) for n in model.graph.node]
            for found, values in ((file.inputs, model.graph.input), (file.outputs, model.graph.output)):
                assert [value.name for value in found] == [value.name for value in values]
                for value, expected in zip(found, values, strict=True):
                    kind = expected.type.tensor_type
                    assert value.dtype == np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
                    assert value.shape == tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
            outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
            assert [tensor.name for tensor in file.external] == [tensor.name for tensor in outside]
            for tensor, expected in zip(file.external, outside, strict=True):
                said = {entry.key: entry.value for entry in expected.external_data}
                assert said == {
                    "location": tensor.location, "offset": str(tensor.offset), "length": str(tensor.length)
                }  # fmt: skip


# --- bytes that readers may understand differently --------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    """A field that is a message or a text, of up to 127 bytes."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


SMALL = helper.make_model(
    helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "w")],
    ),
    producer_name="test",
    ir_version=10,
).SerializeToString()


def test_a_small_graph_is_read() -> None:
    file = read_onnx(SMALL)
    assert [(node.domain, node.operator) for node in file.nodes] == [("", "Add")]
    assert file.inputs[0].shape == ("n",)


@pytest.mark.parametrize(
    "data",
    [
        SMALL + field(7, b""),  # a second graph, which parsers merge with the first
        SMALL + bytes([8, 10]),  # a second version, the last of which wins
        SMALL + field(9, b""),
        SMALL + bytes([8 << 3 | 3, 8 << 3 | 4]),  # a group
        SMALL + bytes([0, 0]),  # field 0
        SMALL + bytes([0xC2, 0x80, 0x00, 0]),  # a tag that is longer than it needs to be
        SMALL + bytes([0xC2, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00, 0]),
        SMALL + bytes([0x42, 0x80]),  # it ends within a length
        SMALL + bytes([0x42, 0x7F]),  # a length beyond the end
        SMALL + bytes([0x42, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]),
        SMALL + bytes([0x42, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
        SMALL + bytes([0x40, 1]),  # an operator set that is a number
        SMALL[:-1],
        b"\x08",
        b"[]",
        b"\x7fELF",
        b"\x00" * 64,
        field(7, field(1, field(4, b"\xff\xfe"))),  # an operator that is no UTF-8
        field(7, field(1, field(4, b"Add") + field(4, b"Loop"))),
        field(7, field(1, field(5, field(1, b"ints") + bytes([8 << 3 | 2, 2, 1, 2])))),  # packed numbers
        field(7, field(11, field(2, field(4, b"")))),  # a sequence
    ],
)
def test_bytes_that_readers_may_understand_differently_are_refused(data: bytes) -> None:
    with pytest.raises(OnnxError) as error:
        read_onnx(data)
    assert "\n" not in str(error.value)


def test_what_is_nested_too_deep_is_refused() -> None:
    content = b""
    for _ in range(2000):
        # a node, its attribute, and in it a graph
        content = b"\x0a" + _length(b"\x2a" + _length(b"\x32" + _length(content)))
    with pytest.raises(OnnxError, match="nested too deep"):
        read_onnx(b"\x3a" + _length(content))


def _length(content: bytes) -> bytes:
    size, head = len(content), []
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_changed_bytes_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            content[at:at] = data.draw(st.binary(max_size=4))
    try:
        file = read_onnx(bytes(content))
    except OnnxError:
        return
    # What is read, onnx reads as well, and as the same.
    model = onnx.ModelProto.FromString(bytes(content))
    assert [node.operator for node in file.nodes] == [node.op_type for node in model.graph.node]
    assert not any(tensor.external_data for tensor in model.graph.initializer) or file.external


@pytest.mark.parametrize("what", ["nodes", "nested", "names"])
def test_a_huge_graph_is_refused_within_little_memory(copy: Path, what: str) -> None:
    content = {
        "nodes": b"\x3a" + _length(b"\x0a\x00" * 8_000_000),
        "nested": b"\x3a" + _length(b"\x0a\x04\x2a\x02\x32\x00" * 2_500_000),
        "names": b"\x3a" + _length(b"\x0a\x02\x22\x00" * 4_000_000),
    }[what]
    replace_file(copy, "select.onnx", content)
    sentence, mebibytes = peak_of_opening(copy)
    assert "select.onnx, since" in sentence
    assert mebibytes < 400


def test_graphs_larger_than_any_are_refused_unread(copy: Path) -> None:
    with (copy / "select.onnx").open("wb") as file:
        file.truncate(100 << 20)
    record(copy, "select.onnx")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(copy, "has 104857600 bytes, and 67108864 are the most")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


# --- graphs that pass, and are wrong all the same -----------------------------------------------------------------


class Lying(OrtCpuBackend):
    """A backend whose merge gives something else."""

    def __init__(self, change: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(1)
        self._change = change

    def load(self, bundle: Bundle, name: str) -> Any:
        graph, change = super().load(bundle, name), self._change
        if name == "merge":
            run = graph.run

            def lie(feeds: Any, outputs: Any) -> Any:
                computed = run(feeds, outputs)
                change(computed)
                return computed

            graph.run = lie  # type: ignore[method-assign]
        return graph


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given.update(token_group=given["token_group"] + 2**40),
        lambda given: given.update(token_group=given["token_group"] - 1000),
        lambda given: given.update(token_group=given["token_group"][::-1].copy()),
        lambda given: given.update(token_group=given["token_group"][:0], video_tokens=given["video_tokens"][:0]),
        lambda given: given.update(video_tokens=given["video_tokens"][:-1]),
        lambda given: given.update(patch_to_token=given["patch_to_token"] + 10**6),
        lambda given: given.update(patch_to_token=given["patch_to_token"][:-1]),
        lambda given: given.update(frame_segment=given["frame_segment"] - 5),
    ],
)
def test_a_merge_that_is_none_is_refused(copy: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    bundle = open_bundle(copy)
    chain = Chain(bundle, Lying(change))
    features = structured_features(6, bundle.manifest.token_layout.tokens_per_frame, 64, seed=1, cuts=(3,))
    with pytest.raises(PruneVidError, match="gives no merged tokens"):
        chain.merge(features, bundle.manifest.prune)


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "nowhere"


def other_shape(model: onnx.ModelProto) -> None:
    norm = next(node for node in model.graph.node if node.op_type == "MatMul")
    norm.input[0], norm.input[1] = norm.input[1], norm.input[0]


@pytest.mark.parametrize("graph", ["vision_merge", "merge", "llm_pre", "select", "llm_post"])
@pytest.mark.parametrize("change", [rename_input, other_shape])
def test_what_onnx_runtime_refuses_is_one_sentence(
    copy: Path, graph: str, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load(str(copy / f"{graph}.onnx"), load_external_data=False)
    if change is other_shape and not any(node.op_type == "MatMul" for node in model.graph.node):
        change = rename_input
    edit_graph(copy, graph, change)
    open_bundle(copy)
    frames = np.random.default_rng(3).integers(0, 256, (4, 72, 72, 3), np.uint8)

    def ask() -> None:
        pipeline = load(copy, "ort-cpu")
        session = pipeline.session(pipeline.features(frames)) if graph == "merge" else pipeline.open(frames)
        session.ask("what is this?")

    with pytest.raises(PruneVidError, match=rf"{graph}\.onnx") as error:
        ask()
    assert str(error.value).isprintable()
