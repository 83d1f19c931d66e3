"""What a wheel holds: the list in pyproject.toml names every folder of modules."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_folder_of_modules_is_part_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python before 3.11 reads no TOML")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    tops = ["prunevid", *(f"prunevid/{link.name}" for link in (ROOT / "prunevid").iterdir() if link.is_symlink())]
    found = {
        f"{top}/{file.parent.relative_to(ROOT / top)}".removesuffix("/.").replace("/", ".")
        for top in tops
        for file in (ROOT / top).rglob("*.py")
    }
    assert found == set(listed)
