"""Prove the bounds of pyproject.toml: the runtime with the oldest and the newest they allow, and every extra resolved.

The wheel is built once and installed without torch into an environment of its own per case; there `prunevid demo`
answers its questions and the fast tests of the runtime run. Run by `.ci/run` with the Python of the whole suite:
`.venv/bin/python .ci/versions.py [CASE ...]`. A Python that is not here is named, and is a failure under CI=true.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# What runs without torch, transformers and onnx; tests in them that need these say so and are skipped.
TESTS = (
    "test_cli.py",
    "test_config.py",
    "test_cost.py",
    "test_demo_command.py",
    "test_kv_cache.py",
    "test_preprocess.py",
    "test_prompt.py",
    "test_reference.py",
    "test_sampling.py",
    "test_video*.py",
)
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "imageio-ffmpeg")


def oldest(name: str) -> str:
    """The oldest release of a runtime dependency that pyproject.toml allows, as a pip constraint."""
    requirement = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name)
    (bound,) = (specifier.version for specifier in requirement.specifier if specifier.operator == ">=")
    return f"{name}=={bound}"


RUNTIME = [Requirement(line).name for line in PROJECT["dependencies"]]
# Case: its Python, and what pip is held to. JetPack 6 is Python 3.10 with ONNX Runtime 1.23.2 as its newest.
CASES = {
    "3.10 oldest": ("3.10", [oldest(name) for name in RUNTIME]),
    "3.10 newest": ("3.10", ["onnxruntime==1.23.2"]),
    "3.12 newest": ("3.12", []),
    "3.13 newest": ("3.13", []),
}


def run(log: Path, *command: str | Path, cwd: Path = ROOT, held: Path | None = None) -> None:
    """Run a command with its output appended to `log`; CalledProcessError where it fails.

    pip sees constraints of this project alone: what this machine is configured to prefer is not what users get.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "PIP_CONSTRAINT": str(held or os.devnull),
        "PIP_FIND_LINKS": str(log.parent / "no-links"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(map(str, command))}\n")
        output.flush()
        subprocess.run(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, check=True)


def find_python(version: str) -> str | None:
    """The path of a Python of this version, or None."""
    found = subprocess.run([ROOT / ".ci" / "find-python", version], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def check_runtime(work: Path, log: Path, python: str, wheel: Path, constraints: list[str]) -> str:
    """Install the wheel into a clean environment, ask the demo's questions, run the tests; returns what was run."""
    environment = work / "venv"
    run(log, python, "-m", "venv", environment)
    here = environment / "bin" / "python"
    run(log, here, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    held = work / "constraints.txt"
    held.write_text("\n".join(constraints) + "\n", encoding="utf-8")
    run(log, here, "-m", "pip", "install", "--quiet", wheel, *TEST_TOOLS, held=held)
    run(log, here, "-m", "pip", "check")
    # Away from the checkout, so that what is imported is what was installed.
    for name in ("tests", "demo"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work)
    run(log, environment / "bin" / "prunevid", "demo", cwd=work)
    tests = sorted({str(path.relative_to(work)) for name in TESTS for path in (work / "tests").glob(name)})
    run(log, here, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=work)
    versions = subprocess.run([here, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    installed = {entry["name"].lower(): entry["version"] for entry in json.loads(versions.stdout)}
    summary = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1].strip("= ")
    return ", ".join(f"{name} {installed[name]}" for name in RUNTIME) + f": {summary}"


def check_resolution(work: Path, log: Path, python: str, wheel: Path) -> str:
    """Resolve every extra, and `make`'s environment, with torch's ordinary wheel; returns what of torch was chosen.

    pip reads the wheels' metadata alone (fast-deps): nothing of torch's gigabytes is downloaded. The package tensorrt
    is a stub that asks NVIDIA's own index for the real one while its metadata are made, so it is found and not entered.
    """
    environment = work / "venv"
    run(log, python, "-m", "venv", environment)
    here = environment / "bin" / "python"
    run(log, here, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    dry = (here, "-m", "pip", "install", "--dry-run", "--quiet", "--use-feature=fast-deps")
    for extra, lines in PROJECT["optional-dependencies"].items():
        stubs = [line for line in lines if Requirement(line).name == "tensorrt"]
        if stubs:
            run(log, *dry, "--no-deps", *stubs)
            # Beside export, since who builds engines often exports too, and torch pins triton.
            rest = [line for line in lines if line not in stubs]
            run(log, *dry, f"prunevid[export] @ {wheel.as_uri()}", *rest)
        else:
            run(log, *dry, f"prunevid[{extra}] @ {wheel.as_uri()}")
    report = work / "report.json"
    run(log, *dry, "--report", report, f"prunevid[dev] @ {wheel.as_uri()}", held=ROOT / "constraints.txt")
    found = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    torch = sorted(
        f"{package['name']} {package['version']}" for package in found if package["name"] in ("torch", "triton")
    )
    return f"every extra resolves; make takes {' and '.join(torch)}"


def main(chosen: list[str]) -> int:
    """Run the cases (all, or those named); 1 where one failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        root = Path(folder)
        (root / "no-links").mkdir()
        run(root / "wheel.log", sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", root, ".")
        (wheel,) = root.glob("prunevid-*.whl")
        jobs: dict[str, tuple[str, Callable[..., str]]] = {
            case: (version, partial(check_runtime, wheel=wheel, constraints=held))
            for case, (version, held) in CASES.items()
        }
        jobs |= {f"{version} extras": (version, partial(check_resolution, wheel=wheel)) for version in PYTHONS}

        def work_on(name: str) -> tuple[str, bool, str]:
            version, check = jobs[name]
            python = find_python(version)
            if python is None:
                return name, os.environ.get("CI") != "true", f"not run: there is no Python {version} here"
            started, log = time.monotonic(), root / f"{name.replace(' ', '-')}.log"
            work = root / name.replace(" ", "-")
            work.mkdir()
            try:
                said = check(work, log, python)
            except subprocess.CalledProcessError:
                return name, False, "failed\n" + log.read_text(encoding="utf-8", errors="replace")
            finally:
                shutil.rmtree(work)
            return name, True, f"{said} ({time.monotonic() - started:.0f} s)"

        for name, good, said in pool.map(work_on, chosen or jobs):
            print(f"{name}: {said}", flush=True)
            failed += [] if good else [name]
    if failed:
        print(f"versions: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
