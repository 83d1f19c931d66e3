"""Manifests from strangers: every section is held against its bounds, the files and the graphs, in one sentence."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import edit_manifest, peak_of_opening, record

from prunevid import PruneVidError
from prunevid.bundle import SCHEMA_VERSION, Manifest, open_bundle
from prunevid.bundle.sections.engine_sets import EngineSpec
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.questions import AskedVideo, Split
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import Silent
from prunevid.export.engine.profiles import limits_of, profiles_of, recorded
from prunevid.files import copy_file
from prunevid.runtime import load
from prunevid.text.chat import ChatPrompt

ROOT = Path(__file__).parents[1]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def copy(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A bundle to be changed."""
    return Path(shutil.copytree(tiny_bundle("qwen2", "ort"), tmp_path / "copy"))


def refused(folder: Path, match: str | None = None) -> str:
    """The sentence with which a bundle is refused, hashed or not."""
    with pytest.raises(PruneVidError, match=match) as error:
        open_bundle(folder, verify=False)
    sentence = str(error.value)
    assert sentence.isprintable()
    assert len(sentence) < 700
    with pytest.raises(PruneVidError, match=match):
        open_bundle(folder)
    return sentence


def setting(path: str, value: object) -> Change:
    """Sets an entry of the manifest, by its names with dots between them."""

    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            data = data[name]
        data[last] = value

    return change


