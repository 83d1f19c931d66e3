"""Opening a bundle: reading its manifest, and holding its files against it."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prunevid.bundle.checksums import sha256_of
from prunevid.bundle.codec import decode
from prunevid.bundle.manifest import GRAPHS, MANIFEST, SCHEMA_VERSION, FileRecord, Manifest
from prunevid.errors import PruneVidError


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files. Raises PruneVidError if the manifest does not list it."""
        if name not in self.manifest.files:
            raise PruneVidError(f"the bundle {self.path} lists no file {name!r}: export it again")
        return self.path / name

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.manifest.files.values())


def open_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Sizes are always checked; ``verify`` also hashes every file. Raises PruneVidError where the folder, its manifest
    or a file is missing, truncated or altered, where the manifest is of another version, or where it names a path
    that leaves the folder.
    """
    folder = Path(path)
    if not folder.exists():
        raise PruneVidError(f"there is no bundle at {folder}: make one with `prunevid export`")
    if not (folder / MANIFEST).is_file():
        raise PruneVidError(f"{folder} is not a bundle: it has no {MANIFEST}")
    manifest = _read_manifest(folder)
    for name, record in manifest.files.items():
        try:
            _check_size(folder, name, record)
        except (OSError, ValueError, RuntimeError) as error:  # null bytes, endless names, links in a circle
            raise PruneVidError(f"the bundle {folder} names the file {name[:80]!r}, which no file can be") from error
    if verify:
        _check_contents(folder, manifest.files)
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # huge numbers and endless nesting are no JSONDecodeError
        raise PruneVidError(f"{folder / MANIFEST} is damaged ({error}): export the bundle again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise PruneVidError(
            f"{folder} has bundle schema version {version!r}, this release reads {SCHEMA_VERSION}: export it again"
        )
    try:
        manifest: Manifest = decode(Manifest, data, MANIFEST)
    except (ValueError, OverflowError) as error:
        raise PruneVidError(f"{folder / MANIFEST} is damaged ({error}): export the bundle again") from error
    if missing := sorted(GRAPHS - manifest.graphs.keys()):
        raise PruneVidError(
            f"the bundle {folder} lacks the graph {missing[0]!r} (an older release wrote it, or it is damaged): "
            "export it again"
        )
    if manifest.prune.prune_layer > manifest.model.decoder.layers - 2:
        raise PruneVidError(f"{folder / MANIFEST} is damaged (no layer is behind its prune_layer): export it again")
    if manifest.engines and manifest.engines.graphs.keys() != manifest.graphs.keys():
        raise PruneVidError(f"{folder / MANIFEST} is damaged (not every graph has an engine): export it again")
    named = [graph.file for graph in manifest.graphs.values()]
    named += [manifest.embeddings.file, manifest.prompt.tokenizer, manifest.prompt.chat_template]
    named += [engine.file for engine in manifest.engines.graphs.values()] if manifest.engines else []
    for name in named:
        if name not in manifest.files:
            raise PruneVidError(f"{folder / MANIFEST} is damaged ({name!r} is not in its files): export it again")
    return manifest


def _check_size(folder: Path, name: str, record: FileRecord) -> None:
    relative = PurePosixPath(name)
    path = folder / name
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise PruneVidError(f"the bundle {folder} names the file {name!r}, which lies outside it: do not use it")
    if not path.is_file():
        raise PruneVidError(f"the bundle {folder} lacks its file {name}: copy it whole or export it again")
    size = path.stat().st_size
    if size != record.size:
        raise PruneVidError(
            f"{path} has {size} bytes where the bundle has {record.size}: copy it whole or export it again"
        )


def _check_contents(folder: Path, files: dict[str, FileRecord]) -> None:
    # Hashing releases the interpreter's lock, and the weights of one graph take as long as all the rest.
    with ThreadPoolExecutor() as pool:
        found = pool.map(sha256_of, (folder / name for name in files))
        for (name, record), digest in zip(files.items(), found, strict=True):
            if digest != record.sha256:
                raise PruneVidError(
                    f"{folder / name} was altered since the export (its SHA-256 differs): export the bundle again"
                )
