"""From a checkpoint to a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunevid import __version__
from prunevid.bundle import (
    MOST_FRAMES,
    SCHEMA_VERSION,
    Bundle,
    EmbeddingSpec,
    Manifest,
    ModelSpec,
    new_bundle,
    open_bundle,
    record_files,
    write_manifest,
)
from prunevid.bundle.sections.blocks import DEFAULT_BLOCKS
from prunevid.bundle.sections.cache import KvCacheSpec
from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.config import PruneConfig
from prunevid.console.progress import Progress, Silent
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.export import writer
from prunevid.export.catalog import find_checkpoint, shipped_config
from prunevid.export.checkpoint.json_files import read_json
from prunevid.export.checkpoint.weights import RandomWeights, SafetensorsWeights, StreamedTensor, Weights
from prunevid.export.families import family_of
from prunevid.export.families.family import Family
from prunevid.export.families.text_config import head_is_stored, is_tied
from prunevid.export.graphs.decoder import build_llm_post, build_llm_pre
from prunevid.export.graphs.dialects import dialect_named
from prunevid.export.graphs.merge import FeatureShape, build_merge
from prunevid.export.graphs.select import build_select
from prunevid.export.graphs.vision import build_vision_merge
from prunevid.export.lint.unsupported import check_graphs
from prunevid.export.processor_files import read_preprocessing
from prunevid.export.prompt_files import CheckpointPrompt, prompt_of_bytes, read_prompt
from prunevid.export.settings import PRECISIONS
from prunevid.models import KnownModel, known_model
from prunevid.validation import require_integer

_DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
_EMBEDDINGS = "embeddings.bin"


@dataclass(frozen=True)
class _Source:
    """Where the model comes from: the known model, its checkpoint folder (None: random weights), family and config."""

    model: KnownModel
    checkpoint: Path | None
    family: Family
    config: Any


@dataclass(frozen=True)
class _Inputs:
    """All that is read of a checkpoint, checked: what follows only fails where the machine does.

    empty: the transformers model without memory. tied: whether the embedding table is the output matrix. prompt: None
    for random weights.
    """

    empty: Any
    weights: Weights
    tied: bool
    prompt: CheckpointPrompt | None
    preprocessing: Preprocessing


def export(
    model: str,
    output: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    random_weights: bool = False,
    dialect: str = "ort",
    precision: str = "fp32",
    frames: int | None = None,
    prune: PruneConfig | Callable[[int], PruneConfig] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a video language model as a bundle of ONNX graphs.

    model: a name of `prunevid.models.KNOWN`. checkpoint: folder or hub repository, by
    default the model's own; `random_weights` needs none, and gives the real architecture for measuring latency.
    dialect: `ort` or `portable`; precision: `fp32` or `fp16`. frames: how many a run shows by default (the
    graphs take any number). prune: the settings, or a function from the number of layers to them; by default the
    paper's, with prune_layer scaled to the model's depth.
    output: the bundle's folder, which appears when it is whole. Raises PruneVidError for anything a caller can mend.
    """
    _check_choice("dialect", dialect, tuple(DIALECTS))
    _check_choice("precision", precision, PRECISIONS)
    source = _find_source(known_model(model), checkpoint, random_weights)
    layers = source.config.text_config.num_hidden_layers
    if not isinstance(prune, PruneConfig):
        prune = (prune or PruneConfig.for_depth)(layers)
    if prune.prune_layer >= layers - 1:
        raise PruneVidError(
            f"prune_layer {prune.prune_layer} leaves no layer behind it: {model} has {layers}, give 0 to {layers - 2}"
        )
    frames = source.model.frames if frames is None else frames
    require_integer("frames", frames, 1, MOST_FRAMES)
    # What is wrong with a checkpoint should not be found out after gigabytes of weights.
    inputs = _read_inputs(source, _DTYPES[precision])
    with new_bundle(output, overwrite=overwrite) as folder:
        manifest = _write(folder, source, inputs, dialect, precision, frames, prune, progress or Silent())
        write_manifest(folder, replace(manifest, files=record_files(folder)))
        manifest = _check_opens(folder)
    return Bundle(Path(output), manifest)


def _check_opens(folder: Path) -> Manifest:
    """The manifest of what was just written, which must not be refused later."""
    try:
        return open_bundle(folder, verify=False).manifest
    except PruneVidError as error:
        raise PruneVidError(
            f"what was written would not open ({error}), as a release of torch or ONNX that was never tried may "
            "have it; nothing was kept"
        ) from error


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PruneVidError(f"unknown {what} {value!r}: known are {', '.join(known)}")


def _find_source(model: KnownModel, checkpoint: str | None, random_weights: bool) -> _Source:
    if random_weights:
        if checkpoint is not None:
            raise PruneVidError("random weights need no checkpoint: give one or the other")
        return _of_config(model, None, shipped_config(model), model.name)
    folder = find_checkpoint(model, checkpoint)
    path = folder / "config.json"
    return _of_config(model, folder, read_json(path), str(path))


