"""One engine to build, and one that was built: what the builder and its toolkits tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunevid.bundle.sections.engine_sets import EngineProfile
from prunevid.export.engine.profiles import Profile


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    workspace: MiB of GPU memory that an engine may use while it runs, None for all. timing_cache: a file that is read
    if there is one and written afterwards. TensorRT for RTX has neither. capabilities: the compute capabilities that it
    builds for ("8.6"), none for all that it knows and the bundle's precision allows.
    """

    workspace: int | None = None
    timing_cache: Path | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineJob:
    """What an engine is built from.

    model: the serialized graph as the parser wants it. file: the graph's own file in the bundle, beside which the
    parser finds the weights.
    """

    graph: str
    model: bytes
    file: Path
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was written to a file: its profiles, and what building it took.

    seconds: parsing included; parse_seconds: of them, until it was parsed. memory: the largest that the process which
    built it had at a time in bytes; None where the engine was built in this one.
    """

    profiles: tuple[EngineProfile, ...]
    seconds: float
    memory: int | None = None
    parse_seconds: float | None = None
