"""Bundles of schema 1: what their manifests did not say is read from the graphs, and nothing in them is trusted."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import add_engines
from fake_tensorrt_rtx import add_rtx_engines
from hostile import edit_manifest, record
from schema_1 import DEMO, as_schema_1

from prunevid import PruneVidError
from prunevid.bundle import SCHEMA_VERSION, open_bundle
from prunevid.calibration.quantize.calibrate import Settings, quantize
from prunevid.calibration.questions import AskedVideo, Split
from prunevid.calibration.workspace import Workspace
from prunevid.cli import main
from prunevid.console.progress import Silent
from prunevid.runtime import load
from prunevid.runtime.demo.asking import BUNDLE, CLIP

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def old(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A bundle of schema 1, to be changed."""
    return as_schema_1(tiny_bundle("qwen2", "ort"), tmp_path / "old")


def test_the_manifest_that_shipped_with_schema_1_opens_as_todays(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "demo"))
    shutil.copy(DEMO, folder / "manifest.json")
    # Files that a later export writes in another way have other checksums, and only those.
    record(folder, *(name for name in json.loads(DEMO.read_text())["files"]))
    opened, shipped = open_bundle(folder).manifest, open_bundle(BUNDLE).manifest
    assert opened == shipped
    assert opened.schema_version == SCHEMA_VERSION
    question = "What colour is the circle?"
    answers = [load(place).ask(CLIP, question, max_new_tokens=4) for place in (folder, BUNDLE)]
    assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_what_schema_1_did_not_say_is_read_from_the_graphs(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, name: str, dialect: str
) -> None:
    source = tiny_bundle(name, dialect)
    assert open_bundle(as_schema_1(source, tmp_path / "old")).manifest == open_bundle(source).manifest


def test_a_quantized_bundle_of_schema_1_opens_with_its_cache(
    tiny_bundle: Callable[[str, str], Path], videos: list[AskedVideo], tmp_path: Path
) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", "ort"))
    settings = Settings("cpu-int8", min_agreement=0, kv_cache="int8", max_new_tokens=1)
    workspace = Workspace(tmp_path / "out", "work")
    made = quantize(bundle, Split(tuple(videos[:2]), ()), settings, workspace, Silent())
    assert made.manifest.cache.dtype == "int8"
    assert open_bundle(as_schema_1(made.path, tmp_path / "old")).manifest == made.manifest


def refused(folder: Path, match: str) -> str:
    with pytest.raises(PruneVidError, match=match) as error:
        open_bundle(folder, verify=False)
    sentence = str(error.value)
    assert sentence.isprintable()
    return sentence


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data["graphs"].pop("merge"), "lacks the graph 'merge' .*export it again"),
        (lambda data: data["graphs"]["select"]["inputs"].pop(3), "of an older release .*kept_count.*export"),
        (lambda data: data["graphs"]["llm_pre"]["inputs"].pop(2), "of an older release .*past_length.*export"),
    ],
)
def test_graphs_of_an_older_release_are_refused(old: Path, change: Change, match: str) -> None:
    edit_manifest(old, change)
    assert "export" in refused(old, match)


PATHS = ["", "model", "model.decoder", "prompt", "prune", "graphs.llm_pre", "embeddings", "preprocessing"]


@pytest.mark.parametrize("where", PATHS)
def test_an_unknown_entry_is_named_as_unknown_at_every_depth(old: Path, where: str) -> None:
    def change(data: dict[str, Any]) -> None:
        for name in filter(None, where.split(".")):
            data = data[name]
        data["surprise"] = 1

    edit_manifest(old, change)
    sentence = refused(old, "entry 'surprise', which this one does not know; update prunevid")
    assert "damaged" not in sentence


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("", "cache"),
        ("", "blocks"),
        ("model", "tied"),
        ("prune", "method"),
        ("", "token_layout"),
        ("prompt", "question_tokenizer"),
        ("graphs.select", "files"),
    ],
)
def test_entries_of_a_later_schema_are_unknown_to_schema_1(old: Path, where: str, name: str) -> None:
    def change(data: dict[str, Any]) -> None:
        for part in filter(None, where.split(".")):
            data = data[part]
        data[name] = None

    edit_manifest(old, change)
    refused(old, f"entry '{name}', which this one does not know")


