"""The figures of the README, docs/benchmarks.md, calibrate.md and reliability.md in one go: `python -m benchmarks`.

Left out are three: `quantize_memory` and `engines` want bundles of up to 32 GB, and `without_vnni` gcc and objdump.

Each measurement runs in a process of its own, prints its table and writes its JSON to benchmarks/results/. Takes
about an hour on two cores that do nothing else; onnxruntime-genai has to be installed beside the project.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
# Module: the file that it writes.
MEASUREMENTS = {
    "latency": "latency-cpu.json",
    "profile_overhead": "profile-overhead.json",
    "accuracy": "accuracy-demo.json",
    "calibration": "calibration-demo.json",
    "tuning": "tuning-demo.json",
    "kv_attention": "kv-attention.json",
    "fuzz": "fuzz.json",
}


def main() -> int:
    """Run all measurements; exit status 1 where one failed, after the others were made."""
    failed = []
    for module, result in MEASUREMENTS.items():
        print(f"## {module}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{module}", "--output", str(RESULTS / result)]
        if subprocess.run(command).returncode:
            failed.append(module)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
