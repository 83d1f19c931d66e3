"""Engines against ONNX Runtime: every output of every graph under every profile, on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunevid.bundle import Bundle, Manifest, TensorSpec
from prunevid.bundle.sections.engine_sets import EngineProfile, engines_for
from prunevid.errors import PruneVidError
from prunevid.export.engine.inputs import make_inputs
from prunevid.export.engine.toolkit import Toolkit

# Largest difference that passes, as a share of an output's largest value. Whole numbers must be equal.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2}


@dataclass(frozen=True)
class OutputCheck:
    """How far one output of an engine is from ONNX Runtime's.

    difference: the largest, as a share of the largest value of ONNX Runtime's output; None where the shapes differ.
    """

    graph: str
    profile: str
    output: str
    difference: float | None
    passed: bool


def check_engines(bundle: Bundle, toolkit: Toolkit, seed: int = 0) -> Iterator[OutputCheck]:
    """Compare every engine of a bundle with ONNX Runtime on the CPU, under each profile at its usual sizes.

    Raises PruneVidError where the bundle has no engines or one does not run.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    manifest = bundle.manifest
    if not manifest.engines_of("tensorrt"):
        raise PruneVidError(f"{bundle.path} has no engines: build them first")
    engines = engines_for(manifest.engine_sets, "tensorrt", toolkit.device())
    for graph, engine in engines.graphs.items():
        file = bundle.file(manifest.graphs[graph].file)
        for number, profile in enumerate(engine.profiles):
            reference = OnnxrtRunner(SessionFromOnnx(str(file)), name="ONNX Runtime")
            runners = [toolkit.runner(bundle.file(engine.file), number), reference]
            inputs = usual_inputs(manifest, graph, profile, seed)
            yield from compare(runners, inputs, manifest, graph, profile.name)


def usual_inputs(manifest: Manifest, graph: str, profile: EngineProfile, seed: int) -> dict[str, Any]:
    """Inputs of a graph at a profile's usual sizes; at 1 where those are 0 and may be more, so that none is empty."""
    sizes: dict[str, int] = {}
    for spec in manifest.graphs[graph].inputs:
        at = profile.shapes[spec.name]
        for dim, usual, largest in zip(spec.shape, at.optimum, at.maximum, strict=True):
            if isinstance(dim, str):
                sizes[dim] = max(usual, min(1, largest))
    if "frames_past" in sizes:
        sizes["frame_counts"] = sizes["frames_new"] + sizes["frames_past"] + 1
    values = {name: at.optimum[0] for name, at in profile.values.items()}
    return make_inputs(manifest, graph, sizes, values, seed)


def compare(
    runners: Sequence[Any], inputs: Mapping[str, Any], manifest: Manifest, graph: str, profile: str
) -> Iterator[OutputCheck]:
    """Run two Polygraphy runners on the same inputs, and compare the first one's outputs with the second's."""
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run(list(runners), data_loader=[dict(inputs)])
    except PolygraphyException as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PruneVidError(f"{graph} cannot be run under the profile {profile}: {reason}") from error
    found, expected = (iterations[0] for _, iterations in results.items())
    specs = manifest.graphs[graph].outputs
    allowed = {spec.name: _allowed(spec, expected[spec.name], manifest.float_type) for spec in specs}
    function = SimpleCompareFunc(rtol=0.0, atol=allowed, check_error_stat="max")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore"):
        accuracy = Comparator.compare_accuracy(results, compare_func=function)
    verdicts = next(iter(accuracy[0].values()))[0]
    for spec in specs:
        same_shape = found[spec.name].shape == expected[spec.name].shape
        difference = _difference(found[spec.name], expected[spec.name]) if same_shape else None
        yield OutputCheck(graph, profile, spec.name, difference, same_shape and bool(verdicts[spec.name]))


def _allowed(spec: TensorSpec, expected: npt.NDArray[Any], precision: str) -> float:
    if not spec.dtype.startswith("float"):
        return 0.0
    return TOLERANCES[precision] * _scale(expected)


def _scale(values: npt.NDArray[Any]) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0.0)) or 1.0


def _difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    return float(apart) / _scale(expected)