def _of_config(model: KnownModel, checkpoint: Path | None, data: dict[str, Any], where: str) -> _Source:
    family = family_of(data, where)
    return _Source(model, checkpoint, family, family.parse_config(data, where))


def _write(
    folder: Path,
    source: _Source,
    inputs: _Inputs,
    dialect_name: str,
    precision: str,
    frames: int,
    prune: PruneConfig,
    progress: Progress,
) -> Manifest:
    """Write every file of the bundle but its manifest, which is returned without the files' records."""
    family, config = source.family, source.config
    dtype, dialect = _DTYPES[precision], dialect_named(dialect_name)
    weights, decoder = inputs.weights, family.decoder_spec(config, tied=inputs.tied)
    positions = config.text_config.max_position_embeddings
    prompt = inputs.prompt.write(folder) if inputs.prompt else prompt_of_bytes(folder, family.CHAT, positions)
    progress.step("tracing the vision tower")
    vision = family.vision_spec(config, inputs.empty, dtype, dialect.tower_attention)
    shape, float_type = decoder.shape, str(np.dtype(dtype.numpy()))

    learned = map(weights.tensor, family.NAMES.learned_rows)
    table = [weights.tensor(family.NAMES.embeddings), *map(_row, learned)]
    head: ir.TensorProtocol = weights.tensor(decoder.head)
    if inputs.tied:
        head = writer.table_rows(folder / _EMBEDDINGS, shape.vocab_size, shape.hidden_size, dtype, decoder.head)
    models = [
        build_vision_merge(vision, weights, prune),
        build_merge(FeatureShape(vision.tokens_per_frame, vision.channels, dtype), prune),
        build_llm_pre(decoder, weights, dialect, prune.prune_layer),
        build_select(shape, dialect, dtype, prune.prune_layer + 1, vision.tokens_per_frame),
        build_llm_post(decoder, weights, dialect, prune.prune_layer, head),
    ]
    total = sum(map(writer.weight_bytes, models)) + sum(tensor.nbytes for tensor in table)
    meter = _Meter(progress, total)
    writer.write_embeddings(table, folder / _EMBEDDINGS, meter.stage("writing embeddings"))
    graphs = {
        str(model.graph.name): writer.write_graph(model, folder, meter.stage(f"writing {model.graph.name}"))
        for model in models
    }
    if DIALECTS[dialect_name].runs_on_tensorrt:
        # That TensorRT would not take a graph should not be found out on the device.
        check_graphs(folder, graphs)
    progress.step("recording checksums", total, total)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by=f"prunevid {__version__}",
        model=ModelSpec(
            name=source.model.name,
            family=family.FAMILY,
            random_weights=source.checkpoint is None,
            decoder=shape,
            tied=inputs.tied,
            projection_bias=decoder.projection_bias,
            query_key_norm=decoder.query_key_norm,
            vision=family.vision_shape(config),
        ),
        dialect=dialect_name,
        precision=precision,
        frames=frames,
        prune=prune,
        token_layout=family.token_layout(config),
        cache=KvCacheSpec(DIALECTS[dialect_name].cache_layout, float_type),
        blocks=DEFAULT_BLOCKS,
        graphs=graphs,
        embeddings=EmbeddingSpec(
            _EMBEDDINGS,
            float_type,
            shape.vocab_size + len(family.NAMES.learned_rows),
            shape.hidden_size,
        ),
        prompt=prompt,
        preprocessing=inputs.preprocessing,
        files={},
    )


def _read_inputs(source: _Source, dtype: ir.DataType) -> _Inputs:
    family, config = source.family, source.config
    size, patches = config.vision_config.image_size, family.vision_shape(config).patches
    names, empty = family.NAMES, family.empty_model(config)
    shapes = names.shapes(empty)
    if source.checkpoint is None:
        return _Inputs(empty, RandomWeights(dtype, shapes), is_tied(config), None, family.PROCESSOR.usual(size))
    prompt = read_prompt(source.checkpoint, config, family.placeholder(config), family.token_layout(config))
    preprocessing = read_preprocessing(source.checkpoint, family.PROCESSOR, size, patches)
    head = {names.head: shapes[names.embeddings]}
    weights = SafetensorsWeights(source.checkpoint, dtype, shapes, names.renames, head)
    weights.refuse_unused(names.unused)
    return _Inputs(empty, weights, not head_is_stored(config, weights, names), prompt, preprocessing)


def _row(vector: StreamedTensor) -> StreamedTensor:
    """A learned vector as one more row of the embedding table: the runtime looks it up like a token."""
    (columns,) = vector.shape.numpy()
    return StreamedTensor(
        str(vector.name), lambda start, stop: vector.numpy().reshape(1, columns), (1, columns), vector.dtype, False
    )


class _Meter:
    """Adds up the bytes written and reports them."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def stage(self, what: str) -> writer.Advance:
        self._progress.step(what, self._total, self._done)

        def advance(count: int) -> None:
            self._done += count
            self._progress.advance(count)

        return advance