RECORD = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dialect", "tensorrt"),
        ("dialect", "portable"),
        ("precision", "fp4"),
        ("precision", "fp16"),
        ("frames", 0),
        ("frames", -1),
        ("frames", 10**9),
        ("frames", 3.0),
        ("created_by", "a\x1b[2Jb"),
        ("created_by", "a" * 10_000),
        ("created_by", "\u202egnp.exe"),
        ("least_onnxruntime", "newest"),
        ("least_onnxruntime", "1"),
        ("least_onnxruntime", "1." + "9" * 4000),
        ("model.family", ""),
        ("model.name", ""),
        ("model.name", "x\n\x1b]0;title\x07"),
        ("token_layout", None),
        ("token_layout.tokens_per_frame", 24),
        ("token_layout.tokens_per_frame", 0),
        ("token_layout.tokens_per_frame", 10**12),
        ("token_layout.tokens_per_frame", "25"),
        ("token_layout.grid", [5, 6]),
        ("token_layout.grid", [-5, -5]),
        ("token_layout.grid", [25]),
        ("token_layout.grid", [True, 25]),
        ("token_layout.placeholder", "picture"),
        ("token_layout.before_frame", [{}]),
        ("token_layout.before_frame", [{"row": 0, "text": "x"}]),
        ("token_layout.before_frame", [{"row": -1}]),
        ("token_layout.before_frame", [{"row": 273}]),
        ("token_layout.before_frame", [{"row": 2**40}]),
        ("token_layout.before_frame", [{"row": True}]),
        ("token_layout.before_frame", [{"row": 0}] * 17),
        ("token_layout.before_frame", {"row": 0}),
        ("token_layout.before_frame", [{"text": ""}]),
        ("token_layout.before_frame", [{"text": "x" * 300}]),
        ("token_layout.before_frame", [{"text": "{"}]),
        ("token_layout.before_frame", [{"text": "{}"}]),
        ("token_layout.before_frame", [{"text": "{0}"}]),
        ("token_layout.before_frame", [{"text": "{seconds}"}]),
        ("token_layout.before_frame", [{"text": "{seconds:.9999999f}"}]),
        ("token_layout.before_frame", [{"text": "{seconds:{seconds}}"}]),
        ("token_layout.before_frame", [{"text": "{seconds!r:.1f}"}]),
        ("token_layout.before_frame", [{"text": "{seconds.__class__:.1f}"}]),
        ("token_layout.before_frame", [{"text": "{seconds[0]:.1f}"}]),
        ("token_layout.before_frame", [{"text": "{minutes:.1f}"}]),
        ("token_layout.after_frame", [{"row": 273}]),
        ("token_layout.after_video", [{"row": 273}]),
        ("token_layout.after_video", [{"row": -1}]),
        ("token_layout.after_video", [{"text": "{seconds:.1f}"}]),
        ("token_layout.position_axes", 3),
        ("token_layout.position_axes", 2),
        ("token_layout.encoding", "video"),
        ("token_layout.question_dependent", 1),
        ("token_layout.features", [25, 65]),
        ("token_layout.features", [0, 64]),
        ("token_layout.features", 25),
        ("model.decoder.layers", 7),
        ("model.decoder.layers", 10**9),
        ("model.decoder.layers", True),
        ("model.decoder.hidden_size", 65),
        ("model.decoder.kv_heads", 1),
        ("model.decoder.kv_heads", 3),
        ("model.decoder.head_dim", 2**40),
        ("model.decoder.vocab_size", 271),
        ("model.decoder.vocab_size", 10**15),
        ("model.tied", True),
        ("model.tied", "no"),
        ("model.projection_bias", 1),
        ("model.query_key_norm", None),
        ("model.vision.layers", 0),
        ("model.vision.patches", -5),
        ("model.vision.class_token", 1),
        ("model.vision.projected", 0),
        ("model.vision.projected", 10**6),
        ("prune.prune_layer", 0),
        ("prune.prune_layer", 2),
        ("prune.prune_layer", 10**17),
        ("prune.neighbours", 6),
        ("prune.neighbours", 10**17),
        ("prune.min_cluster_tokens", 10**17),
        ("prune.selection", ["group"]),
        ("cache", None),
        ("cache.layout", "appended"),
        ("cache.layout", "paged"),
        ("cache.dtype", "float16"),
        ("cache.dtype", "int8"),
        ("cache.dtype", "float64"),
        ("blocks", {"frames": 4}),
        ("blocks.frames", 0),
        ("blocks.frames", 10**6),
        ("blocks.frames", 4.0),
        ("blocks.rows", -1),
        ("blocks.rows", 10**9),
        ("blocks.rows", True),
        ("graphs.llm_pre.files", []),
        ("graphs.llm_pre.files", ["llm_post.onnx.data"]),
        ("graphs.llm_pre.files", ["llm_pre.onnx.data", "llm_pre.onnx.data"]),
        ("graphs.llm_pre.files", ["llm_post.onnx.data", "llm_pre.onnx.data"]),
        ("graphs.llm_pre.files", ["llm_pre.onnx.data", "llm_post.onnx.data"]),
        ("graphs.llm_pre.files", ["llm_pre.onnx.data", "tokenizer.json"]),
        ("graphs.llm_pre.files", ["../llm_pre.onnx.data"]),
        ("graphs.llm_pre.files", "llm_pre.onnx.data"),
        ("graphs.select.files", ["embeddings.bin"]),
        ("graphs.llm_post.files", ["embeddings.bin", "llm_post.onnx.data"]),
        ("embeddings.rows", 272),
        ("embeddings.rows", 274),
        ("embeddings.rows", 10**15),
        ("embeddings.columns", 32),
        ("embeddings.dtype", "float16"),
        ("embeddings.dtype", "object"),
        ("embeddings.file", "tokenizer.json"),
        ("prompt.eos_ids", []),
        ("prompt.eos_ids", [-1]),
        ("prompt.eos_ids", [272]),
        ("prompt.eos_ids", [2**40]),
        ("prompt.eos_ids", [258] * 1000),
        ("prompt.max_positions", 0),
        ("prompt.max_positions", 2**40),
        ("prompt.video_token", ""),
        ("prompt.video_token", "x" * 3000),
        ("prompt.special_tokens", {"bos": "x"}),
        ("prompt.tokenizer", "chat_template.jinja"),
        ("prompt.question_tokenizer", "bert.json"),
        ("prompt.question_tokenizer", "tokenizer.json"),
        ("prompt.question_tokenizer", "../tokenizer.json"),
        ("preprocessing.size", 0),
        ("preprocessing.size", -72),
        ("preprocessing.size", 4096),
        ("preprocessing.size", 73),
        ("preprocessing.std", [0.5, 0.0, 0.5]),
        ("preprocessing.std", [0.5, 1e-300, 0.5]),
        ("preprocessing.mean", [1e300, 0.5, 0.5]),
        ("preprocessing.rescale", 1e-300),
        ("preprocessing.rescale", 1e300),
        ("preprocessing.resample", "seam carving"),
        ("preprocessing.center_crop", 1),
        ("preprocessing.center_crop", None),
        ("files", {}),
        ("files.tokenizer.json", RECORD),
        ("engine_sets", None),
        ("engine_sets", {}),
        ("engine_sets", [{"product": "tensorrt-rtx", "release": "1.7.1.116", "capabilities": ["8.6"], "graphs": {}}]),
        ("quantization", {"recipe": "x", "graphs": {}, "questions": -1, "agreement": 1.0, "divergence": 0.0}),
        ("quantization", {"recipe": "x", "graphs": {}, "questions": 1, "agreement": 2.0, "divergence": 0.0}),
        (
            "quantization",
            {
                "recipe": "x",
                "graphs": {"other": {"treatment": "x", "quantized": 1, "float_layers": []}},
                "questions": 1,
                "agreement": 1.0,
                "divergence": 0.0,
            },
        ),
        (
            "tuning",
            {
                "max_tokens": None,
                "max_ttft_ms": -1.0,
                "min_agreement": None,
                "questions": 1,
                "agreement": 1.0,
                "divergence": 0.0,
                "kept": 0.5,
            },
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused(copy: Path, path: str, value: object) -> None:
    edit_manifest(copy, setting(path, value) if "tokenizer.json" not in path else lambda d: d["files"].update(
        {"tokenizer.json": value}
    ))  # fmt: skip
    refused(copy)


@pytest.mark.parametrize(
    ("graph", "side", "name", "entry"),
    [
        ("llm_pre", "inputs", "past_key.1", {"name": "past_key.7"}),
        ("llm_pre", "inputs", "past_key.1", {"dtype": "int8"}),
        ("llm_pre", "inputs", "past_key.1", {"dtype": "object"}),
        ("llm_pre", "inputs", "past_key.1", {"shape": [1, 2, "capacity", 32]}),
        ("llm_pre", "inputs", "past_key.1", {"shape": [1, 2, "rows", 16]}),
        ("llm_pre", "inputs", "past_key.1", {"shape": [-1, 2, "capacity", 16]}),
        ("llm_pre", "inputs", "position_ids", {"name": "past_length"}),
        ("llm_post", "outputs", "logits", {"shape": [1, 10**12]}),
        ("llm_post", "outputs", "logits", {"shape": []}),
        ("vision_merge", "inputs", "pixel_values", {"shape": ["frames_new", 3, 4096, 4096]}),
        ("vision_merge", "outputs", "token_group", {"dtype": "float32"}),
        ("select", "outputs", "kept", {"name": "k\x1b[31m"}),
    ],
)
def test_graphs_that_the_rest_does_not_go_with_are_refused(
    copy: Path, graph: str, side: str, name: str, entry: dict[str, Any]
) -> None:
    def change(data: dict[str, Any]) -> None:
        next(tensor for tensor in data["graphs"][graph][side] if tensor["name"] == name).update(entry)

    edit_manifest(copy, change)
    refused(copy, "manifest.json is damaged")


def test_a_graph_of_another_release_is_named(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["graphs"].update(speech=data["graphs"]["select"]))
    refused(copy, "has the graph 'speech', which this one does not know; update prunevid")


@pytest.mark.parametrize("where", ["", "model", "prompt", "prune", "embeddings"])
def test_an_entry_of_another_release_is_named_as_unknown(copy: Path, where: str) -> None:
    edit_manifest(copy, lambda data: (data[where] if where else data).update(surprise=1))
    sentence = refused(copy, "entry 'surprise', which this one does not know; update prunevid")
    assert "damaged" not in sentence


def engines_of(manifest: Manifest, suffix: str = ".engine") -> dict[str, Any]:
    """What a manifest says of engines of the bundle's limits, by graph, which name any file for theirs."""
    limits = limits_of(manifest, 8)
    graphs = {}
    for name, graph in manifest.graphs.items():
        inputs = {tensor.name for tensor in graph.inputs}
        profiles = [
            recorded(manifest, name, each, sorted(inputs & each.values.keys()))
            for each in profiles_of(manifest, name, limits)
        ]
        graphs[name] = asdict(EngineSpec(f"{name}{suffix}", tuple(profiles), "0" * 64))
    return graphs


def device_engines(manifest: Manifest) -> dict[str, Any]:
    """A manifest's set of engines by TensorRT."""
    place = {"gpu": "Orin", "capabilities": ["8.7"], "driver": "13.2"}
    return {"product": "tensorrt", "release": "10.16.0.72", **place, "graphs": engines_of(manifest)}


def rtx_engines(manifest: Manifest) -> dict[str, Any]:
    """A manifest's set of engines by TensorRT for RTX."""
    place = {"gpu": None, "capabilities": ["8.6", "12.0"], "driver": None}
    return {"product": "tensorrt-rtx", "release": "1.7.1.116", **place, "graphs": engines_of(manifest, ".rtx.engine")}


VALUE = {"minimum": [0], "optimum": [0], "maximum": [1]}
ENGINE_FAULTS = [
    lambda engines: engines["graphs"].pop("select"),
    lambda engines: engines["graphs"].update(other=engines["graphs"]["select"]),
    lambda engines: engines["graphs"]["llm_pre"].update(profiles=[]),
    lambda engines: engines["graphs"]["llm_pre"].update(file="select.engine"),
    lambda engines: engines["graphs"]["llm_pre"].update(file="llm_pre.onnx"),
    lambda engines: engines["graphs"]["llm_pre"].update(file="../x.engine"),
    lambda engines: first_profile(engines)["shapes"].pop("past_key.0"),
    lambda engines: first_profile(engines)["shapes"].update(other=first_profile(engines)["shapes"]["past_key.0"]),
    lambda engines: first_profile(engines)["shapes"]["past_key.0"].update(maximum=[1, 5, 2, 15]),
    lambda engines: first_profile(engines)["shapes"]["past_key.0"].update(minimum=[1, 0, 2]),
    lambda engines: first_profile(engines)["shapes"]["past_key.0"].update(minimum=[1, 10**6, 2, 16]),
    lambda engines: first_profile(engines)["shapes"]["past_key.0"].update(maximum=[1, 2**40, 2, 16]),
    lambda engines: first_profile(engines)["shapes"]["past_key.0"].update(minimum=[1, -1, 2, 16]),
    lambda engines: first_profile(engines)["values"].update({"inputs_embeds": VALUE}),
    lambda engines: first_profile(engines)["values"].update({"nothing": VALUE}),
    lambda engines: first_profile(engines)["values"]["past_length"].update(maximum=[1, 2]),
]


def spoil(folder: Path, engines: dict[str, Any], change: Change) -> None:
    """Give a bundle a set of engines that is as it should be, change it, and see the bundle refused."""
    for engine in engines["graphs"].values():
        (folder / engine["file"]).write_bytes(b"engine")
        record(folder, engine["file"])
    edit_manifest(folder, lambda data: data.update(engine_sets=[engines]))
    assert len(open_bundle(folder).manifest.engine_sets) == 1
    change(engines)
    edit_manifest(folder, lambda data: data.update(engine_sets=[engines]))
    refused(folder, "manifest.json is damaged")


@pytest.mark.parametrize(
    "change",
    [
        *ENGINE_FAULTS,
        lambda engines: engines.update(driver="newest"),
        lambda engines: engines.update(driver=None),
        lambda engines: engines.update(gpu="Orin\x1b[2J"),
        lambda engines: engines.update(gpu=None),
        lambda engines: engines.update(capabilities=["8.6", "8.7"]),
        lambda engines: engines.update(product="tensorrt-llm"),
        lambda engines: engines.update(product="tensorrt-rtx"),
        lambda engines: engines.update(product=None),
        lambda engines: engines.pop("product"),
    ],
)
def test_engines_that_do_not_fit_their_graphs_are_refused(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, change: Change
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "copy"))
    spoil(folder, device_engines(open_bundle(folder).manifest), change)


