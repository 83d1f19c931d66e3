"""What every graph of the chain takes and gives, as the model's shapes and the settings make it.

The runtime's side of the contract with the exporter: buffers, KV caches and embeddings are laid out by these shapes, so
a bundle whose graphs have others is refused when it is opened. `docs/architecture.md` says what each tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prunevid.bundle.codec import UnknownEntryError
from prunevid.bundle.manifest import Manifest, TensorSpec
from prunevid.validation import shown

Shape = tuple[int | str, ...]


class Tensors(NamedTuple):
    """Inputs and outputs of a graph by name, in no order."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class MissingGraphError(ValueError):
    """A graph of the chain is not there; the text is its name."""


class ContractError(ValueError):
    """A graph takes or gives something else: an older release wrote it, or it is damaged."""


def check_chain(graphs: Iterable[str]) -> None:
    """Raise where these are not the chain's graphs.

    Raises:
        MissingGraphError: One of the chain's is not among them.
        UnknownEntryError: One of them is none of the chain's.
    """
    names = set(graphs)
    if missing := sorted(CHAIN.keys() - names):
        raise MissingGraphError(missing[0])
    if unknown := sorted(names - CHAIN.keys()):
        raise UnknownEntryError(f"it has the graph {shown(unknown[0])}")


def check_contract(manifest: Manifest) -> None:
    """Raise ContractError where a graph has another input or output than its place in the chain asks for."""
    for name, graph in manifest.graphs.items():
        wanted = CHAIN[name](manifest)
        for what, found, expected in (
            ("input", graph.inputs, wanted.inputs),
            ("output", graph.outputs, wanted.outputs),
        ):
            names = [tensor.name for tensor in found]
            if len(set(names)) < len(names):
                raise ContractError(f"its graph {name} has two {what}s of one name")
            for tensor in found:
                if tensor != expected.get(tensor.name):
                    raise ContractError(
                        f"its graph {name} has the {what} {_text(tensor)}, "
                        f"and the rest of the manifest asks for {_text(expected.get(tensor.name))}"
                    )
            if missing := sorted(expected.keys() - set(names)):
                raise ContractError(f"its graph {name} lacks the {what} {missing[0]}")


def _text(tensor: TensorSpec | None) -> str:
    if tensor is None:
        return "none of that name"
    return f"{tensor.name[:80]} {tensor.dtype[:20]}[{', '.join(map(str, tensor.shape))[:80]}]"


def _settings(manifest: Manifest) -> list[TensorSpec]:
    tokens = manifest.token_layout.tokens_per_frame
    return [TensorSpec(each.name, each.dtype, each.shape(tokens)) for each in manifest.prune.graph_inputs]


def _merged(manifest: Manifest) -> list[TensorSpec]:
    model = manifest.model
    return [
        TensorSpec("video_tokens", manifest.embeddings.dtype, ("patches", model.decoder.hidden_size)),
        TensorSpec("token_group", "int64", ("patches",)),
        TensorSpec("token_count", "int64", (1,)),
        TensorSpec("patch_to_token", "int64", ("frames", manifest.token_layout.tokens_per_frame)),
        TensorSpec("frame_segment", "int64", ("frames",)),
    ]


def _features(manifest: Manifest, name: str, frames: str) -> TensorSpec:
    layout = manifest.token_layout
    tokens, channels = layout.features or (layout.tokens_per_frame, manifest.model.decoder.hidden_size)
    return TensorSpec(name, manifest.embeddings.dtype, (frames, tokens, channels))


def _vision_merge(manifest: Manifest) -> Tensors:
    size = manifest.preprocessing.size
    pixels = TensorSpec("pixel_values", "float32", ("frames_new", 3, size, size))
    past, features = (_features(manifest, *at) for at in (("past_features", "frames_past"), ("features", "frames")))
    return _tensors([pixels, past, *_settings(manifest)], [features, *_merged(manifest)])


def _merge(manifest: Manifest) -> Tensors:
    return _tensors([_features(manifest, "features", "frames"), *_settings(manifest)], _merged(manifest))


def _hidden(manifest: Manifest, name: str, rows: str) -> TensorSpec:
    return TensorSpec(name, manifest.embeddings.dtype, (1, rows, manifest.model.decoder.hidden_size))


def _positions(manifest: Manifest) -> TensorSpec:
    return TensorSpec("position_ids", "int64", (manifest.token_layout.position_axes, "rows"))


_PAST_LENGTH = TensorSpec("past_length", "int64", (1,))
_SCORES = TensorSpec("question_scores", "float32", ("total",))


def _llm_pre(manifest: Manifest) -> Tensors:
    layers = range(manifest.prune.prune_layer + 1)
    question = TensorSpec("question_start", "int64", (1,))
    inputs = [_hidden(manifest, "inputs_embeds", "rows"), _positions(manifest), _PAST_LENGTH, question]
    outputs = [_hidden(manifest, "hidden", "rows"), _SCORES]
    return _tensors(
        [*inputs, *_cache(manifest, "past", layers)],
        [*outputs, *_cache(manifest, "present", layers)],
    )


def _llm_post(manifest: Manifest) -> Tensors:
    layers = range(manifest.prune.prune_layer + 1, manifest.model.decoder.layers)
    logits = TensorSpec("logits", "float32", (1, manifest.model.decoder.vocab_size))
    return _tensors(
        [_hidden(manifest, "hidden", "rows"), _positions(manifest), _PAST_LENGTH, *_cache(manifest, "past", layers)],
        [logits, *_cache(manifest, "present", layers)],
    )


def _select(manifest: Manifest) -> Tensors:
    layers = range(manifest.prune.prune_layer + 1)
    inputs = [
        _SCORES,
        TensorSpec("token_group", "int64", ("visual",)),
        TensorSpec("quota", "int64", ("groups",)),
        TensorSpec("kept_count", "int64", (1,)),
        TensorSpec("position_ids", "int64", ("axes", "total")),
        TensorSpec("video_start", "int64", (1,)),
        _hidden(manifest, "hidden", "total"),
    ]
    if manifest.cache.is_in_place:
        inputs.append(TensorSpec("capacity", "int64", (1,)))
    outputs = [
        TensorSpec("kept", "int64", ("kept",)),
        TensorSpec("kept_position_ids", "int64", ("axes", "rows")),
        _hidden(manifest, "kept_hidden", "rows"),
    ]
    return _tensors(
        [*inputs, *_cache(manifest, "past", layers)],
        [*outputs, *_cache(manifest, "present", layers, rows="new_capacity")],
    )


def _cache(manifest: Manifest, side: str, layers: range, rows: str = "capacity") -> Iterator[TensorSpec]:
    """Keys and values of some layers. `rows`: of the buffers of a cache in place."""
    decoder = manifest.model.decoder
    if manifest.cache.is_in_place:
        shape: Shape = (1, decoder.kv_heads, rows, decoder.head_dim)
    else:
        shape = (1, "past" if side == "past" else "rows", decoder.kv_heads, decoder.head_dim)
    for layer in layers:
        for kind in ("key", "value"):
            yield TensorSpec(f"{side}_{kind}.{layer}", manifest.cache.dtype, shape)


def _tensors(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Tensors:
    return Tensors({tensor.name: tensor for tensor in inputs}, {tensor.name: tensor for tensor in outputs})


CHAIN: dict[str, Callable[[Manifest], Tensors]] = {
    "vision_merge": _vision_merge,
    "merge": _merge,
    "llm_pre": _llm_pre,
    "select": _select,
    "llm_post": _llm_post,
}
"""The chain's graphs, which every bundle has and no others, with what each takes and gives."""
