"""Arrays as the reference takes them: checked once, and then in one type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from prunevid.errors import InvalidValueError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


def real(name: str, value: npt.ArrayLike, rank: int) -> Floats:
    """Check that an array is real, finite, of this rank and not empty, and return it in float64."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InvalidValueError(f"{name} must be real numbers, not {array.dtype}.")
    _check_shape(name, array, rank)
    if not np.isfinite(array).all():
        raise InvalidValueError(f"{name} must be finite: NaN or infinity found.")
    return array.astype(np.float64)


def integers(name: str, value: npt.ArrayLike) -> Integers:
    """Check that an array is a row of integers and not empty, and return it in int64."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise InvalidValueError(f"{name} must be integers, not {array.dtype}.")
    _check_shape(name, array, rank=1)
    return array.astype(np.int64)


def _check_shape(name: str, array: npt.NDArray[Any], rank: int) -> None:
    if array.ndim != rank:
        raise InvalidValueError(f"{name} must have rank {rank}, not {array.ndim} (shape {array.shape}).")
    if array.size == 0:
        raise InvalidValueError(f"{name} must not be empty (shape {array.shape}).")
