"""Safetensors files byte by byte, so that what no library would write can be written. Source: safetensors' README."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["INDEX", "WEIGHTS", "read", "read_tensors", "sha256", "shard", "write", "write_tensors"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Tensor = tuple[str, list[int], bytes]
"""Element type, shape and data."""


def read(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a file, and its data."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header, content[8 + length :]


def write(file: Path, header: bytes, data: bytes) -> None:
    """Write a header, whatever it says, and data."""
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a whole file by name."""
    header, data = read(file)
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items()}


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """A whole file of these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    write(file, text + b" " * (-len(text) % 8), b"".join(data for _, _, data in tensors.values()))


def shard(checkpoint: Path) -> None:
    """Split a checkpoint's weights into two files with an index."""
    tensors = read_tensors(checkpoint / WEIGHTS)
    placed = {}
    for number in range(2):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        part = dict(list(tensors.items())[number::2])
        write_tensors(checkpoint / file, part)
        placed.update(dict.fromkeys(part, file))
    total = sum(len(data) for _, _, data in tensors.values())
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": placed}))
    (checkpoint / WEIGHTS).unlink()


def sha256(file: Path) -> str:
    """A file's checksum as manifests have it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