@pytest.mark.parametrize(
    "change",
    [
        *ENGINE_FAULTS,
        lambda engines: engines.update(gpu="Orin", driver="13.2"),
        lambda engines: engines.update(driver="13.2"),
        lambda engines: engines.update(release=""),
        lambda engines: engines.update(release="newest"),
        lambda engines: engines.update(release="1.7.1.116\n"),
        lambda engines: engines.update(release="1.7"),
        lambda engines: engines.update(release=f"1.7.1.{10**9}"),
        lambda engines: engines.update(release=1.7),
        lambda engines: engines.pop("release"),
        lambda engines: engines.update(capabilities=[]),
        lambda engines: engines.update(capabilities="8.6"),
        lambda engines: engines.update(capabilities=[8.6]),
        lambda engines: engines.update(capabilities=["8.6", "8.6"]),
        lambda engines: engines.update(capabilities=["12.0", "8.6"]),
        lambda engines: engines.update(capabilities=["8.6", "8.06"]),
        lambda engines: engines.update(capabilities=["08.6"]),
        lambda engines: engines.update(capabilities=["８.6"]),
        lambda engines: engines.update(capabilities=["8.6\n"]),
        lambda engines: engines.update(capabilities=["sm_86"]),
        lambda engines: engines.update(capabilities=[f"{major}.{minor}" for major in range(9) for minor in range(9)]),
    ],
)
def test_engines_for_rtx_that_do_not_fit_are_refused(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, change: Change
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "copy"))
    spoil(folder, rtx_engines(open_bundle(folder).manifest), change)


