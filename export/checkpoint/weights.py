"""Where a model's tensors come from: safetensors read one tensor at a time, or seeded random numbers.

Nothing here holds more than one tensor in memory: a graph refers to its weights by lazy tensors, which are read,
converted and dropped while the graph's data file is written.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir
import safetensors

from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.json_files import find_file, read_json
from prunevid.files import reading
from prunevid.validation import is_integer, without_doubles

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# Parts of names that tell what a tensor is that no model of ours has.
_FOREIGN = (
    (r"lora_|base_layer|base_model\.|modules_to_save", "a LoRA adapter: merge it into the weights first"),
    (
        r"scale|zero|qweight|qzeros|g_idx|absmax|quant|weight_packed|weight_shape",
        "quantization: give a checkpoint that is not quantized",
    ),
)
# A header larger than this is no header: it would be read whole into memory.
_LARGEST_HEADER = 100 << 20
# What reading JSON that is damaged, or made to do harm, can raise: nesting without end is a RecursionError.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


# Elements that are converted and written at once, and rows that are drawn at once.
_BLOCK = 1 << 22
_RANDOM_ROWS = 64


class StreamedTensor(ir.LazyTensor):
    """A lazy tensor that can also be had block by block, so that writing it never holds all of it.

    rows: function from a range of rows (of the tensor as stored) to their values. With `transpose` the tensor is
    the stored matrix with its axes swapped; that one is read whole, and converted block by block.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[int, int], np.ndarray],
        shape: Sequence[int],
        dtype: ir.DataType,
        transpose: bool,
    ) -> None:
        # Graphs give tensors names of their own; messages say what the checkpoint calls them.
        self._called = name
        self._rows, self._stored_shape, self._transpose = rows, tuple(shape), transpose
        given = self._stored_shape[::-1] if transpose else self._stored_shape
        super().__init__(self._load, dtype, ir.Shape(given), name=name, cache=False)

    def blocks(self) -> Iterator[np.ndarray]:
        """The tensor's values in order, as contiguous blocks of whole rows, in its own dtype."""
        dtype = self.dtype.numpy()
        count = self._stored_shape[0] if self._stored_shape else 1
        if self._transpose:
            whole = self._rows(0, count)
            step = max(1, _BLOCK // count)
            for start in range(0, whole.shape[1], step):
                yield self._convert(whole[:, start : start + step].T, dtype)
            return
        step = max(1, _BLOCK // max(1, math.prod(self._stored_shape[1:])))
        for start in range(0, count, step):
            yield self._convert(self._rows(start, min(count, start + step)), dtype)

    def _convert(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Values in the given type. Raises PruneVidError where one of them is no finite number, or is none in it."""
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(values, dtype=dtype)
        if not np.isfinite(converted).all():
            if np.isfinite(np.asarray(values, np.float64)).all():
                raise PruneVidError(
                    f"the tensor {self._called} has values beyond {dtype}: export with --precision fp32"
                )
            raise PruneVidError(f"the tensor {self._called} has values that are no numbers: the checkpoint is damaged")
        return converted

    def _load(self) -> ir.Tensor:
        return ir.Tensor(np.concatenate(list(self.blocks())), name=self.name)


class Weights(Protocol):
    """A model's tensors by their transformers names, as lazy tensors of one floating-point type."""

    @property
    def dtype(self) -> ir.DataType:
        """Type in which tensors are given out: FLOAT or FLOAT16."""
        ...

    def tensor(self, name: str, *, transpose: bool = False) -> StreamedTensor:
        """The tensor `name`, read when it is written out; `transpose` swaps the axes of a matrix."""
        ...


@dataclass(frozen=True)
class _Stored:
    """Where one tensor's bytes lie, and what it is called there. dtype is None where it is no floating-point type."""

    file: Path
    name: str
    offset: int
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:
        return _DTYPES.get(self.kind)

    def rows(self, start: int, stop: int) -> np.ndarray:
        # Plain reads rather than a memory map: mapped pages of a whole shard would count as memory of this process.
        width = math.prod(self.shape[1:])
        offset, count = self.offset + start * width * np.dtype(self.dtype).itemsize, (stop - start) * width
        with reading(self.file):
            values = np.fromfile(self.file, self.dtype, count, offset=offset)
        if values.size != count:
            raise PruneVidError(f"{self.file} became shorter while it was read: keep it as it is during an export")
        return values.reshape((stop - start, *self.shape[1:]))


class SafetensorsWeights:
    """Tensors of a checkpoint folder with one or several safetensors files.

    `renames` are (pattern, replacement) pairs, applied in order to the names in the files, that turn the names of
    older checkpoints into today's; `shapes` is what the architecture needs, `optional` what it may have besides.
    Raises PruneVidError where a file or a tensor is missing, truncated, there twice, of another shape, or not floating
    point, and where an adapter lies beside the weights.
    """

    def __init__(
        self,
        folder: Path,
        dtype: ir.DataType,
        shapes: Mapping[str, tuple[int, ...]],
        renames: Sequence[tuple[str, str]] = (),
        optional: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._dtype, self._folder = dtype, folder
        self._stored: dict[str, _Stored] = {}
        for name in _ADAPTERS:
            if find_file(folder, name):
                raise PruneVidError(
                    f"{folder / name} is a LoRA adapter beside the weights: merge it into the weights and save them"
                )
        files = _weight_files(folder)
        for file, listed in files.items():
            self._add(_read_header(file), listed, renames)
        self._check(shapes)
        self._check({name: shape for name, shape in (optional or {}).items() if name in self._stored})
        for file in files:
            _check_layout(file)
        self._known = {*shapes, *(optional or {})}

    @property
    def dtype(self) -> ir.DataType:
        """Type in which tensors are given out."""
        return self._dtype

    def tensor(self, name: str, *, transpose: bool = False) -> StreamedTensor:
        """The tensor `name`, read when it is written out; `transpose` swaps the axes of a matrix."""
        stored = self._stored[name]
        return StreamedTensor(name, stored.rows, stored.shape, self._dtype, transpose)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds that tensor."""
        return name in self._stored

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same values in the type that they are given out in."""
        first, second = self.tensor(one), self.tensor(other)
        return tuple(first.shape) == tuple(second.shape) and all(
            np.array_equal(*blocks) for blocks in zip(first.blocks(), second.blocks(), strict=True)
        )

    def refuse_unused(self, unused: Sequence[str]) -> None:
        """Raise PruneVidError for tensors that nothing would read, unless a pattern of `unused` fits their names."""
        left = [
            (name, stored)
            for name, stored in self._stored.items()
            if name not in self._known and not any(re.fullmatch(pattern, name) for pattern in unused)
        ]
        if not left:
            return
        for pattern, what in _FOREIGN:
            for _, stored in left:
                if re.search(pattern, stored.name):
                    raise PruneVidError(f"the tensor {stored.name[:200]!r} of {stored.file} belongs to {what}")
        _, stored = left[0]
        raise PruneVidError(
            f"the model that config.json describes has no use for {len(left)} tensors of {self._folder}, among them "
            f"{stored.name[:200]!r}: the checkpoint is of another model, or has parts that would be lost"
        )

    def _add(self, found: Sequence[_Stored], listed: Sequence[str] | None, renames: Sequence[tuple[str, str]]) -> None:
        """Add a file's tensors, which must be those that the index lists for it."""
        names = {stored.name for stored in found}
        for name in listed or ():
            if name not in names:
                raise PruneVidError(
                    f"{self._folder / _INDEX} has {name[:200]!r} in a file that does not hold it: "
                    "download the checkpoint again"
                )
        for stored in found:
            name = _rename(stored.name, renames)
            if name in self._stored:
                first = self._stored[name]
                raise PruneVidError(
                    f"the checkpoint {self._folder} holds {name[:200]!r} twice: as {first.name[:200]!r} in "
                    f"{first.file.name} and as {stored.name[:200]!r} in {stored.file.name}"
                )
            self._stored[name] = stored

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        folder = self._folder
        missing = [name for name in shapes if name not in self._stored]
        if missing:
            raise PruneVidError(
                f"the checkpoint {folder} lacks {len(missing)} of {len(shapes)} tensors, among them {missing[0]}: "
                "it is of another model or incomplete"
            )
        for name, shape in shapes.items():
            stored = self._stored[name]
            if stored.dtype is None:
                raise PruneVidError(
                    f"the tensor {name} of {stored.file} is stored as {stored.kind}: "
                    "give a checkpoint that is not quantized"
                )
            if stored.shape != shape:
                raise PruneVidError(
                    f"the tensor {name} of {folder} has shape {list(stored.shape)}, "
                    f"its config.json asks for {list(shape)}"
                )


class RandomWeights:
    """Seeded random tensors of an architecture's shapes: a bundle of the real size without a checkpoint.

    Matrices are drawn with standard deviation 0.02, norm scales are one, biases zero: activations stay finite and
    every kernel does its real work. The same name always gives the same tensor.
    """

    def __init__(self, dtype: ir.DataType, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        self._dtype, self._shapes, self._seed = dtype, shapes, seed

    @property
    def dtype(self) -> ir.DataType:
        """Type in which tensors are given out."""
        return self._dtype

    def tensor(self, name: str, *, transpose: bool = False) -> StreamedTensor:
        """The tensor `name`, read when it is written out; `transpose` swaps the axes of a matrix."""
        shape = self._shapes[name]
        return StreamedTensor(name, lambda start, stop: self.rows(name, start, stop), shape, self._dtype, transpose)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor before any transposition, float32."""
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return np.zeros((stop - start, *shape[1:]), np.float32)
        if "norm" in name:
            return np.ones((stop - start, *shape[1:]), np.float32)
        first = start // _RANDOM_ROWS
        blocks = [self._random_block(name, block) for block in range(first, -(-stop // _RANDOM_ROWS))]
        return np.concatenate(blocks)[start - first * _RANDOM_ROWS :][: stop - start]

    def _random_block(self, name: str, block: int) -> np.ndarray:
        """One block of rows, seeded by its own number, so that any rows can be had without those before them."""
        generator = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode()), block]))
        values = generator.standard_normal((_RANDOM_ROWS, *self._shapes[name][1:]), dtype=np.float32)
        values *= np.float32(0.02)
        return values


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The files with weights, and the tensors that each must hold; None where no index says so."""
    if single := find_file(folder, _SINGLE):
        return {single: None}
    index = find_file(folder, _INDEX)
    if not index:
        raise PruneVidError(
            f"the checkpoint {folder} has neither {_SINGLE} nor {_INDEX}: give a safetensors checkpoint"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PruneVidError(f"{index} is damaged (it has no weight_map): download the checkpoint again")
    tensors: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\0" in name:
            raise PruneVidError(f"{index} names the file {name!r:.200}, which lies outside the checkpoint")
        tensors.setdefault(name, []).append(tensor)
    files: dict[Path, list[str] | None] = {}
    for name in sorted(tensors):
        file = find_file(folder, name)
        if not file:
            raise PruneVidError(f"the checkpoint {folder} lacks its file {name}: download it again")
        files[file] = tensors[name]
    return files


def _check_layout(file: Path) -> None:
    """Raise PruneVidError for tensors that overlap, gaps between them, and bytes behind them: the format has none."""
    try:
        with safetensors.safe_open(file, framework="numpy"):
            pass
    except Exception as error:  # the library's own error, or an OSError
        said = " ".join(str(error).split())
        raise PruneVidError(f"{file} is truncated or damaged ({said[:200]}): download the checkpoint again") from error


def _read_header(file: Path) -> list[_Stored]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data.

    Source: the format's description in the safetensors README.
    """
    damaged = f"{file} is truncated or damaged: download the checkpoint again"
    with reading(file), file.open("rb") as handle:
        size = file.stat().st_size
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LARGEST_HEADER
        if 8 + length > size or length >= _LARGEST_HEADER:
            raise PruneVidError(damaged)
        content = handle.read(length)
    try:
        header = json.loads(content, object_pairs_hook=without_doubles)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return [_stored(file, 8 + length, size, name, entry) for name, entry in entries.items()]
    except _DAMAGE as error:
        raise PruneVidError(damaged) from error


def _stored(file: Path, start: int, size: int, name: str, entry: dict[str, Any]) -> _Stored:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    # To JSON, 1.5 and -Infinity are numbers, too, and true is one to Python.
    if not all(map(is_integer, (*shape, begin, end))):
        raise ValueError(f"the shape or place of {name} are no whole numbers")
    stored = _Stored(file, name, start + begin, str(entry["dtype"]), shape)
    # Other types than those that are read have other widths; whether such a tensor matters is seen later.
    width = math.prod(shape) * np.dtype(stored.dtype).itemsize if stored.dtype else end - begin
    if not 0 <= begin <= end or end - begin != width or start + end > size:
        raise ValueError(f"the data of {name} do not lie within the file")
    return stored


def _rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
