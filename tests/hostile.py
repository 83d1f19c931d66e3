"""Bundles that somebody changed on purpose, so that sizes and checksums are right and only the content is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from prunevid.bundle import sha256_of

_ROOT = Path(__file__).parents[1]
# Not getrusage(): its peak is the parent's, too.
_OPEN = """
import sys
from prunevid import PruneVidError
from prunevid.bundle import open_bundle
try: open_bundle(sys.argv[1])
except PruneVidError as error: print(error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest's JSON in place."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def record(folder: Path, *names: str) -> None:
    """Write size and checksum of files as they are now into the manifest."""
    found = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
    }  # fmt: skip
    edit_manifest(folder, lambda data: data["files"].update(found))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Give a file of the bundle another content."""
    (folder / name).write_bytes(content)
    record(folder, name)


def edit_graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], Any]) -> None:
    """Change a graph, which is read and written by onnx itself."""
    model = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False)
    change(model)
    replace_file(folder, f"{name}.onnx", model.SerializeToString())


def peak_of_opening(folder: Path) -> tuple[str, int]:
    """The sentence with which a process of its own refuses a bundle, and the most MiB of memory that it held."""
    command = [sys.executable, "-c", _OPEN, str(folder)]
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300, check=True)
    sentence, kibibytes = result.stdout.splitlines()
    return sentence, int(kibibytes) // 1024


def external_tensor(name: str, location: str, length: int, offset: int = 0, **more: str) -> onnx.TensorProto:
    """An initializer of bytes that lie in another file."""
    tensor = onnx.TensorProto(name=name, dims=[length], data_type=onnx.TensorProto.UINT8)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": str(offset), "length": str(length), **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor
