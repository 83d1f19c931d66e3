"""Writing a bundle, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunevid.bundle.manifest import MANIFEST, Manifest
from prunevid.bundle.renaming import exchange, rename_new
from prunevid.errors import PruneVidError


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, whole or not at all: the last step of an export or a build."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    partial = folder / f".{MANIFEST}.partial"
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(folder / MANIFEST)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Found:
    """What was at a place: a folder by its inode, its manifest by inode, change time and size (None: none)."""

    folder: tuple[int, int]
    manifest: tuple[int, int, int] | None


@contextmanager
def new_bundle(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its name when the block ends, and vanishes when it fails.

    A bundle that is replaced is there until the new one is, and whoever opens it finds one of them. Raises
    PruneVidError if `output` exists and is not a bundle that `overwrite` allows to replace, cannot be written, or
    is no longer what it was when the block began: that stays as it is.
    """
    target = Path(os.path.abspath(output))
    found = check_target(output, overwrite)
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        _remove_empty(missing)
        raise PruneVidError(f"cannot write to {target.parent}: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        _publish(partial, target, found)
    except OSError as error:
        raise PruneVidError(f"writing {output} failed: {error.strerror or error}; nothing was kept") from error
    finally:
        # The folder that failed, or the one that was replaced.
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(missing)


def check_target(output: str | os.PathLike[str], overwrite: bool = False) -> _Found | None:
    """What is at `output`, and may be replaced; None for nothing.

    Raises PruneVidError where there is something else: a link, a place of a file system, the current folder, a file,
    a folder with other things in it, a bundle unless `overwrite`.
    """
    if not os.fspath(output):
        raise PruneVidError("the path of the output is empty: give the name of a folder")
    target = Path(os.path.abspath(output))
    try:
        if target.is_symlink():
            raise PruneVidError(f"{output} is a link, which is not replaced: give the folder that it leads to")
        if not target.exists():
            return None
        if os.path.ismount(target):
            raise PruneVidError(f"{output} is where a file system is mounted: give a folder within it")
        if os.path.samefile(target, os.curdir):
            raise PruneVidError(f"{output} is the current folder: give a folder within it")
        found = _found(target)
        if found and not found.manifest and not any(target.iterdir()):
            return found
        if not found or not _is_bundle(target):
            raise PruneVidError(f"{output} exists and is not a bundle: choose another output")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PruneVidError(f"cannot write to {output}: {reason or error}") from error
    if not overwrite:
        raise PruneVidError(f"{output} exists already: choose another output, or replace it with --force")
    return found


def _publish(partial: Path, target: Path, found: _Found | None) -> None:
    """Give a finished bundle its name, unless something else has come there that was not `found` before."""
    now = _found(target) if os.path.lexists(target) else None
    if now is None and not os.path.lexists(target):
        try:
            rename_new(partial, target)
        except FileExistsError as error:
            raise _changed(target) from error
        return
    if found is None or now != found:
        raise _changed(target)
    exchange(partial, target)
    # What was replaced lies at `partial` now, and cannot change any more.
    if _found(partial) != found or (found.manifest is None and any(partial.iterdir())):
        exchange(partial, target)
        raise _changed(target)


def _changed(target: Path) -> PruneVidError:
    return PruneVidError(
        f"{target} was made or changed by someone else meanwhile, and is left as it is; nothing was written: choose "
        "another output"
    )


def _found(folder: Path) -> _Found | None:
    """None where there is no folder."""
    try:
        at = folder.lstat()
        if not stat.S_ISDIR(at.st_mode):
            return None
    except FileNotFoundError:
        return None
    try:
        manifest = (folder / MANIFEST).stat()
    except FileNotFoundError:
        return _Found((at.st_dev, at.st_ino), None)
    return _Found((at.st_dev, at.st_ino), (manifest.st_ino, manifest.st_ctime_ns, manifest.st_size))


def _is_bundle(folder: Path) -> bool:
    """Whether a folder's manifest is a bundle's, of whatever release: other things have a manifest.json, too."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "schema_version" in data


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, where nothing came into them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
