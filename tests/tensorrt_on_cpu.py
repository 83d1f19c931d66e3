"""The real Python bindings of TensorRT where its builder cannot be installed: on a machine without a GPU.

The bindings come from PyPI (tensorrt-cu13-bindings) and want three libraries. gcc makes them from the files in
tensorrt_stubs/, linked to the lean runtime (tensorrt-lean-cu13-libs), which brings the plugin registry; the builder
and the parser are NULL. Registering plugins and calling their functions works; making a `Builder` or a `Runtime`
does not, and may crash.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

STUBS = Path(__file__).parent / "tensorrt_stubs"


def missing() -> str | None:
    """Why the bindings cannot be had here, or None."""
    if find_spec("tensorrt") is not None:
        return None
    for package, wheel in (
        ("tensorrt_bindings", "tensorrt-cu13-bindings"),
        ("tensorrt_lean_libs", "tensorrt-lean-cu13-libs"),
    ):
        if find_spec(package) is None:
            return f"{wheel} is not installed"
    return None if shutil.which("gcc") else "gcc is not installed"


def import_tensorrt(folder: Path) -> None:
    """Make `import tensorrt` and `import tensorrt.plugin` work in this process; libraries are built in folder."""
    if find_spec("tensorrt") is not None:
        return
    libs = importlib.import_module("tensorrt_lean_libs")
    lean = next(Path(str(libs.__file__)).parent.glob("libnvinfer_lean.so.*"))
    version = lean.suffix
    for source in sorted(STUBS.glob("*.c")):
        library = folder / f"{source.stem}.so{version}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(source), "-o", str(library)]
        if source.stem == "libnvinfer":
            command += ["-Wl,--no-as-needed", str(lean), f"-Wl,-rpath,{lean.parent}"]
        subprocess.run(command, check=True, capture_output=True)
        # The bindings' own libraries are found by name among those that are loaded.
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    # The package `tensorrt` of PyPI does nothing but pass this one on.
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
