"""Calibrating a bundle from beginning to end: quantize, judge on held-out questions, write what passed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from prunevid import __version__
from prunevid.bundle import Bundle, check_target, new_bundle, open_bundle, record_files, write_manifest
from prunevid.bundle.sections.quantization import Quantization, QuantizedGraph
from prunevid.calibration.judge import Judgement, ask_all, judge
from prunevid.calibration.quantize.activations import Activations, input_groups, observe
from prunevid.calibration.quantize.kv_int8 import (
    LEAST_ONNXRUNTIME,
    Scales,
    check_cache,
    measure_scales,
    put_int8_cache,
    retype_cache,
    with_int8_cache,
)
from prunevid.calibration.quantize.linears import load_graph
from prunevid.calibration.quantize.recipes import KV_CACHES, RECIPES, Recipe
from prunevid.calibration.quantize.rewrite import TREATMENTS, layers_of, put_quantized
from prunevid.calibration.quantize.sensitivity import FloatChoice, measure_sensitivity
from prunevid.calibration.quantize.store import WeightStore, stored_bytes, write_rewritten
from prunevid.calibration.questions import AskedVideo, Split, check_questions, readable, split
from prunevid.calibration.workspace import Workspace, only_here
from prunevid.console.progress import Progress, Silent
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.files import copy_file
from prunevid.runtime.backends.registry import ON_CPU
from prunevid.runtime.pipeline import load
from prunevid.runtime.text.sampling import SamplingConfig


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    recipe: one of `prunevid.calibration.quantize.recipes.RECIPES`; min_agreement: share of held-out questions, 0
    to 1, that the result must answer as the original does, unless `force`; float_choice: which layers stay in float;
    max_new_tokens: length of an answer; threads: of the CPU, None for all cores; kv_cache: `int8`, or `float` to
    leave the KV cache as it is.
    """

    recipe: str
    min_agreement: float = 0.9
    force: bool = False
    float_choice: FloatChoice = field(default_factory=FloatChoice)
    max_new_tokens: int = 16
    threads: int | None = None
    kv_cache: str = "float"


@dataclass(frozen=True)
class Calibrated:
    """A bundle that was written, how it was judged, and the bytes that it and the original take."""

    bundle: Bundle
    judgement: Judgement
    size_before: int
    size_after: int


def calibrate(
    source: Path, videos: Sequence[AskedVideo], output: Path, settings: Settings, progress: Progress | None = None
) -> Calibrated:
    """Quantize the bundle at `source` and write it to `output`.

    A run that is killed goes on where it was when it is started again. Raises PruneVidError where the recipe is not
    for this bundle, where too few videos can be read, where the result agrees too little, or where `output` exists
    or cannot be written; then there is nothing at `output`.
    """
    progress = progress or Silent()
    recipe = _recipe(settings)
    check_output_is_new(output)
    progress.step(f"verifying {source}", 0)
    bundle = open_bundle(source)
    _check_bundle(bundle, recipe)
    if settings.kv_cache == "int8":
        check_cache(bundle)
    check_questions(bundle, videos)
    parts = split(readable(bundle, videos, progress))
    with only_here(output):
        return _calibrate(bundle, parts, output, settings, progress)


def _calibrate(bundle: Bundle, parts: Split, output: Path, settings: Settings, progress: Progress) -> Calibrated:
    """The long part, of which one process at a time does one."""
    check_output_is_new(output)
    workspace = Workspace(output, _digest(bundle, parts, settings))
    if workspace.resumed:
        progress.tell(f"going on with the work in {workspace.folder}")
    try:
        candidate = quantize(bundle, parts, settings, workspace, progress)
        judgement = _judge(bundle, candidate, parts.held_out, settings, workspace, progress)
        _check_agreement(judgement, settings, workspace)
        written = _publish(candidate, output, judgement)
    except OSError as error:
        raise PruneVidError(
            f"writing {error.filename or workspace.folder} failed: {error.strerror or error}; start again to go on"
        ) from error
    workspace.remove()
    return Calibrated(written, judgement, bundle.size, written.size)


