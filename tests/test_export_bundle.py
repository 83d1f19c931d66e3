"""Exporting a checkpoint to a bundle, and opening it: whole bundles load, everything else is refused in a sentence."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from models import CHAT_TEMPLATE, IDS, LAYERS, TINY, VOCABULARY, save_checkpoint
from told import Told

from prunevid import PruneConfig, PruneVidError, __version__
from prunevid.bundle import SCHEMA_VERSION, Bundle, open_bundle, sha256_of
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.export import export
from prunevid.export.families import llava_onevision

GRAPHS = ("vision_merge", "merge", "llm_pre", "select", "llm_post")


def one_sentence(error: pytest.ExceptionInfo[PruneVidError]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "Error(" not in text
    return text


def files_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


# --- a whole bundle ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Bundle:
    return open_bundle(tiny_bundle("qwen2", "ort"))


def test_the_manifest_says_what_was_exported(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.schema_version == SCHEMA_VERSION
    assert manifest.created_by == f"prunevid {__version__}"
    assert (manifest.dialect, manifest.precision, manifest.frames) == ("ort", "fp32", 32)
    assert manifest.prune == replace(PruneConfig(), prune_layer=10 * LAYERS // 32)
    model = manifest.model
    assert (model.name, model.family, model.random_weights) == ("llava-ov", "llava_onevision", False)
    tokens = TINY["qwen2"].tokens_per_frame
    side = math.isqrt(tokens)
    assert manifest.token_layout == TokenLayout(tokens, (side, side), after_video=(Piece(row=VOCABULARY),))
    decoder = model.decoder
    assert (decoder.layers, decoder.hidden_size, decoder.intermediate_size) == (LAYERS, 64, 128)
    assert (decoder.heads, decoder.kv_heads, decoder.head_dim, decoder.vocab_size) == (4, 2, 16, VOCABULARY)
    assert model.vision.patches == TINY["qwen2"].side ** 2
    assert manifest.prompt.video_token == "<video>"
    assert manifest.prompt.eos_ids == (IDS["<|im_end|>"],)
    assert manifest.prompt.max_positions == 4096
    assert bundle.file(manifest.prompt.chat_template).read_text() == CHAT_TEMPLATE
    preprocessing = manifest.preprocessing
    assert (preprocessing.size, preprocessing.resample) == (TINY["qwen2"].image_size, "bicubic")
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    assert preprocessing.rescale == pytest.approx(1 / 255)


def test_the_manifest_lists_every_file_as_it_is(bundle: Bundle) -> None:
    found = {name: digest for name, digest in files_of(bundle.path).items() if name != "manifest.json"}
    assert {name: record.sha256 for name, record in bundle.manifest.files.items()} == found
    for name, record in bundle.manifest.files.items():
        assert record.size == bundle.file(name).stat().st_size
    assert bundle.size == sum(record.size for record in bundle.manifest.files.values())


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_as_the_manifest_says(tiny_bundle: Callable[[str, str], Path], dialect: str, name: str) -> None:
    opened = open_bundle(tiny_bundle("qwen2", dialect))
    spec = opened.manifest.graphs[name]
    file = opened.file(spec.file)
    model = onnx.load(str(file), load_external_data=False)
    if dialect == "portable":
        onnx.checker.check_model(str(file))
    for declared, values in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        assert [tensor.name for tensor in declared] == [value.name for value in values]
        for tensor, value in zip(declared, values, strict=True):
            kind = value.type.tensor_type
            assert tensor.dtype == np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
            assert tensor.shape == tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    functions = {(function.domain, function.name) for function in model.functions}
    merging = {"DpcKnn", "RefineSegments"}
    wanted = {"vision_merge": merging, "merge": merging, "select": {"GroupTopK"}}.get(name, set())
    assert functions == {("prunevid", operator) for operator in wanted}
    domains = {node.domain for node in model.graph.node}
    assert ("com.microsoft" in domains) == (dialect == "ort" and name not in ("merge", "select"))
    assert all(entry.version <= (21 if dialect == "ort" else 20) for entry in model.opset_import if not entry.domain)


def test_embeddings_are_the_models_table_and_the_newline(bundle: Bundle, tiny_model: Callable[[str], Any]) -> None:
    spec = bundle.manifest.embeddings
    assert (spec.dtype, spec.rows, spec.columns) == ("float32", VOCABULARY + 1, 64)
    table = np.fromfile(bundle.file(spec.file), np.float32).reshape(spec.rows, spec.columns)
    inner = tiny_model("qwen2").model
    np.testing.assert_array_equal(table[:-1], inner.language_model.embed_tokens.weight.detach().numpy())
    np.testing.assert_array_equal(table[-1], inner.image_newline.detach().numpy())


def test_tied_embeddings_are_in_the_bundle_once(tiny_bundle: Callable[[str, str], Path]) -> None:
    opened = open_bundle(tiny_bundle("tied", "portable"))
    model = onnx.load(str(opened.file("llm_post.onnx")), load_external_data=False)
    locations = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert opened.manifest.embeddings.file in locations


def test_settings_and_progress_go_through(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    calls: list[tuple[str, float, float]] = []
    prune = PruneConfig(keep_ratio=0.7, cluster_ratio=0.3, prune_layer=4, neighbours=3, selection="global")
    exported = export(
        "llava-ov",
        tmp_path / "deep" / "bundle",
        checkpoint=str(tiny_checkpoint("qwen2")),
        dialect="portable",
        precision="fp16",
        frames=8,
        prune=prune,
        progress=Told(lambda *call: calls.append(call)),
    )
    manifest = open_bundle(exported.path).manifest
    assert (manifest.prune, manifest.frames) == (prune, 8)
    assert (manifest.precision, manifest.embeddings.dtype) == ("fp16", "float16")
    assert manifest.graphs["llm_post"].inputs[0].dtype == "float16"
    kv = {name for graph in ("llm_pre", "llm_post") for name in graph_inputs(manifest, graph) if "past_key" in name}
    assert kv == {f"past_key.{layer}" for layer in range(LAYERS)}
    assert "past_key.4" in graph_inputs(manifest, "llm_pre")
    assert "past_key.5" in graph_inputs(manifest, "llm_post")
    done = [count for _, count, total in calls if total]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] > 500_000


def graph_inputs(manifest: Any, graph: str) -> list[str]:
    return [tensor.name for tensor in manifest.graphs[graph].inputs]


# --- damaged bundles ---------------------------------------------------------------------------------------


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))


def test_a_copy_is_the_same_bundle(copy: Path, bundle: Bundle) -> None:
    assert open_bundle(copy).manifest == bundle.manifest
    # What the next tests change must be all that is wrong with their copies.
    edit_manifest(copy, lambda data: None)
    assert open_bundle(str(copy)).manifest == bundle.manifest


FILES = ("llm_pre.onnx", "llm_post.onnx.data", "embeddings.bin", "tokenizer.json", "chat_template.jinja")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(PruneVidError, match=f"lacks its file {re.escape(name)}") as error:
        open_bundle(copy)
    one_sentence(error)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_length_is_refused_by_name(copy: Path, name: str, verify: bool) -> None:
    content = (copy / name).read_bytes()
    for changed in (content[:-1], content + b"\n", b""):
        (copy / name).write_bytes(changed)
        with pytest.raises(PruneVidError, match=re.escape(name)) as error:
            open_bundle(copy, verify=verify)
        assert f"{len(changed)} bytes where the bundle has {len(content)}" in one_sentence(error)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_byte_is_refused_by_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(PruneVidError, match=f"{re.escape(name)} was altered") as error:
        open_bundle(copy)
    one_sentence(error)


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc/passwd", "{outside}", "link", "linked/outside"]
)
def test_a_path_that_leaves_the_folder_is_refused(copy: Path, name: str) -> None:
    outside = copy.parent / "outside"
    outside.write_bytes(b"secret")
    (copy / "link").symlink_to(outside)
    (copy / "linked").symlink_to(copy.parent, target_is_directory=True)
    name = name.replace("{outside}", str(outside))
    record = {"size": 6, "sha256": sha256_of(outside)}
    edit_manifest(copy, lambda data: data["files"].update({name: record}))
    for verify in (True, False):
        with pytest.raises(PruneVidError, match="lies outside it") as error:
            open_bundle(copy, verify=verify)
        one_sentence(error)


def test_a_link_in_a_circle_is_refused(copy: Path) -> None:
    (copy / "select.onnx").unlink()
    (copy / "select.onnx").symlink_to("select.onnx")
    with pytest.raises(PruneVidError, match="select.onnx") as error:
        open_bundle(copy)
    one_sentence(error)


def test_a_graph_that_is_a_link_out_is_refused(copy: Path) -> None:
    outside = copy.parent / "outside.onnx"
    (copy / "llm_pre.onnx").rename(outside)
    (copy / "llm_pre.onnx").symlink_to(outside)
    with pytest.raises(PruneVidError, match="lies outside it"):
        open_bundle(copy)


@pytest.mark.parametrize("part", ["graph", "embeddings", "prompt"])
def test_a_part_that_no_checksum_covers_is_refused(copy: Path, part: str) -> None:
    def change(data: dict[str, Any]) -> None:
        if part == "graph":
            data["graphs"]["select"]["file"] = "../select.onnx"
        elif part == "embeddings":
            data["embeddings"]["file"] = "other.bin"
        else:
            data["prompt"]["chat_template"] = "/etc/passwd"

    edit_manifest(copy, change)
    with pytest.raises(PruneVidError, match="is not in its files") as error:
        open_bundle(copy)
    one_sentence(error)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_bundle_that_lacks_a_graph_is_refused_by_name(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda data: data["graphs"].pop(name))
    with pytest.raises(PruneVidError, match=f"lacks the graph '{name}'.*export it again") as error:
        open_bundle(copy)
    one_sentence(error)


def test_a_file_that_the_manifest_does_not_list_cannot_be_had(bundle: Bundle) -> None:
    for name in ("manifest.json", "../x", "nothing.bin"):
        with pytest.raises(PruneVidError, match="lists no file"):
            bundle.file(name)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None, True, 1.0])
def test_another_schema_version_is_refused(copy: Path, version: object) -> None:
    edit_manifest(copy, lambda data: data.update(schema_version=version))
    with pytest.raises(PruneVidError) as error:
        open_bundle(copy)
    one_sentence(error)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"schema_version": 1}',
        b'"manifest"',
        b"[" * 200_000,
        b"9" * 5000,
    ],
)
def test_a_garbage_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(PruneVidError, match="manifest.json is damaged|schema version") as error:
        open_bundle(copy)
    one_sentence(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("graphs"),
        lambda data: data.update(surprise=1),
        lambda data: data.update(frames="8"),
        lambda data: data.update(frames=True),
        lambda data: data.update(files=[]),
        lambda data: data["files"].update({"x": {"size": 1}}),
        lambda data: data["prune"].update(keep_ratio=7.0),
        lambda data: data["prune"].update(keep_ratio="all"),
        lambda data: data["prune"].update(keep_ratio=10**400),
        lambda data: data["prune"].update(prune_layer=LAYERS - 1),
        lambda data: data["graphs"].pop("select"),
        lambda data: data["files"].update({"a\0b": data["files"]["select.onnx"]}),
        lambda data: data["files"].update({"a" * 5000: data["files"]["select.onnx"]}),
        lambda data: data["files"].update({"\ud800": data["files"]["select.onnx"]}),
        lambda data: data["prompt"].update(eos_ids=3),
        lambda data: data["preprocessing"].update(mean=[0.5]),
        lambda data: data["graphs"]["select"].update(inputs=None),
    ],
)
def test_a_manifest_of_another_shape_is_refused(copy: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_manifest(copy, change)
    with pytest.raises(PruneVidError) as error:
        open_bundle(copy)
    one_sentence(error)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneVidError, match="there is no bundle"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(PruneVidError, match="is not a bundle"):
        open_bundle(tmp_path)


# --- exports that are refused ------------------------------------------------------------------------------


def test_an_existing_bundle_is_replaced_only_when_asked(
    copy: Path, bundle: Bundle, tiny_model: Callable[[str], Any], tmp_path: Path
) -> None:
    # A checkpoint that differs in one number of the last layer.
    model = deepcopy(tiny_model("qwen2"))
    with torch.no_grad():
        model.model.language_model.layers[LAYERS - 1].mlp.up_proj.weight[3, 4] += 1
    checkpoint = str(save_checkpoint(model, tmp_path / "checkpoint"))
    (copy / "tokenizer.json").unlink()
    before = files_of(copy)
    with pytest.raises(PruneVidError, match="exists already") as error:
        export("llava-ov", copy, checkpoint=checkpoint)
    one_sentence(error)
    assert files_of(copy) == before

    export("llava-ov", copy, checkpoint=checkpoint, overwrite=True)
    first, second = bundle.manifest.files, open_bundle(copy).manifest.files
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"llm_post.onnx.data"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_never_replaced(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path], kind: str, overwrite: bool
) -> None:
    output = tmp_path / "precious"
    if kind == "folder":
        output.mkdir()
        (output / "thesis.tex").write_text("years of work")
    else:
        output.write_text("years of work")
    with pytest.raises(PruneVidError, match="exists and is not a bundle") as error:
        export("llava-ov", output, checkpoint=str(tiny_checkpoint("qwen2")), overwrite=overwrite)
    one_sentence(error)
    assert (output / "thesis.tex" if kind == "folder" else output).read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def refused(tmp_path: Path, checkpoint: Path | str, **options: Any) -> str:
    """The sentence with which an export is refused, leaving nothing behind."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    with pytest.raises(PruneVidError) as error:
        export("llava-ov", folder / "bundle", checkpoint=str(checkpoint), **options)
    assert list(folder.iterdir()) == []
    return one_sentence(error)


