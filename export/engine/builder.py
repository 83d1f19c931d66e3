"""Building the engines of a bundle: what is checked first, what is built, and how it gets into the bundle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from prunevid import __version__
from prunevid.bundle import Bundle, FileRecord, Manifest, open_bundle, sha256_of
from prunevid.bundle.changing import changing, check_unchanged, replace_manifest
from prunevid.bundle.sections.engine_sets import EngineSpec
from prunevid.console.progress import Progress, Silent
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.export.engine.destinations import Destination, RtxGpus, ThisGpu
from prunevid.export.engine.jobs import BuildSettings, BuiltEngine, EngineJob
from prunevid.export.engine.profiles import TEXT, BuildLimits, limits_of, profiles_of
from prunevid.export.engine.rewriting import for_parser
from prunevid.export.engine.targets import LOCAL, RTX
from prunevid.files import reading

if TYPE_CHECKING:
    from prunevid.export.engine.rtx import RtxToolkit
    from prunevid.export.engine.toolkit import Toolkit

_WORK = "building engines of"
_PARTIAL = "partial"
# Called with the graph whose engine was built.
Done = Callable[[str, BuiltEngine], None]


@dataclass(frozen=True)
class _Plan:
    """What one engine will be built from. source: SHA-256 of all of it."""

    job: EngineJob
    source: str


def build(
    bundle: str | os.PathLike[str],
    *,
    device: str = LOCAL,
    fp16: bool = False,
    frames: int | None = None,
    text: int = TEXT,
    settings: BuildSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    done: Done | None = None,
    toolkit: Toolkit | RtxToolkit | None = None,
) -> Bundle:
    """Build TensorRT engines of a bundle's graphs, and add them to the bundle.

    device: `local`, or the device that this machine must be (see `targets`), or `rtx`: TensorRT for RTX, which
    builds on any machine for GPUs of the compute capabilities that `settings` have. fp16: insist on a bundle in half
    precision. frames and text: the largest video, by default the bundle's frames, and the rows for text. Engines that
    the bundle has already, built from the same for the same, are kept unless `force`. progress: is told
    how far an engine is; done: called when it is built. toolkit: the TensorRT to build with, by default the one that is
    installed.
    Returns the bundle with its engines; this build's are the last of its sets, and replaced those for the same GPUs.

    The bundle changes only when all engines are built. Raises PruneVidError for anything a caller can mend.
    """
    opened = open_bundle(bundle)
    _check_bundle(opened, fp16)
    limits = limits_of(opened.manifest, frames, text)
    settings = settings or BuildSettings()
    destination = _destination(opened.manifest, device, settings, toolkit)
    destination.prepare(opened.manifest, limits)
    plans = [_plan(opened, graph, limits, destination, settings) for graph in opened.manifest.graphs]
    kept = {} if force else _still_good(_same_set(opened.manifest, destination), plans)
    with changing(opened, _WORK) as folder:
        specs: dict[str, EngineSpec] = {}
        records: dict[str, FileRecord] = {}
        for plan in plans:
            graph = plan.job.graph
            if graph in kept:
                specs[graph] = kept[graph]
                continue
            specs[graph], record = _build_one(opened, plan, folder, destination, progress or Silent(), done)
            records[specs[graph].file] = record
        _install(opened, folder, destination, specs, records)
    return open_bundle(opened.path, verify=False)


def _destination(
    manifest: Manifest, device: str, settings: BuildSettings, toolkit: Toolkit | RtxToolkit | None
) -> Destination:
    from prunevid.export.engine.rtx import RtxToolkit
    from prunevid.export.engine.toolkit import Toolkit

    if device == RTX:
        return RtxGpus(cast("RtxToolkit", toolkit or RtxToolkit()), manifest.precision, settings)
    return ThisGpu(cast("Toolkit", toolkit or Toolkit()), device, manifest.precision, settings)


def _check_bundle(bundle: Bundle, fp16: bool) -> None:
    manifest = bundle.manifest
    if not DIALECTS[manifest.dialect].runs_on_tensorrt:
        raise PruneVidError(
            f"{bundle.path} is written in the {manifest.dialect!r} dialect, whose operators TensorRT does not have: "
            "export it with --dialect portable"
        )
    if fp16 and manifest.float_type != "fp16":
        raise PruneVidError(
            f"{bundle.path} is in {manifest.float_type}, and engines compute in the types of their graphs: "
            "export it with --precision fp16"
        )


def job_of(bundle: Bundle, graph: str, limits: BuildLimits, destination: Destination) -> EngineJob:
    """What the engine of a graph is built from; raises PruneVidError where the destination's parser refuses it."""
    file = bundle.file(bundle.manifest.graphs[graph].file)
    with reading(file):
        model = onnx.load(file, load_external_data=False)
    rewritten = for_parser(model, plugins_too=destination.plugins_too)
    profiles = profiles_of(bundle.manifest, graph, limits)
    job = EngineJob(graph, rewritten.SerializeToString(deterministic=True), file, profiles)
    destination.check(job, model)
    return job