def check_output_is_new(output: Path) -> None:
    """Raise PruneVidError where there is something at `output`, or nothing can be put there."""
    if output.exists() and not output.is_symlink():
        raise PruneVidError(f"{output} exists already: choose another output, or remove it")
    check_target(output)


def quantize(bundle: Bundle, parts: Split, settings: Settings, workspace: Workspace, progress: Progress) -> Bundle:
    """Quantize a bundle into the workspace, without judging it; what is finished there is not done again.

    Returns the quantized bundle, which lies in the workspace's folder `bundle`. Recipes that look at activations, and
    float layers, need videos in `parts.calibration`. Raises PruneVidError for a recipe that there is not, OSError
    where the workspace cannot be written.
    """
    recipe = _recipe(settings)
    _quantize(bundle, recipe, parts, settings, workspace, progress)
    float_layers = _float_layers(bundle, recipe, parts, settings, workspace, progress)
    cache_scales: dict[str, list[Scales]] = {}
    if settings.kv_cache == "int8":
        sampling = SamplingConfig(max_new_tokens=settings.max_new_tokens)
        cache_scales = measure_scales(bundle, parts.calibration, sampling, settings.threads, workspace, progress)
    return _assemble(bundle, recipe, workspace, float_layers, cache_scales, progress)


def _recipe(settings: Settings) -> Recipe:
    if settings.recipe not in RECIPES:
        raise PruneVidError(f"unknown recipe {settings.recipe!r}: known are {', '.join(RECIPES)}")
    if settings.kv_cache not in KV_CACHES:
        raise PruneVidError(f"unknown KV cache {settings.kv_cache!r}: known are {', '.join(KV_CACHES)}")
    if not 0 <= settings.min_agreement <= 1:
        raise PruneVidError(f"the least agreement must be between 0 and 1, not {settings.min_agreement}")
    SamplingConfig(max_new_tokens=settings.max_new_tokens)  # refuses what is no number of tokens
    return RECIPES[settings.recipe]


def _check_bundle(bundle: Bundle, recipe: Recipe) -> None:
    manifest = bundle.manifest
    if manifest.quantization is not None:
        raise PruneVidError(f"{bundle.path} is quantized already ({manifest.quantization.recipe}): give the original")
    if manifest.dialect not in recipe.dialects:
        others = [other.name for other in RECIPES.values() if manifest.dialect in other.dialects]
        wanted = " or ".join(recipe.dialects)
        raise PruneVidError(
            f"the recipe {recipe.name} is for bundles of the dialect {wanted}, {bundle.path} is in "
            f"{manifest.dialect}: take {' or '.join(others)}, or export it again with --dialect {wanted}"
        )
    able = DIALECTS[manifest.dialect].quantizable
    if manifest.precision not in able:
        wanted = " or ".join(able)
        raise PruneVidError(
            f"the recipe {recipe.name} starts from {wanted} weights, {bundle.path} is in {manifest.precision}: export "
            f"it again with --precision {wanted}"
        )


def _digest(bundle: Bundle, parts: Split, settings: Settings) -> str:
    """A digest of all that the results of steps depend on."""
    questions = [
        [str(video.path.resolve()), [[question.text, question.answer] for question in video.questions]]
        for video in (*parts.calibration, *parts.held_out)
    ]
    files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    depends_on = [
        __version__,
        files,
        asdict(bundle.manifest.prune),
        questions,
        settings.recipe,
        # What is done to a graph changes between versions, and its description with it.
        [
            TREATMENTS[treatment].text
            for treatment in RECIPES[settings.recipe].dialects[bundle.manifest.dialect].values()
        ],
        settings.max_new_tokens,
    ]
    return _hashed(depends_on)


