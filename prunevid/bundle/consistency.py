"""A manifest against itself: what its sections say about each other, and about the sizes of its files."""

from __future__ import annotations

from prunevid.bundle.contract import check_chain, check_contract
from prunevid.bundle.manifest import GraphSpec, Manifest
from prunevid.bundle.names import check_names
from prunevid.bundle.sections.engine_sets import EngineSpec
from prunevid.dialects import DIALECTS
from prunevid.validation import shown

_MOST_FILES = 1000
_GRAPH_SUFFIX = ".onnx"
_MIB = 1 << 20
# Bytes of what is read as a whole. Weights are no part of a graph's file: the largest graphs have 2 MB.
LARGEST_GRAPH = 64 * _MIB
_LARGEST_TOKENIZER = 64 * _MIB
_LARGEST_TEMPLATE = _MIB


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError where the sections of a manifest do not go together, or its graphs are not the chain's."""
    check_chain(manifest.graphs)
    if manifest.prune.prune_layer > manifest.model.decoder.layers - 2:
        raise ValueError("no layer is behind its prune_layer")
    _check_files(manifest)
    _check_embeddings(manifest)
    _check_kinds(manifest)
    vocabulary = manifest.model.decoder.vocab_size
    if outside := [token for token in manifest.prompt.eos_ids if token >= vocabulary]:
        raise ValueError(f"its eos_ids name the token {outside[0]}, and the model has {vocabulary}")
    check_contract(manifest)
    _check_engines(manifest)


def _check_files(manifest: Manifest) -> None:
    files = manifest.files
    if len(files) > _MOST_FILES:
        raise ValueError(f"it names {len(files)} files, and a bundle has {_MOST_FILES} at most")
    check_names(files)
    graphs = [graph.file for graph in manifest.graphs.values()]
    prompt = manifest.prompt
    limits = dict.fromkeys(graphs, LARGEST_GRAPH)
    limits |= {prompt.tokenizer: _LARGEST_TOKENIZER, prompt.chat_template: _LARGEST_TEMPLATE}
    if prompt.question_tokenizer is not None:
        limits[prompt.question_tokenizer] = _LARGEST_TOKENIZER
    engines = [engine.file for engine in manifest.all_engines]
    texts = [*filter(None, (prompt.tokenizer, prompt.question_tokenizer, prompt.chat_template))]
    named = [*graphs, manifest.embeddings.file, *texts, *engines]
    for name in named:
        if name not in files:
            raise ValueError(f"{shown(name)} is not in its files")
        if files[name].size > limits.get(name, files[name].size):
            raise ValueError(f"{shown(name)} has {files[name].size} bytes, and {limits[name]} are the most")
    if len(set(named)) < len(named):
        raise ValueError("one file is named for two things")
    _check_weights(manifest, set(named) - {manifest.embeddings.file})
    for name in graphs:
        # By other endings, readers take a file for another format.
        if not name.endswith(_GRAPH_SUFFIX):
            raise ValueError(f"the graph {shown(name)} does not end in {_GRAPH_SUFFIX}")


def _check_weights(manifest: Manifest, others: set[str]) -> None:
    """Weights lie in files of their own, or in the embedding table's."""
    for name, graph in manifest.graphs.items():
        for file in graph.files:
            if file not in manifest.files:
                raise ValueError(f"{shown(file)} is not in its files")
            if file in others:
                raise ValueError(f"{shown(file)} cannot hold weights of {name}: it is named for something else")
    if manifest.model.tied != (manifest.embeddings.file in manifest.graphs["llm_post"].files):
        raise ValueError("its output matrix is not where it says")


def _check_embeddings(manifest: Manifest) -> None:
    table, decoder = manifest.embeddings, manifest.model.decoder
    if (table.columns, table.rows) != (decoder.hidden_size, max(table.rows, decoder.vocab_size)):
        raise ValueError(
            f"its embeddings are {table.rows} x {table.columns}, and the model has {decoder.vocab_size} tokens of "
            f"{decoder.hidden_size} channels"
        )
    if outside := [row for row in manifest.token_layout.rows if row >= table.rows]:
        raise ValueError(f"its token layout has the row {outside[0]}, and its embeddings have {table.rows}")
    size = manifest.files[table.file].size
    if size != table.nbytes:
        raise ValueError(
            f"its embeddings are {table.rows} x {table.columns} in {table.dtype}, which {size} bytes cannot be"
        )


def _check_kinds(manifest: Manifest) -> None:
    precision, quantization = manifest.precision, manifest.quantization
    if precision in ("fp32", "fp16") and precision != manifest.float_type:
        raise ValueError(f"its precision is {precision}, and its embeddings are in {manifest.embeddings.dtype}")
    if quantization is not None and (unknown := sorted(quantization.graphs.keys() - manifest.graphs.keys())):
        raise ValueError(f"its quantization is of the graph {shown(unknown[0])}, which it does not have")
    cache, dialect = manifest.cache, DIALECTS[manifest.dialect]
    if cache.layout != dialect.cache_layout:
        raise ValueError(f"its KV cache lies {cache.layout}, and in its dialect {dialect.name} {dialect.cache_layout}")
    if cache.dtype != manifest.embeddings.dtype and not (cache.dtype == "int8" and dialect.has_int8_cache):
        raise ValueError(f"its KV cache is in {cache.dtype}, which its dialect {dialect.name} has not")


def _check_engines(manifest: Manifest) -> None:
    places = [engines.place for engines in manifest.engine_sets]
    if len(set(places)) < len(places):
        raise ValueError("two of its sets of engines are for the same GPUs")
    for engines in manifest.engine_sets:
        if engines.graphs.keys() != manifest.graphs.keys():
            raise ValueError("not every graph has an engine")
        for name, engine in engines.graphs.items():
            _check_engine(name, engine, manifest.graphs[name])


def _check_engine(name: str, engine: EngineSpec, graph: GraphSpec) -> None:
    shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
    if not engine.profiles:
        raise ValueError(f"the engine of {name} has no profile")
    for profile in engine.profiles:
        if profile.shapes.keys() != shapes.keys():
            raise ValueError(f"the engine of {name} has no range for one of its inputs, or one for another")
        for tensor, at in profile.shapes.items():
            bounds = zip(shapes[tensor], at.minimum, at.maximum, strict=False)
            fixed = ((size, least, most) for size, least, most in bounds if isinstance(size, int))
            if len(at.minimum) != len(shapes[tensor]) or any(not least == size == most for size, least, most in fixed):
                raise ValueError(f"the engine of {name} takes {tensor} in another shape than its graph")
        for tensor, at in profile.values.items():
            if shapes.get(tensor) not in ((), (1,)) or len(at.minimum) != 1:
                raise ValueError(f"the engine of {name} computes shapes from {shown(tensor)}, which is no number of it")
