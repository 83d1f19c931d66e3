"""Changing a bundle in place: one process at a time, and nothing of it is seen before all of it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunevid.bundle.manifest import MANIFEST, Manifest
from prunevid.bundle.opening import Bundle
from prunevid.bundle.writing import write_manifest
from prunevid.errors import PruneVidError
from prunevid.locks import only_one

__all__ = ["changing", "check_unchanged", "replace_manifest"]

_LOCK = ".build.lock"


@contextmanager
def changing(bundle: Bundle, work: str) -> Iterator[Path]:
    """A folder within the bundle for what is being made, while no other process changes the bundle.

    It has to be moved out of the folder, which no other bundle has: where one comes into the place of this one, moving
    fails, and what came stays as it is. The folder vanishes at the end.

    Args:
        bundle: The bundle.
        work: What is done to it, as in "building engines of".

    Raises:
        PruneVidError: Another process changes it, it was replaced since it was opened, or it cannot be written to.
    """
    try:
        with only_one(bundle.path / _LOCK, f"changing {bundle.path}"):
            check_unchanged(bundle, work)
            with tempfile.TemporaryDirectory(prefix=".build-", dir=bundle.path) as folder:
                yield Path(folder)
    except OSError as error:
        # What was staged went away with the folder that was replaced.
        check_unchanged(bundle, work)
        raise PruneVidError(f"{work} {bundle.path} failed: {error.strerror or error}") from error


def check_unchanged(bundle: Bundle, work: str) -> None:
    """Raise PruneVidError where the folder holds another bundle than this one by now."""
    if not bundle.is_current():
        raise PruneVidError(f"{bundle.path} was replaced meanwhile: start {work} it again")


def replace_manifest(bundle: Bundle, folder: Path, manifest: Manifest) -> None:
    """Give the bundle another manifest. `folder`: from `changing`."""
    write_manifest(folder, manifest)
    (folder / MANIFEST).replace(bundle.path / MANIFEST)
