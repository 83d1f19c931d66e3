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

from prunevid.errors import PruneVidError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# A header larger than this is no header: it would be read whole into memory.
_LARGEST_HEADER = 100 << 20
# What reading JSON that is damaged, or made to do harm, can raise: nesting without end is a RecursionError.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


# Elements that are converted and written at once, and rows that are drawn at once.
_BLOCK = 1 << 22
_RANDOM_ROWS = 64


class StreamedTensor(ir.LazyTensor):
    """A lazy tensor that can also be had block by block, so that writing it never holds all of it.

    rows: function from a range of rows (of the tensor as stored) to their values. With ``transpose`` the tensor is
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
                yield np.ascontiguousarray(whole[:, start : start + step].T, dtype=dtype)
            return
        step = max(1, _BLOCK // max(1, math.prod(self._stored_shape[1:])))
        for start in range(0, count, step):
            yield np.ascontiguousarray(self._rows(start, min(count, start + step)), dtype=dtype)

    def _load(self) -> ir.Tensor:
        return ir.Tensor(np.concatenate(list(self.blocks())), name=self.name)


class Weights(Protocol):
    """A model's tensors by their transformers names, as lazy tensors of one floating-point type."""

    @property
    def dtype(self) -> ir.DataType:
        """Type in which tensors are given out: FLOAT or FLOAT16."""
        ...

    def tensor(self, name: str, *, transpose: bool = False) -> StreamedTensor:
        """The tensor ``name``, read when it is written out; ``transpose`` swaps the axes of a matrix."""
        ...


@dataclass(frozen=True)
class _Stored:
    """Where one tensor's bytes lie."""

    file: Path
    offset: int
    dtype: Any
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> np.ndarray:
        # Plain reads rather than a memory map: mapped pages of a whole shard would count as memory of this process.
        width = math.prod(self.shape[1:])
        offset = self.offset + start * width * np.dtype(self.dtype).itemsize
        values = np.fromfile(self.file, self.dtype, (stop - start) * width, offset=offset)
        return values.reshape((stop - start, *self.shape[1:]))


class SafetensorsWeights:
    """Tensors of a checkpoint folder with one or several safetensors files.

    ``renames`` are (pattern, replacement) pairs, applied in order to the names in the files, that turn the names of
    older checkpoints into today's; ``shapes`` is what the architecture needs. Raises PruneVidError where a file or a
    tensor is missing, truncated, of another shape, or not floating point.
    """

    def __init__(
        self,
        folder: Path,
        dtype: ir.DataType,
        shapes: Mapping[str, tuple[int, ...]],
        renames: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._dtype = dtype
        self._stored: dict[str, _Stored] = {}
        for file in _weight_files(folder):
            for name, stored in _read_header(file).items():
                self._stored[_rename(name, renames)] = stored
        self._check(folder, shapes)

    @property
    def dtype(self) -> ir.DataType:
        """Type in which tensors are given out."""
        return self._dtype

    def tensor(self, name: str, *, transpose: bool = False) -> StreamedTensor:
        """See :class:`Weights`."""
        stored = self._stored[name]
        return StreamedTensor(name, stored.rows, stored.shape, self._dtype, transpose)

    def _check(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        missing = [name for name in shapes if name not in self._stored]
        if missing:
            raise PruneVidError(
                f"the checkpoint {folder} lacks {len(missing)} of {len(shapes)} tensors, among them {missing[0]}: "
                "it is of another model or incomplete"
            )
        for name, shape in shapes.items():
            found = self._stored[name].shape
            if found != shape:
                raise PruneVidError(
                    f"the tensor {name} of {folder} has shape {list(found)}, its config.json asks for {list(shape)}"
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
        """See :class:`Weights`."""
        shape = self._shapes[name]
        return StreamedTensor(name, lambda start, stop: self.rows(name, start, stop), shape, self._dtype, transpose)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a tensor before any transposition, float32."""
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
        return values * np.float32(0.02)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise PruneVidError(
            f"the checkpoint {folder} has neither {_SINGLE} nor {_INDEX}: give a safetensors checkpoint"
        )
    try:
        weight_map = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = {str(name) for name in weight_map.values()}
    except _DAMAGE as error:
        raise PruneVidError(f"{folder / _INDEX} is damaged: download the checkpoint again") from error
    for name in sorted(names):
        if Path(name).name != name:
            raise PruneVidError(f"{folder / _INDEX} names the file {name!r}, which lies outside the checkpoint")
        if not (folder / name).is_file():
            raise PruneVidError(f"the checkpoint {folder} lacks its file {name}: download it again")
    return [folder / name for name in sorted(names)]


def _read_header(file: Path) -> dict[str, _Stored]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data.

    Source: the format's description in the safetensors README.
    """
    size = file.stat().st_size
    damaged = f"{file} is truncated or damaged: download the checkpoint again"
    with file.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LARGEST_HEADER
        if 8 + length > size or length >= _LARGEST_HEADER:
            raise PruneVidError(damaged)
        try:
            header = json.loads(handle.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return {name: _stored(file, 8 + length, size, name, entry) for name, entry in entries.items()}
        except _DAMAGE as error:
            raise PruneVidError(damaged) from error


def _stored(file: Path, start: int, size: int, name: str, entry: dict[str, Any]) -> _Stored:
    shape = tuple(int(n) for n in entry["shape"])
    begin, end = (int(n) for n in entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        raise PruneVidError(
            f"the tensor {name} of {file} is stored as {entry['dtype']}: give a checkpoint that is not quantized"
        )
    dtype = _DTYPES[entry["dtype"]]
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not 0 <= begin <= end or end - begin != expected or start + end > size:
        raise ValueError(f"the data of {name} do not lie within the file")
    return _Stored(file, start + begin, dtype, shape)


def _rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
