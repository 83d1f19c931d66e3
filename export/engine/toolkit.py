"""TensorRT's builder, Polygraphy and CUDA's driver: the only module that calls them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from prunevid.bundle import Manifest
from prunevid.bundle.sections.engine_sets import EngineDevice, EngineProfile
from prunevid.console.progress import Progress
from prunevid.errors import PruneVidError
from prunevid.export.engine import plugins
from prunevid.export.engine.jobs import BuildSettings, BuiltEngine, EngineJob
from prunevid.export.engine.monitor import make_monitor
from prunevid.export.engine.profiles import recorded

_MIB = 1 << 20


class Toolkit:
    """The TensorRT at hand. Raises PruneVidError where it, Polygraphy or cuda-python is missing."""

    def __init__(self) -> None:
        self._trt = _import("tensorrt", "tensorrt", "on a Jetson it is JetPack's python3-libnvinfer, elsewhere ")
        self._polygraphy = _import("polygraphy.backend.trt", "polygraphy")
        self._cuda = _import("cuda.bindings.runtime", "cuda-python")
        logger = import_module("polygraphy.logger").G_LOGGER
        # TensorRT's errors come out under this level, too; what is going on is told by the progress.
        logger.module_severity = logger.ERROR

    @property
    def version(self) -> str:
        """TensorRT's full version."""
        return str(self._trt.__version__)

    def device(self) -> EngineDevice:
        """The GPU that engines are built on: CUDA's device 0. Raises PruneVidError where there is none."""
        properties = self._call("cudaGetDeviceProperties", 0)
        driver = self._call("cudaDriverGetVersion")
        return EngineDevice(
            release=self.version,
            gpu=properties.name.decode().rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def register_plugins(self) -> None:
        """Make the `prunevid` plugins known to TensorRT's parser and builder."""
        plugins.register(self.device())

    def build(
        self, job: EngineJob, output: Path, manifest: Manifest, settings: BuildSettings, progress: Progress
    ) -> BuiltEngine:
        """Build the engine of a graph into the file `output`.

        Raises PruneVidError where TensorRT refuses it, naming the node, and KeyboardInterrupt where the user stopped
        it.
        """
        backend = self._polygraphy
        started = time.monotonic()
        with _polygraphy_errors(f"TensorRT {self.version} failed to build {job.graph}"):
            builder, network = self._network(job.graph)
            parser = self._parse(network, job)
            inputs = [network.get_input(index) for index in range(network.num_inputs)]
            shape_inputs = [tensor.name for tensor in inputs if tensor.is_shape_tensor]
            known = tuple(recorded(manifest, job.graph, profile, shape_inputs) for profile in job.profiles)
            monitor = make_monitor(
                self._trt, lambda phase, done, total: progress.step(f"{job.graph}: {phase}", total, done)
            )
            workspace = settings.workspace
            cache = None if settings.timing_cache is None else os.fspath(settings.timing_cache)
            config = backend.CreateConfig(
                profiles=[self._profile(profile) for profile in known],
                # The merge's decisions hang on float32 distances: TensorFloat-32 would change them.
                tf32=False,
                memory_pool_limits=workspace and {self._trt.MemoryPoolType.WORKSPACE: workspace * _MIB},
                load_timing_cache=cache,
                progress_monitor=monitor,
            )
            build = backend.EngineBytesFromNetwork((builder, network, parser), config, save_timing_cache=cache)
            try:
                data = memoryview(build())
            finally:
                if monitor.interrupted:
                    raise KeyboardInterrupt
        output.write_bytes(data)
        return BuiltEngine(known, time.monotonic() - started)

    def runner(self, engine: Path, profile: int) -> Any:
        """A Polygraphy runner of an engine's file under its profile of that number."""
        load = self._polygraphy.EngineFromPath(os.fspath(engine))
        return self._polygraphy.TrtRunner(load, name="TensorRT", optimization_profile=profile)

    def _network(self, graph: str) -> Any:
        try:
            return self._polygraphy.create_network(strongly_typed=True)
        except TypeError as error:  # what the bindings make of a builder that is null
            raise PruneVidError(
                f"TensorRT {self.version} cannot start its builder for {graph} ({error}): "
                "its messages above say why; most often the driver is too old for it"
            ) from error

    def _parse(self, network: Any, job: EngineJob) -> Any:
        logger = import_module("polygraphy.backend.trt.util").get_trt_logger()
        self._trt.init_libnvinfer_plugins(logger, "")
        parser = self._trt.OnnxParser(network, logger)
        if not parser.parse(job.model, os.fspath(job.file)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            told = "; ".join(f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors[:3])
            raise PruneVidError(f"TensorRT {self.version} cannot parse {job.graph}: {told or 'it gives no reason'}")
        return parser

    def _profile(self, profile: EngineProfile) -> Any:
        made = self._polygraphy.Profile()
        for name, at in {**profile.shapes, **profile.values}.items():
            made.add(name, at.minimum, at.optimum, at.maximum)
        return made

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, function)(*arguments)
        if int(error):
            raise PruneVidError(
                f"no NVIDIA GPU can be used here ({function}: {error.name}): "
                "engines are built on the device that runs them"
            )
        return values[0]


@contextmanager
def _polygraphy_errors(what: str) -> Iterator[None]:
    from polygraphy.exception import PolygraphyException

    try:
        yield
    except PolygraphyException as error:
        reason = str(error).strip().splitlines()
        raise PruneVidError(f"{what}: {reason[0] if reason else 'it gives no reason'}") from error


def _import(name: str, package: str, hint: str = "") -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise PruneVidError(f"{package} cannot be loaded ({error}): {hint}pip install 'prunevid[tensorrt]'") from error
