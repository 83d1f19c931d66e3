"""Refusals that no other test meets: each by its sentence, from the input that a user would give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunevid import PruneVidError
from prunevid.bundle import open_bundle
from prunevid.calibration.tuning.budget import Budget
from prunevid.calibration.tuning.search import Grid
from prunevid.cli import main
from prunevid.files import read_blocks
from prunevid.runtime import SamplingConfig
from prunevid.runtime.video.frames import check_dimensions
from prunevid.runtime.video.sources import read_frames


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a command that is refused before it does anything."""
    assert main([str(argument) for argument in arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({}, "needs a budget: --max-tokens, --max-ttft-ms or --min-agreement"),
        ({"max_tokens": 0.0}, "--max-tokens must be a share above 0 and at most 1, not 0.0"),
        ({"max_ttft_ms": 0.0}, "--max-ttft-ms must be a number of milliseconds above 0, not 0.0"),
        ({"min_agreement": 1.5}, "--min-agreement must be between 0 and 1, not 1.5"),
    ],
)
def test_budgets(limits: dict[str, float], sentence: str) -> None:
    with pytest.raises(PruneVidError) as error:
        Budget(**limits)
    assert sentence in str(error.value)


def test_a_search_without_values() -> None:
    with pytest.raises(PruneVidError, match="there must be a value to try of keep_ratio"):
        Grid({"keep_ratio": ()})


@pytest.mark.parametrize("stop", ["a text", ("",), (3,)])
def test_stop_texts(stop: Any) -> None:
    with pytest.raises(PruneVidError, match="stop must be a sequence of texts that are not empty, not"):
        SamplingConfig(stop=stop)


def test_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    export = ("export", "--model", "llava-ov", *output)
    assert "is not a checkpoint: it has no config.json" in refused(capsys, *export, "--checkpoint", tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    sentence = refused(capsys, *export, "--checkpoint", tmp_path / "empty")
    assert "is a 'gpt2' model: this exporter knows 'llava_onevision'" in sentence
    assert not (tmp_path / "out").exists()


def test_an_export_that_prunes_behind_the_last_layer(
    tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    export = ("export", "--model", "llava-ov", "--checkpoint", tiny_checkpoint("qwen2"), "--output", tmp_path / "out")
    sentence = refused(capsys, *export, "--prune-layer", "40")
    assert "prune_layer 40 leaves no layer behind it" in sentence
    assert not (tmp_path / "out").exists()


def test_a_weight_that_was_altered(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    file = folder / open_bundle(folder).manifest.embeddings.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PruneVidError, match=r"was altered since the export \(its SHA-256 differs\)"):
        open_bundle(folder)


def test_a_manifest_that_is_cut_off(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:-100])
    with pytest.raises(PruneVidError, match=r"manifest\.json is damaged \(.*\): export the bundle again"):
        open_bundle(folder)
    manifest.unlink()
    with pytest.raises(PruneVidError, match=r"is not a bundle: it has no manifest\.json"):
        open_bundle(folder)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(PruneVidError, match="ends too early: it was changed while it was read"):
        list(read_blocks(tmp_path / "file", 2, 4))


def test_videos(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(PruneVidError, match=r"no images in this folder \(JPEG, PNG, BMP, WebP or TIFF\)"):
        read_frames(folder, 2)
    for number in range(3):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes()[:20])
    with pytest.raises(PruneVidError, match="all 3 images are damaged; record or copy them again"):
        read_frames(folder, 2)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(PruneVidError, match=r"empty\.mp4: the file is empty"):
        read_frames(tmp_path / "empty.mp4", 2)
    with pytest.raises(PruneVidError, match="its first axis is 0"):
        read_frames(np.zeros((0, 8, 8, 3), np.uint8), 2)
    masked = np.ma.masked_equal(np.zeros((2, 8, 8, 3), np.uint8), 0)
    with pytest.raises(PruneVidError, match="must not have masked pixels"):
        read_frames(masked, 2)


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 1 << 20), (1 << 20, 1 << 20)])
def test_sides_of_frames(width: int, height: int) -> None:
    with pytest.raises(
        PruneVidError, match=f"x.mp4: frames of {width} x {height} pixels are outside what is supported"
    ):
        check_dimensions(width, height, "x.mp4")