def test_engines_of_both_kinds_stand_in_one_bundle_and_share_no_file(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "copy"))
    manifest = open_bundle(folder).manifest
    both = [device_engines(manifest), rtx_engines(manifest)]
    for engines in both:
        for engine in engines["graphs"].values():
            (folder / engine["file"]).write_bytes(b"engine")
            record(folder, engine["file"])
    edit_manifest(folder, lambda data: data.update(engine_sets=both))
    opened = open_bundle(folder).manifest
    assert [engines.capabilities for engines in opened.engine_sets] == [("8.7",), ("8.6", "12.0")]
    assert len({engine.file for engine in opened.all_engines}) == 2 * len(manifest.graphs)
    both[1]["graphs"]["merge"]["file"] = "merge.engine"
    edit_manifest(folder, lambda data: data.update(engine_sets=both))
    refused(folder, "one file is named for two things")


def test_two_sets_of_engines_for_the_same_gpus_are_refused(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "copy"))
    manifest = open_bundle(folder).manifest
    first, second = rtx_engines(manifest), rtx_engines(manifest)
    second["graphs"] = engines_of(manifest, ".other.engine")
    second["release"] = "1.8.0.1"
    for engines in (first, second):
        for engine in engines["graphs"].values():
            (folder / engine["file"]).write_bytes(b"engine")
            record(folder, engine["file"])
    edit_manifest(folder, lambda data: data.update(engine_sets=[first, second]))
    refused(folder, "two of its sets of engines are for the same GPUs")
    second["capabilities"] = ["8.9"]
    edit_manifest(folder, lambda data: data.update(engine_sets=[first, second]))
    assert len(open_bundle(folder).manifest.engine_sets) == 2


