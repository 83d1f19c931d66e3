"""The memory of an NVIDIA GPU: arrays on it, and what travels to and fro.

What a run needs again and again is small and keeps its place: blocks of up to a megabyte, in powers of two, are handed
out again when nobody holds them any more, the last one first, so that a decode step finds its arrays where the step
before had them. Large blocks go back to CUDA. Everything is ordered by the one stream, so a block may be handed out
again while earlier work still reads it. Any thread may use it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from math import prod

import numpy as np

from prunevid.runtime.backends.arrays import Array, DeviceArray, check_copy
from prunevid.runtime.backends.cuda import Cuda

_SMALLEST = 512
_LARGEST_KEPT = 1 << 20
_STAGING_BYTES = 8 << 20


class DeviceMemory:
    """Memory of a CUDA device: blocks that are given back are used again, the smaller ones."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._staging = _Staging(cuda)
        self._unused: dict[int, list[int]] = {}

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        """A contiguous array with any values; an array without elements has an address, too."""
        with self._cuda.lock:
            block = self._block(prod(shape) * dtype.itemsize)
        return DeviceArray(block.pointer, shape, dtype, block)

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        """Like `empty`, but of zeros."""
        array = self.empty(shape, dtype)
        if array.nbytes:
            self._cuda.clear(array.pointer, array.nbytes)
        return array

    def copy(self, source: Array, target: Array) -> None:
        """Copy the values of `source`, which may be any NumPy array, into `target` of the same shape and dtype."""
        assert isinstance(target, DeviceArray)
        check_copy(source, target)
        if not target.nbytes:
            return
        if isinstance(source, np.ndarray):
            with self._cuda.lock:
                self._staging.upload(source, target)
        elif source.contiguous and target.contiguous:
            self._cuda.copy(source.pointer, target.pointer, target.nbytes)
        else:
            blocks = target.shape[0]
            self._cuda.copy_rows(
                source.pointer, source.pitch, target.pointer, target.pitch, target.nbytes // blocks, blocks
            )

    def download(self, array: Array) -> np.ndarray:
        """The values as a NumPy array; waits for the runs that make them; a NumPy array stays what it is."""
        if isinstance(array, np.ndarray):
            return array
        with self._cuda.lock:
            return self._staging.download(array)

    def _block(self, nbytes: int) -> _Block:
        if nbytes <= _LARGEST_KEPT:
            nbytes = max(_SMALLEST, 1 << (nbytes - 1).bit_length())
        unused = self._unused.get(nbytes)
        block = _Block(unused.pop() if unused else self._cuda.allocate(nbytes))
        weakref.finalize(block, self._take_back, block.pointer, nbytes).atexit = False
        return block

    def _take_back(self, pointer: int, nbytes: int) -> None:
        # In whichever thread lets go of an array, and whenever that is.
        with self._cuda.lock:
            if nbytes <= _LARGEST_KEPT:
                self._unused.setdefault(nbytes, []).append(pointer)
            else:
                self._cuda.free(pointer)


class _Block:
    """Allocated memory, in use while anything refers to it."""

    __slots__ = ("__weakref__", "pointer")

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer


class _Staging:
    """Pinned host memory through which arrays travel: copies from it run beside other work."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._address = cuda.allocate_pinned(_STAGING_BYTES)
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * _STAGING_BYTES).from_address(self._address))
        self._used = 0

    def upload(self, source: np.ndarray, target: DeviceArray) -> None:
        """Begin to copy `source` into `target`; `source` may change at once."""
        if not target.contiguous:
            raise ValueError(f"cannot upload into {target.shape}, which is not contiguous")
        values = np.ascontiguousarray(source, target.dtype).reshape(-1).view(np.uint8)
        for start in range(0, len(values), _STAGING_BYTES):
            piece = values[start : start + _STAGING_BYTES]
            at = self._reserve(len(piece))
            self._bytes[at : at + len(piece)] = piece
            self._cuda.upload(self._address + at, target.pointer + start, len(piece))

    def download(self, array: DeviceArray) -> np.ndarray:
        """The array's values, when they are there."""
        if not array.contiguous:
            raise ValueError(f"cannot download {array.shape}, which is not contiguous")
        values = np.empty(array.nbytes, np.uint8)
        for start in range(0, len(values), _STAGING_BYTES):
            piece = values[start : start + _STAGING_BYTES]
            at = self._reserve(len(piece))
            self._cuda.download(array.pointer + start, self._address + at, len(piece))
            self._wait()
            piece[...] = self._bytes[at : at + len(piece)]
        return values.view(array.dtype).reshape(array.shape)

    def _reserve(self, nbytes: int) -> int:
        """Where the next `nbytes` go; waits for what is under way where there is no room behind it."""
        if self._used + nbytes > _STAGING_BYTES:
            self._wait()
        at = self._used
        self._used += nbytes
        return at

    def _wait(self) -> None:
        self._cuda.synchronize()
        self._used = 0
