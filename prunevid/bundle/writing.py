"""Writing a bundle, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunevid.bundle.manifest import MANIFEST, Manifest
from prunevid.errors import PruneVidError


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``folder``, whole or not at all: the last step of an export or a build."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    partial = folder / f".{MANIFEST}.partial"
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(folder / MANIFEST)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_bundle(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its name when the block ends, and vanishes when it fails.

    Raises PruneVidError if ``output`` exists and is not a bundle that ``overwrite`` allows to replace, or cannot be
    written.
    """
    target = Path(output)
    _check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise PruneVidError(f"cannot write to {target.parent}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise PruneVidError(f"writing {target} failed: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise PruneVidError(f"{target} exists and is not a bundle: choose another output")
    if not overwrite:
        raise PruneVidError(f"{target} exists already: choose another output, or replace it with --force")
