"""Opening a bundle: reading its manifest, and holding its files against it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prunevid.bundle.checksums import sha256_of
from prunevid.bundle.codec import UnknownEntryError, decode, read_json
from prunevid.bundle.consistency import LARGEST_GRAPH, check_manifest
from prunevid.bundle.contract import ContractError, MissingGraphError
from prunevid.bundle.graphs import check_graph, read_graph
from prunevid.bundle.manifest import MANIFEST, SCHEMA_VERSION, FileRecord, Manifest
from prunevid.bundle.migrate import OLDEST_SCHEMA, ReadGraph, migrate
from prunevid.bundle.names import InvalidNameError, check_names
from prunevid.errors import PruneVidError
from prunevid.files import reading
from prunevid.onnx_file import OnnxFile
from prunevid.validation import shown

_T = TypeVar("_T")

# The largest, of a decoder of 80 layers with engines, has a tenth of that.
_LARGEST_MANIFEST = 4 << 20

_REPLACED_AT_MOST = 100


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files. Raises PruneVidError if the manifest does not list it."""
        if name not in self.manifest.files:
            raise PruneVidError(f"the bundle {self.path} lists no file {shown(name)}: export it again")
        return self.path / name

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.manifest.files.values())

    def is_current(self) -> bool:
        """Whether the folder still holds this bundle, and not one that replaced it."""
        try:
            return _read_manifest(self.path).files == self.manifest.files
        except (OSError, PruneVidError):
            return False


def open_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Read and check a bundle, which is untrusted until then.

    The manifest, the kinds and sizes of all files and what the graphs hold are always checked; `verify` also hashes
    every file. Files that the manifest does not list are never read. A bundle that is replaced meanwhile is opened
    again. Raises PruneVidError where the folder, its manifest or a file is missing, cannot be read, is truncated or
    altered, where the manifest is of another version, where its parts do not go together, or where anything lies
    outside the folder.
    """
    if not os.fspath(path):
        raise PruneVidError("the path of the bundle is empty: give the folder that `prunevid export` made")
    folder = Path(path)
    for _ in range(_REPLACED_AT_MOST):
        before = _stamp(folder)
        try:
            opened = _open_once(folder, verify)
        except PruneVidError:
            if _stamp(folder) == before:
                raise
            continue
        if _stamp(folder) == before:
            return opened
    raise PruneVidError(f"{folder} is replaced again and again: try again when that is over")


def _stamp(folder: Path) -> tuple[int, ...]:
    """What tells whether a bundle was replaced, or got engines: its folder's inode, and its manifest's."""
    try:
        manifest = (folder / MANIFEST).stat()
        return folder.stat().st_ino, manifest.st_ino, manifest.st_ctime_ns
    except (OSError, ValueError):
        return ()


def _open_once(folder: Path, verify: bool) -> Bundle:
    with reading(folder):
        if not folder.exists():
            raise PruneVidError(f"there is no bundle at {folder}: make one with `prunevid export`")
        if not (folder / MANIFEST).is_file():
            raise PruneVidError(f"{folder} is not a bundle: it has no {MANIFEST}")
        root = folder.resolve()
    manifest = _read_manifest(folder)
    for name, record in manifest.files.items():
        _check_file(folder, root, name, record)
    for graph in manifest.graphs:
        _check_graph(folder, manifest, graph)
    if verify:
        _check_contents(folder, manifest.files)
    return Bundle(folder, manifest)


def schema_version_of(folder: Path) -> int:
    """The schema of a bundle's manifest, as its file has it. Raises PruneVidError where there is none that is read."""
    path = folder / MANIFEST
    try:
        version: int = _read_data(folder)["schema_version"]
    except (ValueError, RecursionError) as error:
        raise PruneVidError(f"{path} is damaged ({error}): export the bundle again") from error
    return version


