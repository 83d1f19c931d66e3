"""TensorRT-RTX's own parser and builder as judges of graphs, in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

# By input: the least, the usual and the most.
Sizes = dict[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Question:
    """A graph to parse, and to build if `build` says so.

    model: serialized; its weights lie beside the file `beside`. shapes and values: smallest, usual and largest of
    inputs of symbolic shape and of inputs that shapes are computed from. capability: what is built for.
    """

    model: bytes
    beside: str = ""
    shapes: Sizes = field(default_factory=dict)
    values: Sizes = field(default_factory=dict)
    build: bool = False
    capability: str = "SM120"


@dataclass(frozen=True)
class Verdict:
    """What the parser and the builder said: None where they took the graph. A graph that is not parsed is not built."""

    parser: str | None
    builder: str | None = None

    @property
    def taken(self) -> bool:
        """Whether neither had an objection."""
        return self.parser is None and self.builder is None


class Judge:
    """Asks the process that has TensorRT-RTX."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Verdicts on graphs, in their order."""
        return list(self._pool.map(_verdict, questions, chunksize=50))


@contextmanager
def judge() -> Iterator[Judge]:
    """A process with TensorRT-RTX's parser and builder, for as long as the context lasts."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        yield Judge(pool)


def _quiet() -> None:
    """What the parser prints about types is told by its errors as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@cache
def _tools() -> Any:
    import tensorrt_rtx as trt

    class Logger(trt.ILogger):
        """Keeps errors until the next question."""

        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.messages.append(message)

    logger = Logger()
    return trt, logger, trt.Builder(logger)


def _verdict(question: Question) -> Verdict:
    trt, logger, builder = _tools()
    logger.messages.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(question.model, question.beside):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return Verdict("; ".join(f"{error.node_operator()}: {error.desc()}" for error in errors) or "no reason")
    return Verdict(None, _build(question, network) if question.build else None)


def _build(question: Question, network: Any) -> str | None:
    trt, logger, builder = _tools()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, question.capability), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor and tensor.name in question.values:
            profile.set_shape_input(tensor.name, *question.values[tensor.name])
        elif tensor.name in question.shapes and -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *question.shapes[tensor.name])
    config.add_optimization_profile(profile)
    logger.messages.clear()
    engine = builder.build_serialized_network(network, config)
    return None if engine is not None else "; ".join(logger.messages) or "no reason"
