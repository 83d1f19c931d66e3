"""TensorRT for RTX: asking its builder, in a process of its own, for the engines of a bundle's graphs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import prunevid
from prunevid.bundle import Manifest
from prunevid.console.progress import Progress
from prunevid.errors import PruneVidError
from prunevid.export.engine.jobs import BuildSettings, BuiltEngine, EngineJob
from prunevid.export.engine.profiles import recorded
from prunevid.export.engine.rtx_worker import MODULE, known_capabilities

_PROGRAM = "import sys; sys.path[:] = {path!r}; from prunevid.export.engine.rtx_worker import main; main()"
# NVIDIA's support matrix: Linux on x86-64 and aarch64, Windows on x86-64.
_PLATFORMS = ("linux", "win32")


class RtxToolkit:
    """The TensorRT for RTX that is installed. Needs no GPU and no driver. Raises PruneVidError where it is missing.

    Attributes:
        version: Its full version ("1.7.1.116").
        capabilities: The compute capabilities that it builds for ("8.6"), ascending.
    """

    def __init__(self) -> None:
        if sys.platform not in _PLATFORMS:
            raise PruneVidError(
                f"TensorRT-RTX is there for Linux and Windows, and this is {sys.platform}: build there, on any machine "
                "with or without a GPU, and copy the bundle"
            )
        try:
            module = import_module(MODULE)
        except (ImportError, OSError) as error:  # one of its libraries
            raise PruneVidError(f"{MODULE} cannot be loaded ({error}): pip install 'prunevid[rtx]'") from error
        self.version = str(module.__version__)
        self.capabilities = tuple(known_capabilities(module))

    def parse(self, job: EngineJob) -> dict[str, list[dict[str, Any]]]:
        """The inputs and outputs of a graph as TensorRT sees them: each name, dtype, shape (-1: any), and is_shape.

        Raises PruneVidError where the parser refuses the graph, naming the node.
        """
        with self._worker(job) as worker:
            return self._parse(worker, job)

    def build(
        self, job: EngineJob, output: Path, manifest: Manifest, settings: BuildSettings, progress: Progress
    ) -> BuiltEngine:
        """Build the engine of a graph into the file `output`, for the capabilities of `settings`.

        Raises PruneVidError where TensorRT refuses it, with what its parser or builder says, and OSError where the
        engine cannot be written.
        """
        started = time.monotonic()
        with self._worker(job) as worker:
            inputs = self._parse(worker, job)["inputs"]
            parsed = time.monotonic() - started
            shape_inputs = [tensor["name"] for tensor in inputs if tensor["is_shape"]]
            known = tuple(recorded(manifest, job.graph, profile, shape_inputs) for profile in job.profiles)
            profiles = [
                {
                    kind: {name: (at.minimum, at.optimum, at.maximum) for name, at in ranges.items()}
                    for kind, ranges in (("shapes", profile.shapes), ("values", profile.values))
                }
                for profile in known
            ]
            arguments = {
                "profiles": profiles,
                "capabilities": settings.capabilities,
                "output": os.fspath(output),
            }
            built = worker.ask("build", arguments, "failed to build", progress)
        return BuiltEngine(known, time.monotonic() - started, built["memory"], parsed)

    def _parse(self, worker: _Worker, job: EngineJob) -> dict[str, Any]:
        arguments = {"model": base64.b64encode(job.model).decode(), "file": os.fspath(job.file)}
        found: dict[str, Any] = worker.ask("parse", arguments, "cannot parse")
        return found

    @contextmanager
    def _worker(self, job: EngineJob) -> Iterator[_Worker]:
        worker = _Worker(f"TensorRT-RTX {self.version}", job.graph)
        try:
            yield worker
        finally:
            worker.stop()


class _Worker:
    """The process that builds one engine."""

    def __init__(self, builder: str, graph: str) -> None:
        self._builder, self._graph = builder, graph
        path = [*(entry or os.getcwd() for entry in sys.path), str(Path(prunevid.__file__).parents[1])]
        try:
            # Isolated and without site: what it imports is what this process imports.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM.format(path=path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError) as error:
            raise PruneVidError(f"cannot start a process for {builder}: {error}") from error

    def ask(self, what: str, arguments: dict[str, Any], failing: str, progress: Progress | None = None) -> Any:
        """The answer to a request. Raises PruneVidError for one that is refused, OSError for a file that fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it has ended: that is told below
            self._process.stdin.write(json.dumps({"do": what, "with": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break
            reply = json.loads(line)
            if "progress" in reply:
                if progress is not None:
                    phase, done, total = reply["progress"]
                    progress.step(f"{self._graph}: {phase}", total, done)
            elif "errno" in reply:
                raise OSError(reply["errno"], reply["error"])
            elif "error" in reply:
                raise PruneVidError(f"{self._builder} {failing} {self._graph}: {reply['error']}")
            else:
                return reply["result"]
        raise PruneVidError(f"{self._builder} {failing} {self._graph}: its process {_ending(self._process.wait())}")

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _ending(status: int) -> str:
    if sys.platform != "win32" and status == -signal.SIGKILL:
        return "was killed, most likely since memory ran out"
    return f"ended with status {status}"
