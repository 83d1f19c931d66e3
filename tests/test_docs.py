"""Docs name what is there: files, folders, modules, and the pages that they link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(
    path
    for folder in (ROOT, *(ROOT / name for name in ("docs", "demo", "benchmarks")))
    for path in folder.glob("*.md")
    # What a changelog names may be gone.
    if path.name != "CHANGELOG.md"
)
FOLDERS = ("prunevid", "export", "runtime", "calibration", "tests", "benchmarks", "demo", "docs", ".ci")
# What is in backticks and begins like one of the folders, without blanks and placeholders.
PATH = re.compile(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*)`")
MODULE = re.compile(r"`(prunevid(?:\.\w+)+)")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)")


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCS, ids=ids)
def test_files_and_folders_are_there(path: Path) -> None:
    named = set(PATH.findall(path.read_text(encoding="utf-8")))
    # Placeholders are in capitals: what a reader is to write.
    invented = {name for name in named if Path(name).stem.isupper() and not name.endswith(".md")}
    assert [name for name in sorted(named - invented) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCS, ids=ids)
def test_modules_are_there(path: Path) -> None:
    missing = []
    for name in sorted(set(MODULE.findall(path.read_text(encoding="utf-8")))):
        parts = name.split(".")
        module, rest = "prunevid", parts[1:]
        while rest and (ROOT / "/".join([*module.split("."), rest[0]])).exists():
            module, rest = f"{module}.{rest[0]}", rest[1:]
        file = ROOT / "/".join(module.split("."))
        if rest and (file / f"{rest[0]}.py").exists():
            file, rest = file / f"{rest[0]}.py", rest[1:]
        else:
            file = file / "__init__.py"
        # What is left is a name in it, and an attribute of that.
        if rest and not re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("path", DOCS, ids=ids)
def test_links_lead_somewhere(path: Path) -> None:
    links = set(LINK.findall(path.read_text(encoding="utf-8")))
    assert [link for link in sorted(links) if not (path.parent / link).exists()] == []


def test_what_is_looked_for_is_found() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCS]
    assert all(sum(len(pattern.findall(text)) for text in texts) >= 10 for pattern in (PATH, MODULE, LINK))
