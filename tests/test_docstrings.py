"""One form of docstrings: names stand in single backticks, and a sentence says what is meant."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("prunevid", "export", "runtime", "calibration", "benchmarks", "demo", "tests")
# A role of Sphinx, double backticks of reStructuredText, and a reference that stands for a sentence.
OTHER_FORMS = re.compile(r":(class|func|meth|mod|data|attr|exc):`|``|\ASee `[\w.]+`[.;:]")


def docstrings(folder: str) -> Iterator[tuple[str, str]]:
    """Every docstring of a folder, with where it stands."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text is not None:
                    yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_have_one_form(folder: str) -> None:
    found = list(docstrings(folder))
    assert len(found) > 20
    assert [where for where, text in found if OTHER_FORMS.search(text)] == []


@pytest.mark.parametrize("text", ["Like :func:`load`.", "Reads ``x``.", "See `Backend`.", "See `a.Backend`; twice."])
def test_other_forms_are_found(text: str) -> None:
    assert OTHER_FORMS.search(text)