def test_a_graph_of_another_release_is_not_even_read(old: Path) -> None:
    edit_manifest(old, lambda data: data["graphs"].update(speech={"file": "/etc/passwd"}))
    refused(old, "has the graph 'speech', which this one does not know")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data.pop("graphs"), "lacks 'graphs'"),
        (lambda data: data.update(graphs=[]), "graphs is not an object"),
        (lambda data: data["graphs"].update(select=None), "graphs.select is not an object"),
        (lambda data: data["graphs"]["select"].pop("file"), "graphs.select.file is None"),
        (lambda data: data["graphs"]["select"].update(file=["x"]), "graphs.select.file is "),
        (lambda data: data["graphs"]["select"].update(file="../select.onnx"), "lies outside it: do not use it"),
        (lambda data: data["graphs"]["select"].update(file="other.onnx"), "'other.onnx' is not in its files"),
        (lambda data: data["graphs"]["select"].update(file="tokenizer.json"), "cannot load .*tokenizer.json"),
        (lambda data: data.pop("files"), "is not in its files"),
        (lambda data: data.update(files=[]), "is not in its files"),
        (lambda data: data["files"].update({"select.onnx": 3}), "files.select.onnx is not an object"),
        (lambda data: data["files"]["select.onnx"].update(size=-1), "size must be"),
        (lambda data: data["files"]["select.onnx"].update(size=10**9), "bytes, and 67108864 are the most"),
        (lambda data: data["files"]["select.onnx"].update(size=5), "copy it whole or export it again"),
        (lambda data: data.pop("model"), "lacks 'model'"),
        (lambda data: data.update(model=1), "model is not an object"),
        (lambda data: data.pop("embeddings"), "lacks 'embeddings'"),
        (lambda data: data["embeddings"].update(file=7), "embeddings.file is 7"),
        (lambda data: data["embeddings"].update(dtype="object"), "dtype must be"),
        (lambda data: data.pop("dialect"), "dialect is None"),
        (lambda data: data.update(dialect="tensorrt"), "its dialect is 'tensorrt'"),
        (lambda data: data.update(dialect=["ort"]), "dialect is "),
        (lambda data: data.update(quantization=[]), "quantization is not an object"),
        (lambda data: data.update(quantization={"kv_cache": {}}), "manifest.json"),
        (lambda data: data.update(quantization={"kv_cache": "int8"}), "manifest.json"),
    ],
)
def test_a_manifest_of_schema_1_is_trusted_as_little_as_any_other(old: Path, change: Change, match: str) -> None:
    edit_manifest(old, change)
    refused(old, match)


def migrate_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["migrate", str(folder)])
    return status, *capsys.readouterr()


def test_the_command_writes_todays_manifest_once(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_bundle(old).manifest
    others = {path: path.stat().st_mtime_ns for path in old.iterdir() if path.name != "manifest.json"}
    assert migrate_command(old, capsys) == (0, f"{old}: schema 1 -> {SCHEMA_VERSION}\n", "")
    text = (old / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
    assert open_bundle(old).manifest == opened
    assert migrate_command(old, capsys) == (0, f"{old}: schema {SCHEMA_VERSION} already, nothing to do\n", "")
    assert (old / "manifest.json").read_text(encoding="utf-8") == text
    assert {path: path.stat().st_mtime_ns for path in old.iterdir() if path.name != "manifest.json"} == others


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(schema_version=SCHEMA_VERSION + 1), "update prunevid or export it again"),
        (lambda data: data.update(schema_version=0), "export it again"),
        (lambda data: data["graphs"].pop("merge"), "lacks the graph 'merge'"),
        (lambda data: data["model"].update(colour="red"), "has the entry 'colour'"),
    ],
)
def test_what_cannot_be_migrated_stays_as_it_is(
    old: Path, capsys: pytest.CaptureFixture[str], change: Change, said: str
) -> None:
    edit_manifest(old, change)
    before = (old / "manifest.json").read_bytes()
    status, out, err = migrate_command(old, capsys)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert (old / "manifest.json").read_bytes() == before


def test_an_altered_bundle_is_not_migrated(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = bytearray((old / "embeddings.bin").read_bytes())
    table[7] ^= 1
    (old / "embeddings.bin").write_bytes(table)
    assert migrate_command(old, capsys)[:2] == (2, "")
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == 1


def test_a_bundle_that_is_being_changed_is_left_alone(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom prunevid.locks import only_one\n"
        "with only_one(Path(sys.argv[1]), 'building engines of it'):\n    print('held', flush=True)\n"
        "    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(old / ".build.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        status, out, err = migrate_command(old, capsys)
        other.communicate()
    assert (status, out) == (2, "")
    assert f"is changing {old} already" in err
    assert open_bundle(old)
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == 1


def test_a_bundle_that_cannot_be_written_to_is_left_alone(
    old: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    status, out, err = migrate_command(old, capsys)
    assert (status, out) == (2, "")
    assert f"migrating {old} failed: No space left on device" in err
    assert sorted(path.name for path in old.iterdir() if path.name.startswith(".")) == []


def test_engines_of_schema_1_become_sets(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "todays"))
    add_engines(folder)
    todays = add_rtx_engines(folder).manifest
    old = as_schema_1(folder, tmp_path / "old")
    data = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    assert data["engines"]["device"]["gpu"] == todays.engine_sets[0].gpu
    assert data["rtx_engines"].keys() == {"release", "capabilities", "graphs"}
    assert open_bundle(old).manifest == todays


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["engines"].update(colour="red"), "manifest.json.engines has the entry 'colour'"),
        (lambda data: data["engines"]["device"].update(colour="red"), "engines.device has the entry 'colour'"),
        (lambda data: data["rtx_engines"].update(gpu="Orin"), "manifest.json.rtx_engines has the entry 'gpu'"),
        (lambda data: data["engines"].pop("graphs"), "manifest.json.engines lacks 'graphs'"),
        (lambda data: data["engines"]["device"].update(gpu=7), "manifest.json.engines.device.gpu is 7, and no text"),
        (lambda data: data.update(engines=[]), "manifest.json.engines is not an object"),
        (lambda data: data.update(rtx_engines="x"), "manifest.json.rtx_engines is not an object"),
        (lambda data: data.update(engine_sets=[]), "manifest.json has the entry 'engine_sets'"),
    ],
)
def test_engines_of_schema_1_are_not_trusted(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path, change: Change, said: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "portable"), tmp_path / "todays"))
    add_engines(folder)
    add_rtx_engines(folder)
    old = as_schema_1(folder, tmp_path / "old")
    edit_manifest(old, change)
    with pytest.raises(PruneVidError, match=re.escape(said)):
        open_bundle(old)