def _plan(bundle: Bundle, graph: str, limits: BuildLimits, destination: Destination, settings: BuildSettings) -> _Plan:
    job, files = job_of(bundle, graph, limits, destination), bundle.manifest.files
    ingredients = {
        "model": hashlib.sha256(job.model).hexdigest(),
        "weights": {name: files[name].sha256 for name in sorted(_weight_files(onnx.load_from_string(job.model)))},
        "profiles": [asdict(profile) for profile in job.profiles],
        "workspace": settings.workspace,
        "prunevid": __version__,
        **destination.ingredients(),
    }
    source = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    return _Plan(job, source)


def _weight_files(model: onnx.ModelProto) -> set[str]:
    tensors = (tensor for tensor in model.graph.initializer if uses_external_data(tensor))
    return {str(ExternalDataInfo(tensor).location) for tensor in tensors}


def _still_good(found: dict[str, EngineSpec], plans: list[_Plan]) -> dict[str, EngineSpec]:
    """The engines among those `found` in the bundle that were built from the same."""
    graphs = {plan.job.graph: plan.source for plan in plans}
    return {graph: found[graph] for graph, source in graphs.items() if graph in found and found[graph].source == source}


def _same_set(manifest: Manifest, destination: Destination) -> dict[str, EngineSpec]:
    """The bundle's engines, by graph, that were built for the same by the same; none where there are none."""
    for engines in manifest.engine_sets:
        if engines == destination.engine_set(engines.graphs):
            return engines.graphs
    return {}


def _build_one(
    bundle: Bundle, plan: _Plan, folder: Path, destination: Destination, progress: Progress, done: Done | None
) -> tuple[EngineSpec, FileRecord]:
    """Build one engine into `folder`, under the name that it will have in the bundle."""
    graph = plan.job.graph
    progress.step(f"{graph}: starting")
    partial = folder / _PARTIAL
    built = destination.build(plan.job, partial, bundle.manifest, progress)
    record = FileRecord(partial.stat().st_size, sha256_of(partial))
    # The name tells one build from the next: a bundle in use keeps its files until its manifest is replaced.
    # It tells one set of engines from the next, too, of which two may be alike to the last byte.
    place = json.dumps([record.sha256, *destination.engine_set({}).place])
    name = f"{graph}{destination.mark}.{hashlib.sha256(place.encode()).hexdigest()[:12]}.engine"
    partial.rename(folder / name)
    if done is not None:
        done(graph, built)
    return EngineSpec(name, built.profiles, plan.source), record


def _install(
    bundle: Bundle,
    folder: Path,
    destination: Destination,
    engines: dict[str, EngineSpec],
    records: dict[str, FileRecord],
) -> None:
    """Move new engines into the bundle, then name them in its manifest, then remove those that it names no longer.

    All of it is moved out of `folder`, which no other bundle has: where one came into the place of this one at any
    moment, moving fails, and what came stays as it is.
    """
    built = destination.engine_set(engines)
    others = tuple(one for one in bundle.manifest.engine_sets if one.place != built.place)
    manifest = replace(bundle.manifest, engine_sets=(*others, built))
    stale = {spec.file for spec in bundle.manifest.all_engines} - {spec.file for spec in manifest.all_engines}
    files = {name: record for name, record in bundle.manifest.files.items() if name not in stale} | records
    manifest = replace(manifest, files=dict(sorted(files.items())))
    moved: list[Path] = []
    try:
        for name in records:
            (folder / name).replace(bundle.path / name)
            moved.append(bundle.path / name)
        check_unchanged(bundle, _WORK)
        replace_manifest(bundle, folder, manifest)
    except BaseException:
        for path in moved:
            if path.name not in bundle.manifest.files and folder.is_dir():
                path.unlink(missing_ok=True)
        raise
    for name in stale:
        if folder.is_dir():
            (bundle.path / name).unlink(missing_ok=True)
