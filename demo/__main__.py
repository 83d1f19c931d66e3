"""`make demo`: export the demo checkpoint, then what `prunevid demo` does with the bundle that ships."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console

from prunevid.export import export
from prunevid.runtime import load
from prunevid.runtime.demo.asking import ask


def main() -> int:
    """Run the demo; exit status 1 where an answer is not the true one."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        console.print("Exporting the demo checkpoint ...")
        bundle = export("demo", Path(folder) / "demo")
        console.print(f"  {len(bundle.manifest.graphs)} graphs, {bundle.size / 1e6:.1f} MB")
        return ask(load(bundle), console)


if __name__ == "__main__":
    sys.exit(main())