@pytest.fixture
def damaged(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "damaged"))


def edit_text_config(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "config.json").read_text())
    data["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("family", ["pllava", "qwen2", None])
def test_another_family_is_refused_by_name(damaged: Path, tmp_path: Path, family: str | None) -> None:
    data = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(data | {"model_type": family}))
    assert repr(family) in refused(tmp_path, damaged)


@pytest.mark.parametrize(
    ("decoder", "settings"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64}),
        ("mistral", {"sliding_window": 64}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("qwen2", {"hidden_act": "gelu"}),
        ("gemma", {}),
    ],
)
def test_a_language_model_that_would_be_exported_wrong_is_refused(
    damaged: Path, tmp_path: Path, decoder: str, settings: dict[str, Any]
) -> None:
    plain = {"model_type": decoder, "sliding_window": None, "layer_types": None}
    edit_text_config(damaged, **plain | settings)
    message = refused(tmp_path, damaged)
    assert str(damaged / "config.json") in message
    assert any(word in message for word in ("sliding-window", "bias", "activation", "'gemma'"))


@pytest.mark.parametrize("decoder", ["qwen2", "qwen3"])
def test_a_window_that_is_not_used_is_no_reason_to_refuse(damaged: Path, decoder: str) -> None:
    # Published Qwen checkpoints have one.
    edit_text_config(damaged, model_type=decoder, use_sliding_window=False, sliding_window=32768)
    data = json.loads((damaged / "config.json").read_text())
    assert llava_onevision.parse_config(data, "it").text_config.sliding_window is None


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_rotary_embeddings_that_change_with_length_are_refused(damaged: Path, tmp_path: Path, scaling: str) -> None:
    parameters = {"rope_type": scaling, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    if scaling == "longrope":
        parameters |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    edit_text_config(damaged, rope_parameters=parameters)
    assert repr(scaling) in refused(tmp_path, damaged)


@pytest.mark.parametrize("layer", [LAYERS - 1, LAYERS, 1000])
def test_a_prune_layer_with_none_behind_it_is_refused(damaged: Path, tmp_path: Path, layer: int) -> None:
    message = refused(tmp_path, damaged, prune=PruneConfig(prune_layer=layer))
    assert f"prune_layer {layer}" in message
    assert f"0 to {LAYERS - 2}" in message


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dialect": "klingon"}, "klingon"),
        ({"precision": "fp64"}, "fp64"),
        ({"frames": 0}, "frames"),
        ({"random_weights": True}, "random weights"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    damaged: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    assert complaint in refused(tmp_path, damaged, **options)


def test_an_unknown_model_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(PruneVidError, match=r"unknown model 'gpt'.*llava-ov-0\.5b") as error:
        export("gpt", tmp_path / "bundle")
    one_sentence(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "[" * 200_000),
        ("config.json", '{"n": ' + "9" * 5000 + "}"),
        ("tokenizer.json", "{"),
        ("generation_config.json", "nothing"),
        ("preprocessor_config.json", "{"),
        ("model.safetensors", "short"),
    ],
)
def test_a_damaged_file_of_the_checkpoint_is_refused_by_name(
    damaged: Path, tmp_path: Path, name: str, content: str
) -> None:
    (damaged / name).write_text(content)
    assert name in refused(tmp_path, damaged)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_missing_file_of_the_checkpoint_is_refused_by_name(damaged: Path, tmp_path: Path, name: str) -> None:
    (damaged / name).unlink()
    (damaged / "tokenizer_config.json").unlink()
    assert name in refused(tmp_path, damaged)