def _hashed(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _quantize(
    bundle: Bundle, recipe: Recipe, parts: Split, settings: Settings, workspace: Workspace, progress: Progress
) -> None:
    """Quantize every layer that the recipe treats, one by one, into the workspace."""
    for name, called in recipe.dialects[bundle.manifest.dialect].items():
        treatment, store = TREATMENTS[called], WeightStore(workspace, name)
        whole = input_groups(load_graph(bundle.file(bundle.manifest.graphs[name].file)))
        taken = {x: [linear for linear in group if treatment.takes(linear.weight)] for x, group in whole.items()}
        groups = {source: group for source, group in taken.items() if group}
        missing = {source: group for source, group in groups.items() if not all(map(store.has, group))}
        activations: dict[str, Activations] = {}
        if treatment.activation_aware and missing:
            progress.step(f"observing what goes into the layers of {name}", len(parts.calibration))
            activations = observe(bundle, name, parts.calibration, settings.threads, progress.advance)
        progress.step(f"quantizing {name}", sum(linear.weight.tensor.nbytes for g in missing.values() for linear in g))
        for source, group in missing.items():
            inputs = treatment.fit([linear.weight for linear in group], activations.get(source))
            for linear in group:
                store.quantize(linear, treatment.quantize, inputs)
                progress.advance(linear.weight.tensor.nbytes)


def _float_layers(
    bundle: Bundle, recipe: Recipe, parts: Split, settings: Settings, workspace: Workspace, progress: Progress
) -> frozenset[str]:
    """The layers (`GRAPH/LAYER`) that are to stay in float; measured only where there may be any."""
    if not settings.float_choice.needs_ranking:
        return frozenset()
    found = measure_sensitivity(bundle, recipe, parts.calibration, workspace, settings.threads, progress)
    chosen = settings.float_choice.choose(found)
    for layer in sorted(chosen, key=lambda name: -found[name]):
        progress.tell(f"stays in float: {layer}, which alone costs {found[layer]:.5f} nats")
    return chosen


def _assemble(
    bundle: Bundle,
    recipe: Recipe,
    workspace: Workspace,
    float_layers: frozenset[str],
    cache_scales: Mapping[str, Sequence[Scales]],
    progress: Progress,
) -> Bundle:
    """Write the quantized bundle into the workspace; `float_layers` (`GRAPH/LAYER`) stay as they are.

    cache_scales: by graph; without them the KV cache stays in float.
    """
    folder = workspace.folder / "bundle"
    whole = _open_whole(folder)
    choice = [sorted(float_layers), bool(cache_scales)]
    if whole and "bundle" in workspace and workspace["bundle"] == choice:
        return whole
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    done: dict[str, QuantizedGraph] = {}
    weights: dict[str, tuple[str, ...]] = {}
    for name, treatment in recipe.dialects[bundle.manifest.dialect].items():
        done[name], weights[name] = _write_quantized(
            bundle, name, treatment, workspace, float_layers, cache_scales.get(name), folder, progress
        )
    _copy_others(bundle, done, folder, progress)
    manifest = bundle.manifest
    graphs = {
        name: replace(graph, files=weights[name]) if name in weights else graph
        for name, graph in manifest.graphs.items()
    }
    if cache_scales:
        select = load_graph(folder / manifest.graphs["select"].file)
        retype_cache(select)
        ir.save(select, folder / manifest.graphs["select"].file)
        graphs = {name: with_int8_cache(graph) for name, graph in graphs.items()}
        cache = replace(manifest.cache, dtype="int8")
        manifest = replace(manifest, cache=cache, least_onnxruntime=LEAST_ONNXRUNTIME)
    manifest = replace(
        manifest,
        model=replace(manifest.model, tied=manifest.embeddings.file in graphs["llm_post"].files),
        precision=recipe.precision,
        graphs=graphs,
        quantization=Quantization(recipe.name, done, 0, 0.0, 0.0),
        files=record_files(folder),
        engine_sets=(),
    )
    write_manifest(folder, manifest)
    workspace.record("bundle", choice)
    return open_bundle(folder, verify=False)


def _open_whole(folder: Path) -> Bundle | None:
    """The bundle in `folder`; None where a run was killed while it moved the files to their place."""
    try:
        return open_bundle(folder, verify=False)
    except PruneVidError:
        return None


def _write_quantized(
    bundle: Bundle,
    name: str,
    treatment: str,
    workspace: Workspace,
    float_layers: frozenset[str],
    cache_scales: Sequence[Scales] | None,
    folder: Path,
    progress: Progress,
) -> tuple[QuantizedGraph, tuple[str, ...]]:
    """Write one graph; returns what was done to it, and the files that hold its weights."""
    model = load_graph(bundle.file(bundle.manifest.graphs[name].file))
    layers, others = layers_of(model, TREATMENTS[treatment])
    chosen = [layer for layer in layers if f"{name}/{layer}" in float_layers]
    stay = (*chosen, *others)
    store = WeightStore(workspace, name)
    put_quantized(model, TREATMENTS[treatment], {layer: store.tensors(layer) for layer in layers if layer not in stay})
    if cache_scales is not None:
        put_int8_cache(model, cache_scales)
    shared = frozenset({bundle.manifest.embeddings.file})
    progress.step(f"writing {name}", stored_bytes(model, shared))
    files = write_rewritten(model, folder, shared, progress.advance)
    return QuantizedGraph(TREATMENTS[treatment].text, len(layers) - len(chosen), stay), files


def _copy_others(bundle: Bundle, quantized: Mapping[str, QuantizedGraph], folder: Path, progress: Progress) -> None:
    """Copy the bundle's files, but for those of quantized graphs and engines."""
    graphs = [bundle.manifest.graphs[name] for name in quantized]
    replaced = {file for graph in graphs for file in (graph.file, *graph.files)} - {bundle.manifest.embeddings.file}
    replaced |= {engine.file for engine in bundle.manifest.all_engines}
    others = [name for name in bundle.manifest.files if name not in replaced]
    progress.step("copying the rest", len(others))
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(bundle.file(name), folder / name)
        progress.advance()


def _judge(
    bundle: Bundle,
    candidate: Bundle,
    held_out: Sequence[AskedVideo],
    settings: Settings,
    workspace: Workspace,
    progress: Progress,
) -> Judgement:
    """Ask both bundles the held-out questions, one bundle after the other, so that never both are in memory."""
    sampling = SamplingConfig(max_new_tokens=settings.max_new_tokens)
    # Replies of a bundle with other layers in float are others.
    choice = _hashed([candidate.manifest.files[file].sha256 for file in sorted(candidate.manifest.files)])[:16]
    replies = []
    for what, step, asked in (("original", "original", bundle), ("quantized", choice, candidate)):
        progress.step(f"asking the {what} bundle", len(held_out))
        pipeline = load(asked, ON_CPU, threads=settings.threads, verify=False)
        replies.append(ask_all(pipeline, held_out, sampling, workspace, step, progress.advance))
        del pipeline
    return judge(held_out, *replies)


def _check_agreement(judgement: Judgement, settings: Settings, workspace: Workspace) -> None:
    if judgement.agreement < settings.min_agreement and not settings.force:
        raise PruneVidError(
            f"quantized by {settings.recipe}, the bundle answers {judgement.agreement:.1%} of {judgement.questions} "
            f"held-out questions as the original does, less than {settings.min_agreement:.1%}: nothing was written; "
            f"leave sensitive layers in float, or write it with --force (the work is kept in {workspace.folder})"
        )


def _publish(candidate: Bundle, output: Path, judgement: Judgement) -> Bundle:
    """Move the judged bundle from the workspace to its place, with the judgement in its manifest."""
    assert candidate.manifest.quantization is not None  # _assemble wrote it
    judged = replace(
        candidate.manifest.quantization,
        questions=judgement.questions,
        agreement=judgement.agreement,
        divergence=judgement.divergence,
    )
    with new_bundle(output) as folder:
        for name in candidate.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (candidate.path / name).rename(folder / name)
        write_manifest(folder, replace(candidate.manifest, quantization=judged))
    return open_bundle(output, verify=False)
