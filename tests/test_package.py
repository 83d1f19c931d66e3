"""What users install: the packages, sdist and wheel, and the wheel's commands in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = {"prunevid": "prunevid", **{f"prunevid/{part}": part for part in ("export", "runtime", "calibration")}}
NO_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "bundles", "*.egg-info")


def test_every_folder_of_modules_is_part_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python before 3.11 reads no TOML")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {str(Path(name).parent).replace("/", ".") for name in sources() if name.endswith(".py")}
    assert found == set(listed)


def sources() -> set[str]:
    """Every file of the package, by its place in a wheel."""
    return {
        f"{top}/{file.relative_to(ROOT / folder)}"
        for top, folder in TOPS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and with the wheel that was built of it."""
    pytest.importorskip("build")
    checkout = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=NO_SOURCES)
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(checkout)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def test_the_wheel_holds_every_file_of_the_package_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        notes = {name.partition("/")[2] for name in file.namelist() if ".dist-info/" in name}
    assert names == sources()
    assert {"licenses/LICENSE", "entry_points.txt"} <= notes


def test_the_sdist_holds_the_package_and_no_part_of_the_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
        links = [member.name for member in file if member.issym()]
    assert sources() <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("tests")]
    assert links == []


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of an environment that has the wheel; its dependencies are those of the tests."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, capture_output=True, check=True, timeout=300)
    (site,) = home.glob("lib/python*/site-packages")
    # Folders named in a .pth are searched, but their own .pth files, by which an editable install works, are not read.
    paths = [sysconfig.get_path("purelib"), *(entry for entry in sys.path if entry.endswith("-packages"))]
    (site / "dependencies.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n", encoding="utf-8")
    return home / "bin"


def run(command: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [str(command), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_commands_work_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import prunevid.runtime as it; print(it.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "commands:" in run(installed / "prunevid", "--help", cwd=tmp_path)
    estimate = run(installed / "prunevid-fit", "--model", "llava-ov-0.5b", "--device", "orin-nano-8gb", cwd=tmp_path)
    assert "llava-ov-0.5b" in estimate
    assert "pruned" in run(installed / "prunevid-demo", cwd=tmp_path)


def test_the_installed_exporter_writes_a_bundle_that_answers(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run(installed / "prunevid-export", "--model", "demo", "--output", "demo", cwd=tmp_path)
    assert json.loads((tmp_path / "demo" / "manifest.json").read_text(encoding="utf-8"))["model"]["name"] == "demo"
    question = "which way does the white triangle move?"
    clip = str(ROOT / "demo" / "clip.mp4")
    assert run(installed / "prunevid-run", "demo", "--video", clip, "--question", question, cwd=tmp_path).strip()
