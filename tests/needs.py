"""What a test may be skipped for: a GPU, or a package, that is not there. Whatever else goes wrong is a failure.

`pytest.importorskip` asks whether an import fails, and so passes over a package that is there and broken.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_DEVICES = Path("/dev")
_GPUS = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu*", "dxg")


def package(name: str, wheel: str | None = None) -> Any:
    """The module of that name; skips the test, or the test file, where nothing of that name is installed."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        if find_spec(".".join(parts[:end])) is None:
            pytest.skip(f"{wheel or parts[0]} is not installed", allow_module_level=True)
    return importlib.import_module(name)


def gpu() -> None:
    """Skips the test where there is no NVIDIA GPU: none of the files by which drivers show one, whatever its number."""
    if not any(found for pattern in _GPUS for found in _DEVICES.glob(pattern)):
        pytest.skip("no NVIDIA GPU")


def torch_on_gpu() -> Any:
    """torch, on a GPU; a GPU that a torch made for CUDA does not find is a failure."""
    gpu()
    torch = package("torch")
    if torch.version.cuda is None:
        pytest.skip("this torch is made for CPUs")
    assert torch.cuda.is_available(), "there is a GPU, and torch does not find it"
    return torch
