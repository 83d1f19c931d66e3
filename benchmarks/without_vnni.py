"""int8 on an x86 processor without VNNI, measured on one that has it: how right the demo checkpoint's answers are.

    python -m benchmarks.without_vnni --output benchmarks/results/without-vnni.json

ONNX Runtime's default kernels for uint8 and int8 saturate there. VNNI is hidden from a copy of ONNX Runtime in which
every CPUID instruction is an illegal one, which a signal handler (hide_vnni.c) answers. Needs gcc, objdump and Linux on
x86. Compared are the kernels of VNNI, those that the runtime asks for without it, and ONNX Runtime's default without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.accuracy import bootstrap
from benchmarks.calibration import answer, calibration_videos, held_out_samples
from benchmarks.machine import describe
from benchmarks.report import points, save
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix, Int8PerChannel
from prunevid.export import export
from prunevid.runtime import load
from prunevid.runtime.backends.ort import ask_for_exact_int8, session_options
from prunevid.runtime.machine import has_exact_int8

RECIPES = {"fp32": "ort", "cpu-int8": "ort", "cpu-int4": "ort", "int8-qdq": "portable"}
KERNELS = ("with VNNI", "without, as the runtime asks", "without, by default")
# Of LLaVA-OneVision-0.5B's MLP.
_PRODUCTS = ((896, 4864), (4864, 896))
_ROWS = (1, 300, 2000)
_UD2, _CPUID = b"\x0f\x0b", b"\x0f\xa2"


def hide_vnni(folder: Path) -> dict[str, str]:
    """Make a copy of ONNX Runtime that sees no VNNI; the environment variables of a process that is to use it."""
    copy = folder / "onnxruntime"
    shutil.copytree(Path(ort.__file__).parent, copy)
    (library,) = (copy / "capi").glob("onnxruntime_pybind11_state*.so")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True, check=True
    )
    found = [line for line in listing.stdout.splitlines() if line.endswith("cpuid")]
    addresses = [int(line.partition(":")[0], 16) for line in found]
    content = bytearray(library.read_bytes())
    for address in addresses:
        at = _file_offset(library, address)
        if content[at : at + 2] != _CPUID:
            raise RuntimeError(f"no CPUID at {at:#x} of {library}")
        content[at : at + 2] = _UD2
    library.write_bytes(content)
    handler = folder / "hide_vnni.so"
    source = Path(__file__).with_name("hide_vnni.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(handler), str(source)], check=True)
    return {"LD_PRELOAD": str(handler), "PYTHONPATH": os.pathsep.join((str(folder), str(Path.cwd())))}


def _file_offset(library: Path, address: int) -> int:
    """Where in a file lies what is loaded at an address."""
    headers = subprocess.run(["readelf", "-lW", str(library)], capture_output=True, text=True, check=True).stdout
    for line in headers.splitlines():
        words = line.split()
        if words[:1] == ["LOAD"]:
            offset, begin, size = (int(word, 16) for word in (words[1], words[2], words[4]))
            if begin <= address < begin + size:
                return address - begin + offset
    raise RuntimeError(f"{address:#x} is not in {library}")


def answers(folder: Path, questions: int, kernels: str) -> dict[str, Any]:
    """In this process: which questions are answered right, by recipe and whether pruned; times of products."""
    samples = held_out_samples(questions)
    recipes = [recipe for recipe in RECIPES if recipe != "fp32" or kernels == KERNELS[0]]
    # What hides VNNI from ONNX Runtime does not hide it from /proc/cpuinfo.
    with patch("prunevid.runtime.backends.ort.has_exact_int8", lambda: kernels != KERNELS[1]):
        found: dict[str, Any] = {"right": {}, "products": times_of_products()}
        for recipe in recipes:
            for prune in (True, False):
                right, _, _ = answer(load(folder / recipe, "ort-cpu", verify=False), samples, prune)
                found["right"][f"{recipe} {prune}"] = [video.tolist() for video in right]
    return found


def times_of_products() -> list[dict[str, Any]]:
    """Median milliseconds of products in fp32 and in int8, with two threads, in turns."""
    rng, found = np.random.default_rng(0), []
    for inputs, outputs in _PRODUCTS:
        weight = rng.standard_normal((inputs, outputs)).astype(np.float32)
        sessions = {"fp32": _session("MatMul", "", {"w": weight}, inputs, outputs)}
        arrays = Int8PerChannel().quantize(ArrayMatrix(weight))
        sessions["int8"] = _session("DynamicQuantizeMatMul", "com.microsoft", arrays, inputs, outputs)
        for rows in _ROWS:
            x = rng.standard_normal((rows, inputs)).astype(np.float32)
            taken: dict[str, list[float]] = {name: [] for name in sessions}
            for number in range(-1, 100 if rows == 1 else 10):
                for name, session in sessions.items():
                    begin = perf_counter()
                    session.run(None, {"x": x})
                    if number >= 0:
                        taken[name].append(perf_counter() - begin)
            medians = {name: 1000 * float(np.median(times)) for name, times in taken.items()}
            found.append({"inputs": inputs, "outputs": outputs, "rows": rows, "ms": medians})
    return found


def _session(operator: str, domain: str, weights: dict[str, np.ndarray], inputs: int, outputs: int) -> Any:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    node = helper.make_node(operator, ["x", *weights], ["y"], domain=domain)
    x, y = (helper.make_tensor_value_info(name, floats, ["m", n]) for name, n in (("x", inputs), ("y", outputs)))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "one", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = session_options(2)
    ask_for_exact_int8(options, "ort")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(questions: int) -> dict[str, Any]:
    """By kernels and recipe, exact match minus fp32's; times of products by kernels."""
    if not has_exact_int8():
        raise SystemExit("this processor has no VNNI to compare with")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        videos = calibration_videos(folder / "videos")
        for dialect in ("ort", "portable"):
            export("demo", folder / dialect, dialect=dialect)
        (folder / "fp32").symlink_to(folder / "ort")
        for recipe, dialect in RECIPES.items():
            if recipe != "fp32":
                calibrate(folder / dialect, videos, folder / recipe, Settings(recipe, force=True))
        hidden = hide_vnni(folder)
        found = {}
        for kernels in KERNELS:
            command = [sys.executable, "-m", "benchmarks.without_vnni", "--questions", str(questions)]
            command += ["--here", str(folder), "--kernels", kernels]
            environment = os.environ | ({} if kernels == KERNELS[0] else hidden)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[kernels] = json.loads(done.stdout)
    original = found[KERNELS[0]]["right"]
    rows: dict[str, Any] = {}
    for kernels, result in found.items():
        for key, right in result["right"].items():
            recipe, prune = key.rsplit(" ", 1)
            arrays = [np.array(video) for video in right]
            difference, interval = bootstrap(arrays, [np.array(video) for video in original[f"fp32 {prune}"]])
            rows.setdefault(recipe, {}).setdefault(kernels, {})["pruned" if prune == "True" else "unpruned"] = {
                "accuracy": float(np.concatenate(arrays).mean()),
                "difference to fp32": difference,
                "paired interval": interval,
            }
    count = sum(len(video) for video in original["fp32 True"])
    products = {kernels: result["products"] for kernels, result in found.items()}
    return {"questions": count, "recipes": rows, "products": products}


