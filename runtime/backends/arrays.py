"""Arrays that the chain hands from graph to graph, and the memory that they lie in.

On the CPU an array is a NumPy array, and nothing here costs anything. On a device it is a `DeviceArray`: a place
in memory that this process must not read. The chain treats both alike: it slices, reshapes, copies and binds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Protocol

import numpy as np

from prunevid.errors import PruneVidError


class DeviceArray:
    """An array on a device: rows of `shape[0]` blocks that lie `pitch` bytes apart.

    pointer: address of the first element. owner: kept alive as long as any array of its memory is. Slicing with step
    1 along the first axis, or along the second (`array[:, a:b]`), makes a view; so does `reshape`.
    """

    __slots__ = ("dtype", "owner", "pitch", "pointer", "shape")

    def __init__(
        self, pointer: int, shape: Sequence[int], dtype: np.dtype, owner: object, pitch: int | None = None
    ) -> None:
        self.pointer, self.shape, self.dtype, self.owner = pointer, tuple(shape), dtype, owner
        self.pitch = prod(self.shape[1:]) * dtype.itemsize if pitch is None else pitch

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie one after the other, as a graph wants them."""
        block = prod(self.shape[1:]) * self.dtype.itemsize
        return not self.shape or self.shape[0] == 1 or self.pitch == block or self.nbytes == 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | tuple[slice, slice]) -> DeviceArray:
        """A view of some rows: `array[a:b]` or `array[:, a:b]`."""
        if isinstance(key, slice):
            start, stop = _bounds(key, self.shape[0])
            return DeviceArray(
                self.pointer + start * self.pitch, (stop - start, *self.shape[1:]), self.dtype, self.owner, self.pitch
            )
        everything, rows = key
        if everything != slice(None):
            raise IndexError("a device array is sliced along one axis at a time")
        start, stop = _bounds(rows, self.shape[1])
        offset = start * prod(self.shape[2:]) * self.dtype.itemsize
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return DeviceArray(self.pointer + offset, shape, self.dtype, self.owner, self.pitch)

    def reshape(self, *shape: int) -> DeviceArray:
        """The same elements in another shape. Raises ValueError where they do not fit or are not contiguous."""
        if prod(shape) != prod(self.shape) or not self.contiguous:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return DeviceArray(self.pointer, shape, self.dtype, self.owner)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refused: without it, NumPy would make an array of one object."""
        raise TypeError("this array lies on a device: download it")


Array = np.ndarray | DeviceArray


class Slot:
    """An input or output of a graph, and what an array for it must be.

    owner: what it is of, for messages. dtype: native; None for one that no array has. shape: sizes, symbols where they
    vary. Every run passes a hundred arrays through here, so what fits is told fast.
    """

    __slots__ = ("_fixed", "_sizes", "dtype", "name", "owner", "shape")

    def __init__(self, owner: str, name: str, dtype: np.dtype | None, shape: Sequence[int | str | None]) -> None:
        self.owner, self.name, self.dtype, self.shape = owner, name, dtype, tuple(shape)
        self._fixed = [axis for axis, size in enumerate(self.shape) if isinstance(size, int)]
        self._sizes = [self.shape[axis] for axis in self._fixed]

    def readable(self, array: Array) -> Array:
        """`array` as a graph can read it: NumPy's become contiguous, aligned and of native byte order.

        They are copied where they are not. Raises PruneVidError where element type or shape are not the input's.
        """
        if self._fits(array):
            if isinstance(array, DeviceArray):
                return array
            flags = array.flags
            if flags.c_contiguous and flags.aligned:
                return array
        if isinstance(array, np.ndarray):
            array = np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"])
        self._check(array)
        return array

    def writable(self, array: Array) -> Array:
        """`array`, into which a graph writes in place. Raises PruneVidError where it cannot."""
        self._check(array)
        if isinstance(array, np.ndarray) and not array.flags.carray:
            raise PruneVidError(
                f"{self.name} of {self.owner} cannot be written into an array that is not contiguous or read-only"
            )
        return array

    def _fits(self, array: Array) -> bool:
        """Whether it is an array of this element type and shape."""
        if not isinstance(array, (np.ndarray, DeviceArray)) or array.dtype != self.dtype:
            return False
        shape = array.shape
        return len(shape) == len(self.shape) and [shape[axis] for axis in self._fixed] == self._sizes

    def _check(self, array: Array) -> None:
        if self._fits(array):
            return
        what = f"{self.name} of {self.owner} must"
        if not isinstance(array, (np.ndarray, DeviceArray)):
            raise PruneVidError(f"{what} be an array, not a {type(array).__name__}")
        if array.dtype != self.dtype:
            raise PruneVidError(f"{what} be {self.dtype}, not {array.dtype}")
        raise PruneVidError(f"{what} have shape {_text(self.shape)}, not {_text(array.shape)}")


class MemorySpace(Protocol):
    """Where a backend's arrays lie."""

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """A contiguous array with any values. Raises PruneVidError where there is no room for it."""
        ...

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """Like `empty`, but of zeros."""
        ...

    def copy(self, source: Array, target: Array) -> None:
        """Copy the values of `source`, which may be any NumPy array, into `target` of the same shape and dtype.

        Raises ValueError where shape or dtype differ.
        """
        ...

    def download(self, array: Array) -> np.ndarray:
        """The values as a NumPy array; waits for the runs that make them."""
        ...


class HostMemory:
    """The memory of the CPU: arrays are NumPy's."""

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A contiguous array with any values."""
        with _room(shape, dtype):
            return np.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Like `empty`, but of zeros; zeros cost no memory until a page is written to."""
        with _room(shape, dtype):
            return np.zeros(shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        """Copy the values of `source`, which may be any NumPy array, into `target` of the same shape and dtype."""
        assert isinstance(source, np.ndarray)
        assert isinstance(target, np.ndarray)
        check_copy(source, target)
        target[...] = source

    def download(self, array: Array) -> np.ndarray:
        """The array itself."""
        assert isinstance(array, np.ndarray)
        return array


@contextmanager
def _room(shape: Sequence[int], dtype: np.dtype) -> Iterator[None]:
    """Tell of an array that there is no room for as of any other mistake."""
    try:
        yield
    except (MemoryError, ValueError) as error:  # more bytes than there are addresses are a ValueError
        raise PruneVidError(
            f"there is no memory for {prod(shape) * dtype.itemsize} bytes: use fewer frames or words"
        ) from error


def check_copy(source: Array, target: Array) -> None:
    """Raise ValueError where copying would have to convert or to repeat values; byte order is none of its business."""
    if source.shape != target.shape or source.dtype.newbyteorder("=") != target.dtype:
        raise ValueError(f"cannot copy {source.dtype} {source.shape} into {target.dtype} {target.shape}")


def _text(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _bounds(key: slice, length: int) -> tuple[int, int]:
    start, stop, step = key.indices(length)
    if step != 1:
        raise IndexError("a device array is sliced in steps of 1")
    return start, max(start, stop)