def test_a_checkpoint_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    assert "no checkpoint folder" in refused(tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "/" + "x" * 5000, "./a\0b"])
def test_a_name_that_no_checkpoint_can_have_is_refused(tmp_path: Path, name: str) -> None:
    assert "checkpoint" in refused(tmp_path, name)


@pytest.mark.parametrize("name", ["vision_tower.encoder.layers.0.mlp.fc1.bias", "language_model.layers.5.mlp.up_proj"])
def test_a_value_that_is_no_number_is_refused_wherever_it_is(
    tiny_model: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    model = deepcopy(tiny_model("qwen2"))
    (parameter,) = (value for key, value in model.named_parameters() if name in key)
    with torch.no_grad():
        parameter.view(-1)[3] = float("nan")
    message = refused(tmp_path, save_checkpoint(model, tmp_path / "checkpoint"))
    assert name in message
    assert "no numbers" in message


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_wrong_with_weights_is_found_before_any_is_written(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    from prunevid.export import exporter

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("writing began")

    monkeypatch.setattr(exporter, "_write", never)
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "adapter_config.json").write_text("{}")
    assert "adapter_config.json is a LoRA adapter" in refused(tmp_path, damaged, precision=precision)
    (damaged / "adapter_config.json").unlink()
    shutil.rmtree(tmp_path / "outputs")
    (damaged / "model.safetensors").write_bytes(content + b"0")
    assert "truncated or damaged" in refused(tmp_path, damaged, precision=precision)


def test_a_checkpoint_that_the_hub_cannot_give_is_refused(tmp_path: Path) -> None:
    # Tests run without the hub, as on a machine without a network.
    assert "cannot download nobody/nothing" in refused(tmp_path, "nobody/nothing")


# --- exports that are cut short ----------------------------------------------------------------------------

EXPORT = """
import os, resource, signal, sys
from told import Told
from prunevid import PruneVidError
from prunevid.export import export

checkpoint, folder = sys.argv[1:]

def run(how):
    def heard(what, done, total):
        if how == "while-writing" and what == "writing llm_post" and done > total * 0.8:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "before-the-manifest" and what == "recording checksums":
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    output = os.path.join(folder, how, "bundle")
    try:
        export("llava-ov", output, checkpoint=checkpoint, overwrite=True, progress=Told(heard))
    except PruneVidError as error:
        sys.exit(f"refused: {error}")

# One process imports what takes long and exports once, three are cut short.
export("llava-ov", os.path.join(folder, "whole"), checkpoint=checkpoint)
for how in ("while-writing", "before-the-manifest", "full"):
    child = os.fork()
    if not child:
        run(how)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(how, os.waitstatus_to_exitcode(status))
"""


@pytest.fixture(scope="module")
def cut_short(
    tiny_checkpoint: Callable[[str], Path], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int], str]:
    """Three exports that did not get to their end: where, their exit codes, and what they said.

    Beside them, in `whole`, is one that did. Those that were killed were to replace an older bundle.
    """
    folder = tmp_path_factory.mktemp("cut-short")
    (folder / "full").mkdir()
    for how in ("while-writing", "before-the-manifest"):
        shutil.copytree(bundle.path, folder / how / "bundle")
    command = [sys.executable, "-c", EXPORT, str(tiny_checkpoint("qwen2")), str(folder)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=one_thread)
    codes = dict(line.split() for line in done.stdout.splitlines())
    return folder, {how: int(code) for how, code in codes.items()}, done.stderr