def first_profile(engines: dict[str, Any]) -> dict[str, Any]:
    """The first profile of llm_pre."""
    found: dict[str, Any] = engines["graphs"]["llm_pre"]["profiles"][0]
    return found


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "",
        "/",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "a/../b",
        "\\\\host\\share",
        "..\\b",
        "a\\b",
        "C:x",
        "c:\\x",
        "a:stream",
        "a b",
        ".hidden",
        "a/.hidden",
        "caf\u00e9",
        "cafe\u0301",
        "\uff0e\uff0e/x",
        "a\x1b[2J",
        "a\n",
        "*",
        "manifest.json",
        "Manifest.JSON",
        "SELECT.onnx",
        "a" * 300,
    ],
)
def test_a_name_that_no_file_of_a_bundle_has_is_refused(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda data: data["files"].update({name: RECORD}))
    refused(copy, "names the file|no plain text")


def test_too_many_files_are_refused(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["files"].update({f"f{number}": RECORD for number in range(20_000)}))
    refused(copy, "names 200.. files, and a bundle has 1000 at most")


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1},
        {"size": True},
        {"size": 1.5},
        {"size": 10**18},
        {"sha256": "x"},
        {"sha256": "A" * 64},
        {"sha256": "0" * 63 + "\n"},
        {"sha256": None},
        {"mode": 0o777},
    ],
)
def test_a_record_that_cannot_be_is_refused(copy: Path, entry: dict[str, Any]) -> None:
    edit_manifest(copy, lambda data: data["files"]["select.onnx"].update(entry))
    refused(copy)


