"""The bundle of `prunevid demo` is what exporting the demo checkpoint gives today; where not, run demo/ship.py.

Every file is compared byte for byte but two: of the manifest the field created_by and the record of vision_merge.onnx
are left out, and vision_merge.onnx, which torch traces in another way with every release, is compared by its inputs and
outputs and by what it computes of the clip. Its weights are a file of their own, and so compared like the others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from models import cpu_session

from prunevid.runtime import load
from prunevid.runtime.demo.asking import BUNDLE, CLIP
from prunevid.runtime.video.pixel_values import preprocess

ROOT = Path(__file__).resolve().parents[1]
TRACED = "vision_merge.onnx"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prunevid.export import export

    return export("demo", tmp_path_factory.mktemp("demo") / "bundle", precision="fp16").path


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["created_by"], manifest["files"][TRACED]
    return manifest


def test_the_shipped_bundle_is_a_fresh_export(fresh: Path) -> None:
    names = {path.name for path in fresh.iterdir()}
    assert {path.name for path in BUNDLE.iterdir()} == names
    assert _manifest(BUNDLE) == _manifest(fresh)
    for name in sorted(names - {"manifest.json", TRACED}):
        assert (BUNDLE / name).read_bytes() == (fresh / name).read_bytes(), name


def test_the_shipped_tower_computes_what_a_fresh_one_does(fresh: Path) -> None:
    described, features, merged = [], [], []
    for folder in (BUNDLE, fresh):
        session = cpu_session(str(folder / TRACED))
        described.append([(x.name, x.type, x.shape) for x in (*session.get_inputs(), *session.get_outputs())])
        pipeline = load(folder)
        with av.open(str(CLIP)) as container:
            images = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        pixels = preprocess(images, pipeline.bundle.manifest.preprocessing)
        features.append(np.asarray(pipeline.chain.encode(pixels), np.float32))
        merged.append(pipeline.chain.encode_and_merge(pixels, pipeline.bundle.manifest.prune))
    assert described[0] == described[1]
    assert features[0].shape == (16, 64, 128)
    np.testing.assert_allclose(features[0], features[1], atol=0.01)
    np.testing.assert_array_equal(merged[0].patch_to_token, merged[1].patch_to_token)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files without what git ignores: setuptools leaves folders of its own beside what it builds."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("prunevid", "export", "runtime", "calibration"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_wheel_and_sdist_carry_the_demo(copied: Path, tmp_path: Path) -> None:
    hooks = "from setuptools.build_meta import build_sdist, build_wheel"
    for made in ("build_wheel", "build_sdist"):
        code = f"import sys; {hooks}; {made}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=copied, check=True, capture_output=True)
    wanted = {f"runtime/demo/bundle/{path.name}" for path in BUNDLE.iterdir()} | {
        "runtime/demo/clip.mp4",
        "runtime/demo/clip.json",
    }
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"prunevid/{name}" for name in wanted} <= set(archive.namelist())
    with tarfile.open(sdist) as archive:
        root = sdist.name.removesuffix(".tar.gz")
        assert {f"{root}/prunevid/{name}" for name in wanted} <= set(archive.getnames())