def test_exporting_again_in_another_process_gives_the_same_files(
    cut_short: tuple[Path, dict[str, int], str], bundle: Bundle
) -> None:
    assert files_of(cut_short[0] / "whole") == files_of(bundle.path)


@pytest.mark.parametrize("how", ["while-writing", "before-the-manifest"])
def test_a_killed_export_leaves_nothing_that_loads(
    cut_short: tuple[Path, dict[str, int], str], bundle: Bundle, how: str
) -> None:
    folder, codes, _ = cut_short
    assert codes[how] == -signal.SIGKILL
    # The older bundle is as it was: nothing is half replaced.
    assert files_of(folder / how / "bundle") == files_of(bundle.path)
    (left,) = [path for path in (folder / how).iterdir() if path.name != "bundle"]
    assert (left / "llm_post.onnx.data").stat().st_size > 100_000
    with pytest.raises(PruneVidError, match="is not a bundle"):
        open_bundle(left)


def test_a_full_disk_leaves_nothing_and_says_so(cut_short: tuple[Path, dict[str, int], str]) -> None:
    folder, codes, said = cut_short
    assert codes["full"] == 1
    (message,) = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert str(folder / "full" / "bundle") in message
    assert "nothing was kept" in message
    assert "Traceback" not in said
    assert list((folder / "full").iterdir()) == []
