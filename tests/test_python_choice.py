"""The Python that make takes: the newest supported one that works, and one sentence where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _stub(folder: Path, name: str, version: str | None) -> Path:
    """A command that answers like a Python of this version, or fails, as pyenv's do where they are not selected."""
    path = folder / name
    answer = f'[ "$3" = {version} ] && echo "$0"' if version else "echo 'command not found' >&2; exit 127"
    path.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _find(folder: Path, *releases: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(folder), "PYENV_ROOT": str(folder / "pyenv")}
    command = ["/bin/sh", str(ROOT / ".ci" / "find-python"), *releases]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_newest_that_works_is_taken_and_what_is_lacking_is_named(tmp_path: Path) -> None:
    _stub(tmp_path, "python3.13", None)
    _stub(tmp_path, "python3.11", "3.11")
    expected = _stub(tmp_path, "python3", "3.12")
    _stub(tmp_path, "python3.10", "3.10")
    result = _find(tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, str(expected))
    assert result.stderr.strip() == f"no Python 3.13 here: taking {expected}"


def test_pyenvs_are_found_off_the_path(tmp_path: Path) -> None:
    _stub(tmp_path, "python3.13", None)
    folder = tmp_path / "pyenv" / "versions" / "3.13.0" / "bin"
    folder.mkdir(parents=True)
    expected = _stub(folder, "python3.13", "3.13")
    result = _find(tmp_path)
    assert (result.stdout.strip(), result.stderr) == (str(expected), "")


def test_no_python_is_one_sentence(tmp_path: Path) -> None:
    _stub(tmp_path, "python3", "3.9")
    result = _find(tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.strip() == (
        "no Python 3.13, 3.12, 3.11, 3.10 here: install one of them, or name another with PYTHON=/path/to/python"
    )


def test_a_release_can_be_asked_for(tmp_path: Path) -> None:
    _stub(tmp_path, "python3.13", "3.13")
    assert _find(tmp_path, "3.12").returncode == 1


def test_a_real_python_is_named_by_its_own_path() -> None:
    release = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {"PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), "/usr/bin", "/bin"])}
    result = subprocess.run(
        [str(ROOT / ".ci" / "find-python"), release], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    assert Path(result.stdout.strip()).exists()


@pytest.mark.parametrize("release", ["3.10", "3.11", "3.12", "3.13"])
def test_what_is_looked_for_is_what_the_project_supports(release: str) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10,<3.14"' in text
    assert f"Python :: {release}" in text
    assert release in (ROOT / ".ci" / "find-python").read_text(encoding="utf-8")
