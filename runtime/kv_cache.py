"""The KV cache of a range of layers, in one buffer that is allocated once and written in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunevid.bundle.sections.cache import KvCacheSpec
from prunevid.cost import DecoderShape
from prunevid.runtime.backends.arrays import Array, MemorySpace
from prunevid.runtime.backends.backend import Backend


class RowBuffer:
    """Rows of several planes, `array` [planes, capacity, width], zeros at first; they can be moved to longer ones."""

    def __init__(self, memory: MemorySpace, planes: int, capacity: int, width: int, dtype: np.dtype) -> None:
        self._memory = memory
        self.array = memory.zeros((planes, capacity, width), dtype)

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return int(self.array.shape[1])

    def reserve(self, rows: int, used: int) -> None:
        """Make room for `rows` rows in all, moving the first `used` where the buffer is too short."""
        if rows <= self.capacity:
            return
        planes, _, width = self.array.shape
        longer = self._memory.zeros((planes, rows, width), self.array.dtype)
        self._memory.copy(self.array[:, :used], longer[:, :used])
        self.array = longer


class KvCache:
    """Keys and values of some layers; `length` rows are in use.

    How the rows lie is in the manifest. In place: [1, kv_heads, capacity, head_dim], one buffer given to the graph as
    past and as present. Appended: [1, capacity, kv_heads, head_dim], the rows in use are given as past, and the rows
    behind them as the place for the new ones.

    A backend may want more rows given as past to a decode step than are in use (`Backend.past_rows`): they are
    zeros or rows that were rewound, finite either way, and the graph masks them. The new row then has a place aside,
    always the same, and is copied from there.
    """

    def __init__(
        self,
        backend: Backend,
        spec: KvCacheSpec,
        layers: Sequence[int],
        shape: DecoderShape,
        capacity: int,
    ) -> None:
        self.length = 0
        self._backend = backend
        self._in_place, dtype = spec.is_in_place, np.dtype(spec.dtype)
        self._layers = tuple(layers)
        self._heads, self._head_dim = shape.kv_heads, shape.head_dim
        self._row_bytes = 2 * len(self._layers) * shape.kv_heads * shape.head_dim * dtype.itemsize
        # In place, every head is a plane of its own.
        self._planes, width = (self._heads, self._head_dim) if self._in_place else (1, self._heads * self._head_dim)
        planes = 2 * len(self._layers) * self._planes
        self._rows = RowBuffer(backend.memory, planes, self._whole(capacity), width, dtype)
        self._arrays = self._by_name(self._rows.array)
        self._aside = backend.memory.empty((planes, 1, width), dtype)
        self._arrays_aside = self._by_name(self._aside)
        self._is_aside = False

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return self._rows.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use."""
        return self.length * self._row_bytes

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in all, moving the rows in use where the buffer is too short."""
        whole = self._whole(rows)
        if whole > self.capacity:
            self._rows.reserve(whole, self.length)
            self._arrays = self._by_name(self._rows.array)

    def rewind(self, length: int) -> None:
        """Forget all rows behind the first `length`."""
        if length > self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} rows to {length}")
        self.length = length

    def copy_rows(self, start: int) -> Array:
        """A copy [planes, rows, width] of the rows in use from `start` on, for `put_rows`."""
        rows = self._rows.array[:, start : self.length]
        copied = self._backend.memory.empty(rows.shape, rows.dtype)
        self._backend.memory.copy(rows, copied)
        return copied

    def put_rows(self, start: int, rows: Array) -> None:
        """Make `rows` the last ones in use, from `start` on, where they were copied from."""
        self.length = start + int(rows.shape[1])
        self._backend.memory.copy(rows, self._rows.array[:, start : self.length])

    def past(self, *, decoding: bool = False) -> dict[str, Array]:
        """Graph inputs: the rows in use (of a cache in place, the buffers that hold them).

        decoding: this is a decode step, which may be given more rows.
        """
        given = self._given(decoding)
        return {f"past_{name}": self._slice(array, 0, given) for name, array in self._arrays.items()}

    def present(self, rows: int, *, decoding: bool = False) -> dict[str, Array]:
        """Graph outputs: where `rows` new rows go. Call `advance` when that is done."""
        if self.length + rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit behind {self.length} of {self.capacity}")
        self._is_aside = self._given(decoding) > self.length
        if self._is_aside:
            return {f"present_{name}": array for name, array in self._arrays_aside.items()}
        start, stop = self.length, self.length + rows
        return {f"present_{name}": self._slice(array, start, stop) for name, array in self._arrays.items()}

    def advance(self, rows: int) -> None:
        """Count `rows` more rows as in use."""
        if self._is_aside:
            self._backend.memory.copy(self._aside, self._rows.array[:, self.length : self.length + rows])
        self.length += rows

    def _whole(self, rows: int) -> int:
        """Rows to have room for, so that `rows` can be in use and be given as past."""
        return rows if self._in_place else max(rows, self._backend.past_rows(rows))

    def _given(self, decoding: bool) -> int:
        return self._backend.past_rows(self.length) if decoding and not self._in_place else self.length

    def _by_name(self, planes: Array) -> dict[str, Array]:
        rows = int(planes.shape[1])
        shape = (1, self._heads, rows, self._head_dim) if self._in_place else (1, rows, self._heads, self._head_dim)
        names = [f"{kind}.{layer}" for layer in self._layers for kind in ("key", "value")]
        return {
            name: planes[number * self._planes : (number + 1) * self._planes].reshape(*shape)
            for number, name in enumerate(names)
        }

    def _slice(self, array: Array, start: int, stop: int) -> Array:
        return array if self._in_place else array[:, start:stop]
