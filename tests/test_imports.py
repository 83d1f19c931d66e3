"""Imports run one way, calibration -> runtime -> prunevid and export -> prunevid, and in no circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What each part of the package may import of the others, wherever it stands in a module.
MAY_IMPORT = {
    "prunevid": {"prunevid"},
    "export": {"export", "prunevid"},
    "runtime": {"runtime", "prunevid"},
    "calibration": {"calibration", "runtime", "prunevid"},
}
PARTS = ("export", "runtime", "calibration")
# The command line starts every part, by name and only when it is asked to.
STARTS_THEM = {"prunevid.cli"}


def modules() -> dict[str, Path]:
    """Every module by its name; what the symbolic links lead to is found where it lies."""
    found = {}
    for part in MAY_IMPORT:
        for path in sorted((ROOT / part).rglob("*.py")):
            inside = path.relative_to(ROOT / part).with_suffix("").parts
            if part == "prunevid" and inside[0] in PARTS:
                continue
            names = ("prunevid", *(() if part == "prunevid" else (part,)), *inside)
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


MODULES = modules()


def imports(module: str, *, lazy: bool) -> Iterator[str]:
    """The modules of this package that a module imports: when it is loaded, or with `lazy` ever."""
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names if (name := alias.name) in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES or node.module in MODULES:
                    yield whole if whole in MODULES else str(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += [*node.body] if lazy else []
            waiting += node.orelse
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def part_of(module: str) -> str:
    second = module.split(".")[1:2]
    return second[0] if second and second[0] in PARTS else "prunevid"


def test_all_modules_are_found() -> None:
    assert {part_of(module) for module in MODULES} == set(MAY_IMPORT)
    assert len(MODULES) > 150
    assert "prunevid.bundle.manifest" in set(imports("prunevid.bundle", lazy=False))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if part_of(module) == part and module not in STARTS_THEM
        for other in imports(module, lazy=True)
        if part_of(other) not in MAY_IMPORT[part]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sorter = graphlib.TopologicalSorter({module: set(imports(module, lazy=False)) - {module} for module in MODULES})
    sorter.prepare()


def test_nothing_private_of_other_packages_is_imported() -> None:
    """What a package keeps to itself moves from one release to the next without a word."""
    private = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            private += [
                f"{module} imports {name}"
                for name in names
                if not name.startswith(("prunevid.", "__future__"))
                and any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
            ]
    # The types that type checkers alone know of: they are in no package.
    assert [each for each in private if "_typeshed" not in each] == []
