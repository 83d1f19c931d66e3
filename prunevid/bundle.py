"""The bundle: one folder that holds everything a pruned video language model needs at run time.

``manifest.json`` names every other file with its size and SHA-256. A bundle is written under a temporary name and
renamed when whole, so a killed export leaves nothing that loads; opening one verifies it, since a bundle is
untrusted input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import types
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prunevid.config import PruneConfig
from prunevid.cost import DecoderShape, VisionShape
from prunevid.engines import EngineSet
from prunevid.errors import PruneVidError
from prunevid.preprocessing import Preprocessing
from prunevid.quantization import Quantization
from prunevid.tuning import Tuning

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# The chain's graphs, which every bundle has.
GRAPHS = frozenset({"vision_merge", "llm_pre", "select", "llm_post"})
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: ONNX element type in NumPy's words; a dimension is a size or a symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph of the chain: its file in the bundle, and its inputs and outputs in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding table: a raw row-major [rows, columns] file. Row image_newline is no token of the text."""

    file: str
    dtype: str
    rows: int
    columns: int
    image_newline: int


@dataclass(frozen=True)
class PromptSpec:
    """How text becomes ids and back: files of the bundle and special tokens."""

    tokenizer: str
    chat_template: str
    video_token: str
    eos_ids: tuple[int, ...]
    max_positions: int


@dataclass(frozen=True)
class ModelSpec:
    """What was exported: the model's name and family, and its shapes. random_weights bundles are for latency only."""

    name: str
    family: str
    random_weights: bool
    tokens_per_frame: int
    decoder: DecoderShape
    vision: VisionShape


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime must know about a bundle, as ``manifest.json`` has it.

    least_onnxruntime: the first release of ONNX Runtime that runs the graphs, such as ``1.27``; None for any that the
    runtime itself accepts.
    """

    schema_version: int
    created_by: str
    model: ModelSpec
    dialect: str
    precision: str
    frames: int
    prune: PruneConfig
    graphs: dict[str, GraphSpec]
    embeddings: EmbeddingSpec
    prompt: PromptSpec
    preprocessing: Preprocessing
    files: dict[str, FileRecord]
    engines: EngineSet | None = None
    quantization: Quantization | None = None
    tuning: Tuning | None = None
    least_onnxruntime: str | None = None

    @property
    def cache_dtype(self) -> str:
        """Element type of the KV cache, as the graphs declare it, in NumPy's words."""
        return next(tensor.dtype for tensor in self.graphs["llm_pre"].inputs if tensor.name.startswith("past_key."))

    @property
    def float_type(self) -> str:
        """``fp32`` or ``fp16``: the type of all that is not quantized, whatever ``precision`` says of the weights."""
        return "fp16" if self.embeddings.dtype == "float16" else "fp32"


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
        manifest: Manifest = _decode(Manifest, data, MANIFEST)
    except (ValueError, OverflowError) as error:
        raise PruneVidError(f"{folder / MANIFEST} is damaged ({error}): export the bundle again") from error
    if missing := sorted(GRAPHS - manifest.graphs.keys()):
        raise PruneVidError(f"{folder / MANIFEST} is damaged (it lacks the graph {missing[0]}): export it again")
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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file below ``folder``, by its relative name, sorted; the manifest itself left out."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): FileRecord(p.stat().st_size, sha256_of(p)) for p in paths}


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


def _decode(kind: Any, data: Any, where: str) -> Any:
    """Build ``kind`` (dataclass, tuple, dict, union or scalar) from JSON data; ValueError names what does not fit."""
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is not a list")
        kinds = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(data):
            raise ValueError(f"{where} has {len(data)} entries instead of {len(kinds)}")
        return tuple(_decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data, strict=True)))
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where} is not an object")
        return {str(key): _decode(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if origin is types.UnionType and type(None) in arguments and len(arguments) == 2:
        return None if data is None else _decode(next(k for k in arguments if k is not type(None)), data, where)
    accepted = arguments if origin in (types.UnionType, typing.Union, typing.Literal) else (kind,)
    if origin is typing.Literal:
        if data not in accepted:
            raise ValueError(f"{where} is {data!r}")
        return data
    if float in accepted and isinstance(data, int) and not isinstance(data, bool):
        return float(data) if int not in accepted else data
    # bool is an int to isinstance(), but not to a reader of JSON.
    if type(data) not in accepted:
        raise ValueError(f"{where} is a {type(data).__name__}")
    return data


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - data.keys()):
        raise ValueError(f"{where} lacks {missing[0]!r}")
    if unknown := sorted(data.keys() - names):
        raise ValueError(f"{where} has an unknown entry {unknown[0]!r}")
    return kind(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()})