def _read_data(folder: Path) -> dict[str, Any]:
    """The manifest's JSON, of a schema that is read. Raises ValueError or RecursionError where it is no JSON."""
    path = folder / MANIFEST
    with reading(path), path.open("rb") as file:
        text = file.read(_LARGEST_MANIFEST + 1)
    if len(text) > _LARGEST_MANIFEST:
        raise ValueError(f"it has more than {_LARGEST_MANIFEST} bytes")
    data = read_json(text)
    _check_version(folder, data)
    assert isinstance(data, dict)  # else it would have no version
    return data


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        data = _read_data(folder)
        manifest: Manifest = decode(Manifest, migrate(data, _graph_reader(folder, data)), MANIFEST)
        check_manifest(manifest)
    except MissingGraphError as error:
        raise PruneVidError(
            f"the bundle {folder} lacks the graph {str(error)!r} (an older release wrote it, or it is damaged): "
            "export it again"
        ) from error
    except UnknownEntryError as error:
        raise PruneVidError(
            f"{path} is of another release: {error}, which this one does not know; update prunevid or export it again"
        ) from error
    except InvalidNameError as error:
        raise PruneVidError(f"the bundle {folder} {error}: do not use it") from error
    except ContractError as error:
        raise PruneVidError(f"{path} is damaged, or of an older release ({error}): export the bundle again") from error
    except (ValueError, RecursionError) as error:  # endless nesting is no JSONDecodeError
        raise PruneVidError(f"{path} is damaged ({error}): export the bundle again") from error
    return manifest


def _check_version(folder: Path, data: Any) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    # A bool is an int, and no version.
    number = version if isinstance(version, int) and not isinstance(version, bool) else 0
    if not OLDEST_SCHEMA <= number <= SCHEMA_VERSION:
        raise PruneVidError(
            f"{folder} has bundle schema version {shown(version)}, this release reads {OLDEST_SCHEMA} to "
            f"{SCHEMA_VERSION}: {'update prunevid or ' if number > SCHEMA_VERSION else ''}export it again"
        )


def _graph_reader(folder: Path, data: dict[str, Any]) -> ReadGraph:
    """Reads the graphs of a manifest that is yet to be migrated, and trusts it as little as any other."""

    def read(name: str) -> OnnxFile:
        check_names([name])
        files = data.get("files")
        if not isinstance(files, dict) or name not in files:
            raise ValueError(f"{shown(name)} is not in its files")
        record: FileRecord = decode(FileRecord, files[name], f"{MANIFEST}.files.{name}")
        if record.size > LARGEST_GRAPH:
            raise ValueError(f"{shown(name)} has {record.size} bytes, and {LARGEST_GRAPH} are the most")
        with reading(folder):
            root = folder.resolve()
        _check_file(folder, root, name, record)
        return _load(folder / name, lambda: read_graph(folder / name, record))

    return read


def _check_file(folder: Path, root: Path, name: str, record: FileRecord) -> None:
    """A plain file of that size, that does not lie elsewhere by way of a link."""
    path = folder / name
    try:
        with reading(path):
            if not path.resolve().is_relative_to(root):
                raise PruneVidError(f"the bundle {folder} names the file {name}, which lies outside it: do not use it")
            status = path.stat()
    except RuntimeError as error:  # what resolve() says of links in a circle before Python 3.13
        raise PruneVidError(f"cannot read {path}: its links lead in a circle") from error
    except PruneVidError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            raise PruneVidError(
                f"the bundle {folder} lacks its file {name}: copy it whole or export it again"
            ) from error
        raise
    if not stat.S_ISREG(status.st_mode):
        raise PruneVidError(f"{path} is no plain file, as a bundle's are: copy it whole or export it again")
    if status.st_size != record.size:
        raise PruneVidError(
            f"{path} has {status.st_size} bytes where the bundle has {record.size}: copy it whole or export it again"
        )


def _check_graph(folder: Path, manifest: Manifest, name: str) -> None:
    _load(folder / manifest.graphs[name].file, lambda: check_graph(folder, manifest, name))


def _load(path: Path, read: Callable[[], _T]) -> _T:
    """What `read` makes of a graph's file. Raises PruneVidError where it is refused."""
    try:
        with reading(path):
            return read()
    except ValueError as error:
        raise PruneVidError(f"cannot load {path}, since {error}: export the bundle again") from error


def _check_contents(folder: Path, files: dict[str, FileRecord]) -> None:
    def digest_of(name: str) -> str:
        with reading(folder / name):
            return sha256_of(folder / name)

    # Hashing releases the interpreter's lock, and the weights of one graph take as long as all the rest.
    pool = ThreadPoolExecutor()
    try:
        for (name, record), digest in zip(files.items(), pool.map(digest_of, files), strict=True):
            if digest != record.sha256:
                raise PruneVidError(
                    f"{folder / name} was altered since the export (its SHA-256 differs): export the bundle again"
                )
    finally:
        # Ctrl-C should not wait until all is hashed.
        pool.shutdown(cancel_futures=True)