def test_a_file_that_is_another_ones_folder_is_missing(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["files"].update({"select.onnx/x": RECORD}))
    refused(copy, "lacks its file select.onnx/x")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_texts_larger_than_any_are_refused_unread(copy: Path, name: str) -> None:
    with (copy / name).open("wb") as file:
        file.truncate(1 << 30)
    record(copy, name)
    refused(copy, "has 1073741824 bytes, and .* are the most")


def test_embeddings_that_are_too_short_are_refused(copy: Path) -> None:
    content = (copy / "embeddings.bin").read_bytes()
    (copy / "embeddings.bin").write_bytes(content[:-4])
    record(copy, "embeddings.bin")
    refused(copy, f"which {len(content) - 4} bytes cannot be")


# --- JSON ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        '"frames": NaN',
        '"frames": Infinity',
        '"frames": -Infinity',
        '"frames": 1e999',
        '"frames": ' + "9" * 5000,
        '"frames": ' + "9" * 19,
        '"frames": 8, "frames": 8',
        '"frames": ' + "[" * 500 + "]" * 500,
        '"model": {"name": "\\u001b[2J"}',
        '"model": {"name": "\\ud800"}',
        '"mod\\u0000el": 1',
    ],
)
def test_json_that_readers_differ_about_is_refused(copy: Path, entry: str) -> None:
    text = (copy / "manifest.json").read_text(encoding="utf-8")
    (copy / "manifest.json").write_text(text.rstrip().removesuffix("}") + f", {entry}}}", encoding="utf-8")
    refused(copy)


