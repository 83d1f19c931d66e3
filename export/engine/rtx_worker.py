"""The process in which TensorRT for RTX parses a graph and builds its engine: the only module that calls its builder.

The builder is deaf for seconds to minutes, holds several times the weights in memory, and may fail as native code
fails. In a process of its own it can be stopped at any moment, gives its memory back, and takes nobody along.

It answers lines of JSON, one request after the other: `parse`, then `build`. Replies are {"result": ...},
{"error": SENTENCE}, and while it builds {"progress": [WHAT, DONE, TOTAL]}.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from prunevid.export.engine.monitor import make_monitor

MODULE = "tensorrt_rtx"

_KIB = 1 << 10
_MOST_ERRORS = 3
# What the builder says behind the reason: of itself, not of the graph.
_HOLLOW = ("catchCudaError", "Unexpected exception")


class BuildError(Exception):
    """What the builder or its parser has against a graph."""


class Builder:
    """One graph on its way to an engine."""

    def __init__(self, trt: Any, tell: Callable[[dict[str, Any]], None]) -> None:
        self._trt, self._tell = trt, tell
        self._logger = _make_logger(trt)
        self._builder = trt.Builder(self._logger)
        # Strongly typed, as every network of TensorRT-RTX: it computes in the types of the graph.
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self._network, self._logger)

    def parse(self, model: str, file: str) -> dict[str, Any]:
        """Parse a model (base64), whose weights are found beside `file`. Returns the network's inputs and outputs."""
        if not self._parser.parse(base64.b64decode(model), file):
            errors = [self._parser.get_error(index) for index in range(self._parser.num_errors)]
            told = (f"{error.node_operator()} at {error.node_name()}: {error.desc()}" for error in errors)
            raise BuildError("; ".join(list(told)[:_MOST_ERRORS]) or "it gives no reason")
        network = self._network
        return {
            "inputs": [self._described(network.get_input(index)) for index in range(network.num_inputs)],
            "outputs": [self._described(network.get_output(index)) for index in range(network.num_outputs)],
        }

    def build(self, profiles: list[dict[str, Any]], capabilities: list[str], output: str) -> dict[str, Any]:
        """Build what was parsed and write the engine to `output`. Returns the most memory that this process had.

        profiles: each the corners of `shapes` and `values`, by input.
        """
        config = self.configured(profiles, capabilities)
        config.progress_monitor = make_monitor(self._trt, lambda *step: self._tell({"progress": step}))
        with open(output, "wb") as file:
            writer = _make_writer(self._trt, file)
            built = self._builder.build_serialized_network_to_stream(self._network, config, writer)
            if writer.failure is not None:
                raise writer.failure
        if not built:
            raise BuildError(self._logger.reason())
        return {"memory": _peak_memory()}

    def configured(self, profiles: list[dict[str, Any]], capabilities: list[str]) -> Any:
        """The builder's configuration."""
        trt = self._trt
        config = self._builder.create_builder_config()
        # On by default; the merge's decisions hang on float32 distances, which it would change.
        config.clear_flag(trt.BuilderFlag.TF32)
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            if not config.set_compute_capability(known_capabilities(trt)[capability], place):
                raise BuildError(self._logger.reason())
        for profile in profiles:
            made = self._builder.create_optimization_profile()
            for name, corners in profile["shapes"].items():
                if name not in profile["values"]:
                    made.set_shape(name, *corners)
            for name, corners in profile["values"].items():
                made.set_shape_input(name, *corners)
            if config.add_optimization_profile(made) < 0:
                raise BuildError(self._logger.reason())
        return config

    def _described(self, tensor: Any) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "dtype": tensor.dtype.name.lower(),
            "shape": list(tensor.shape),
            "is_shape": bool(tensor.is_shape_tensor),
        }


def _peak_memory() -> int | None:
    """The most memory that this process had, in bytes; None where there is no Linux to tell."""
    # getrusage() would also count what the process had that started this one.
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) * _KIB for line in status if line.startswith("VmHWM:")), None)
    except OSError:
        return None


def known_capabilities(trt: Any) -> dict[str, Any]:
    """The compute capabilities that a release builds for, ascending, as NVIDIA writes them ("12.0")."""
    members = trt.ComputeCapability.__members__
    numbered = {int(name[2:]): member for name, member in members.items() if re.fullmatch("SM[0-9]{2,3}", name)}
    return {f"{number // 10}.{number % 10}": numbered[number] for number in sorted(numbered)}


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors, and nothing else."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

        def reason(self) -> str:
            """The last error that says something, without the places in TensorRT's own code."""
            telling = [error for error in self.errors if not any(word in error for word in _HOLLOW)]
            error = (telling or self.errors or ["it gives no reason"])[-1]
            error = re.sub(r"^\S+ Error Code \d+: ", "", " ".join(error.split()))
            error = re.sub(r" at /\S+?:\d+", "", error)
            return re.sub(r"\[\S+\.(cpp|h):\d+: \w+\] ", "", error)

    return Logger()


def _make_writer(trt: Any, file: BinaryIO) -> Any:
    class Writer(trt.IStreamWriter):
        """Writes an engine as it is serialized, so that it is not in memory once more."""

        def __init__(self) -> None:
            super().__init__()
            self.failure: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # not to be raised through TensorRT
                self.failure = error
                return 0

    return Writer()


def main() -> None:
    """Answer requests until there are no more, and end at once when whoever asks has ended."""
    # Ctrl-C goes to all processes of a terminal: whoever asks decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What native code prints does not get between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import tensorrt_rtx

    serve(tensorrt_rtx, _requests(sys.stdin.buffer), replies)


def serve(trt: Any, requests: Iterator[bytes], replies: BinaryIO) -> None:
    """Answer every request, a line of JSON: {"do": METHOD, "with": {...}}."""

    def tell(reply: dict[str, Any]) -> None:
        try:
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
        except OSError:  # nobody listens
            os._exit(1)

    builder = Builder(trt, tell)
    for line in requests:
        request = json.loads(line)
        try:
            tell({"result": getattr(builder, request["do"])(**request["with"])})
        except BuildError as error:
            tell({"error": str(error)})
        except OSError as error:
            tell({"errno": error.errno, "error": error.strerror or str(error)})
        except Exception as error:  # of the bindings, which raise what they like
            tell({"error": f"{type(error).__name__}: {error}"})


def _requests(pipe: BinaryIO) -> Iterator[bytes]:
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in pipe:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()
