"""Runs the Triton kernels on the CPU: in a process of its own, since Triton decides when it is imported how to run."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# call(function, arguments, keyword arguments) -> result
Call = Callable[..., Any]


@contextmanager
def interpreter() -> Iterator[Call]:
    """Calls a function of a module in the process where kernels are interpreted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_interpret) as pool:
        yield lambda function, *arguments, **settings: pool.submit(function, *arguments, **settings).result()


def run(device: str, operator: str, *arrays: Array, element: str = "float32", **settings: Any) -> Array:
    """The operator's result for arrays on a torch device; element: the torch type that the first one is cast to."""
    import torch

    from benchmarks.gpu import launch

    first, *others = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
    if first.is_floating_point():
        first = first.to(getattr(torch, element))
    result = getattr(launch, operator)(first, *others, **settings).cpu().numpy()
    return np.asarray(result)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