def run_python(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.parametrize("kind", ["large", "endless", "many lists", "many names"])
def test_a_huge_manifest_is_refused_within_little_memory(copy: Path, kind: str) -> None:
    path = copy / "manifest.json"
    if kind == "large":
        with path.open("ab") as file:
            file.truncate(50 << 30)  # a hole: it takes no room on the disk
    elif kind == "endless":
        path.unlink()
        path.symlink_to("/dev/zero")
    else:
        many = "[],[]," * 600_000 + "[]" if kind == "many lists" else ",".join(f'"{n}"' for n in range(400_000))
        path.write_text(f'{{"schema_version": 2, "files": [{many}]}}', encoding="utf-8")
    sentence, mebibytes = peak_of_opening(copy)
    assert "manifest.json" in sentence
    assert mebibytes < 300


# --- what cannot be read ---------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from prunevid.bundle import open_bundle
from prunevid import PruneVidError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try: open_bundle(sys.argv[1])
except PruneVidError as error: print(error)
"""


@pytest.mark.parametrize("name", ["", "manifest.json", "tokenizer.json", "llm_pre.onnx", "llm_post.onnx.data"])
def test_what_may_not_be_read_is_one_sentence(copy: Path, name: str) -> None:
    # However deep pytest puts its folders, which are its user's alone.
    above = [folder for folder in copy.parents if folder.is_relative_to(tempfile.gettempdir())][:-1]
    for folder in (copy, *above):
        folder.chmod(0o755)
    (copy / name).chmod(0)
    try:
        sentence = run_python(AS_NOBODY, copy)
    finally:
        (copy / name).chmod(0o755)
    assert sentence.count("\n") == 1
    assert sentence.startswith("cannot read ")
    assert "Permission denied" in sentence
    assert (name or "copy") in sentence


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", ["manifest.json", "select.onnx", "embeddings.bin"])
def test_a_disk_that_fails_is_one_sentence(copy: Path, name: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(code, os.strerror(code), str(self))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(PruneVidError, match=f"^cannot read .*{name}: {os.strerror(code)}$"):
        open_bundle(copy)


def test_places_that_are_no_folder_are_one_sentence(copy: Path) -> None:
    for path in (copy / "tokenizer.json", copy / "tokenizer.json" / "x", copy / ("n" * 5000), copy / "a\0b"):
        with pytest.raises(PruneVidError) as error:
            open_bundle(path)
        assert str(error.value).isprintable()


def test_opening_an_honest_bundle_takes_little_memory(copy: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_bundle(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    assert json.loads((copy / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("name", ["embeddings.bin", "chat_template.jinja", "llm_post.onnx.data"])
def test_what_fails_after_opening_says_what_could_not_be_read(
    copy: Path, videos: list[AskedVideo], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading is not writing, though both happen while a bundle is made of another."""
    whole, mapped, numbers = Path.open, np.memmap, np.fromfile

    def fails(path: Any) -> bool:
        return Path(path).name == name and Path(path).parent == copy and monkeypatched

    def failing(call: Any) -> Any:
        def opened(self: Any, *arguments: Any, **options: Any) -> Any:
            if fails(self):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
            return call(self, *arguments, **options)

        return opened

    monkeypatched = False
    bundle = open_bundle(copy)
    monkeypatch.setattr(Path, "open", failing(whole))
    monkeypatch.setattr(np, "memmap", failing(mapped))
    monkeypatch.setattr(np, "fromfile", failing(numbers))
    monkeypatched = True
    parts = Split(tuple(videos[:2]), tuple(videos[2:]))
    settings = Settings("cpu-int8", min_agreement=0)
    reads: dict[str, Callable[[], Any]] = {
        "chat_template.jinja": lambda: ChatPrompt.of(bundle),
        "embeddings.bin": lambda: load(bundle, "ort-cpu"),
        "llm_post.onnx.data": lambda: quantize(bundle, parts, settings, Workspace(tmp_path / "out", "work"), Silent()),
    }
    with pytest.raises(PruneVidError, match=rf"^cannot read .*{name}: Input/output error"):
        reads[name]()


def test_a_full_disk_is_told_as_writing(copy: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        copy_file(copy / "embeddings.bin", Path("/dev/full"))
    with pytest.raises(PruneVidError, match="^cannot read .*gone: No such file"):
        copy_file(copy / "gone", copy / "new")


def test_no_memory_is_one_sentence(copy: Path) -> None:
    chain = load(copy, "ort-cpu").chain
    for rows in (2**44, 2**62):
        with pytest.raises(PruneVidError, match="there is no memory for [0-9]+ bytes: use fewer frames or words"):
            chain.new_hidden(rows)