def table(result: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = ["| recipe | kernels | pruned, minus fp32 | unpruned, minus fp32 |", "|---|---|---|---|"]
    for recipe, by_kernels in result["recipes"].items():
        for kernels, row in by_kernels.items():
            cells = [
                points(row[how]["difference to fp32"], row[how]["paired interval"]) for how in ("pruned", "unpruned")
            ]
            if recipe != "fp32":
                lines.append(f"| {recipe} | {kernels} | {' | '.join(cells)} |")
    lines += ["", f"{result['questions']} questions.", ""]
    lines += ["| rows, inputs, outputs | " + " | ".join(f"{kernels}: fp32 / int8" for kernels in KERNELS) + " |"]
    lines += ["|---" * (len(KERNELS) + 1) + "|"]
    for group in zip(*result["products"].values(), strict=True):
        of = f"{group[0]['rows']}, {group[0]['inputs']}, {group[0]['outputs']}"
        ratios = " | ".join(f"{one['ms']['fp32'] / one['ms']['int8']:.2f}" for one in group)
        lines.append(f"| {of} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=2000, help="held-out questions, at least")
    parser.add_argument("--here", type=Path, help="folder of bundles: ask them in this process; prints JSON")
    parser.add_argument("--kernels", choices=KERNELS, default=KERNELS[0], help="which ones, with --here")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(answers(args.here, args.questions, args.kernels)))
        return
    result = measure(args.questions)
    save({"machine": describe(), **result}, args.output)
    print(table(result))


if __name__ == "__main__":
    main()
