"""The KV cache of a range of layers, in buffers that are allocated once and written in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunevid.cost import DecoderShape


class KvCache:
    """Keys and values of some layers; ``length`` rows are in use.

    How the rows lie depends on the dialect that the graphs are written in. ``ort``: [1, kv_heads, capacity, head_dim],
    one buffer given to the graph as past and as present. ``portable``: [1, capacity, kv_heads, head_dim], the rows in
    use are given as past, and the rows behind them as the place for the new ones.
    """

    def __init__(
        self, dialect: str, layers: Sequence[int], shape: DecoderShape, capacity: int, dtype: np.dtype
    ) -> None:
        self.length = 0
        self.capacity = capacity
        self._row_axis = {"ort": 2, "portable": 1}[dialect]
        self._layers = tuple(layers)
        self._row_bytes = 2 * len(self._layers) * shape.kv_heads * shape.head_dim * dtype.itemsize
        dims = [1, shape.kv_heads, shape.head_dim]
        dims.insert(self._row_axis, capacity)
        # Zeros cost no memory until a page is written to.
        self._buffers = {
            f"{kind}.{layer}": np.zeros(dims, dtype) for layer in self._layers for kind in ("key", "value")
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use."""
        return self.length * self._row_bytes

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows in all, moving the rows in use where the buffers are too small."""
        if rows <= self.capacity:
            return
        for name, old in self._buffers.items():
            dims = list(old.shape)
            dims[self._row_axis] = rows
            new = np.zeros(dims, old.dtype)
            used = (slice(None),) * self._row_axis + (slice(0, self.length),)
            new[used] = old[used]
            self._buffers[name] = new
        self.capacity = rows

    def rewind(self, length: int) -> None:
        """Forget all rows behind the first ``length``."""
        if length > self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} rows to {length}")
        self.length = length

    def past(self) -> dict[str, np.ndarray]:
        """Graph inputs: the rows in use (in the ``ort`` dialect, the buffers that hold them)."""
        return {f"past_{name}": self._rows(buffer, 0, self.length) for name, buffer in self._buffers.items()}

    def present(self, rows: int) -> dict[str, np.ndarray]:
        """Graph outputs: where ``rows`` new rows go. Call :meth:`advance` when they are written."""
        if self.length + rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit behind {self.length} of {self.capacity}")
        start, stop = self.length, self.length + rows
        return {f"present_{name}": self._rows(buffer, start, stop) for name, buffer in self._buffers.items()}

    def advance(self, rows: int) -> None:
        """Count ``rows`` more rows as in use."""
        self.length += rows

    def _rows(self, buffer: np.ndarray, start: int, stop: int) -> np.ndarray:
        return buffer if self._row_axis == 2 else buffer[:, start:stop]
