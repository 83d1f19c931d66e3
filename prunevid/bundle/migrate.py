"""Manifests of earlier schemas: their JSON, turned into that of today's.

A schema differs from the next in a list of steps (`_STEPS`), each for one section, which change the JSON in place.
What an earlier schema did not say is read from the graphs themselves; nothing else reads it there. The result is
checked like any other manifest: a step refuses only what it cannot work with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunevid.bundle.codec import UnknownEntryError
from prunevid.bundle.contract import check_chain
from prunevid.bundle.graphs import weight_files
from prunevid.bundle.manifest import MANIFEST, SCHEMA_VERSION
from prunevid.dialects import DIALECTS
from prunevid.onnx_file import OnnxFile
from prunevid.validation import shown

__all__ = ["OLDEST_SCHEMA", "ReadGraph", "migrate"]

OLDEST_SCHEMA = 1
"""The first schema that is still read."""

ReadGraph = Callable[[str], OnnxFile]
"""Reads the graph in a file of the bundle, by the file's name. Raises ValueError or PruneVidError where it cannot."""

_Json = dict[str, Any]


@dataclass(frozen=True)
class _Old:
    """A manifest that is being migrated: its JSON, which steps change in place, and its graphs by name."""

    data: _Json
    graphs: dict[str, OnnxFile]

    def section(self, *names: str) -> _Json:
        """An object inside the manifest, by its names from the outside in."""
        return _section(self.data, *names)


def migrate(data: _Json, read_graph: ReadGraph) -> _Json:
    """Turn a manifest's JSON, of a schema from OLDEST_SCHEMA on, into that of SCHEMA_VERSION.

    Args:
        data: The manifest; it is changed in place. Its `schema_version` is an integer.
        read_graph: Reads a graph's file.

    Returns:
        The migrated manifest, which is not yet checked.

    Raises:
        MissingGraphError: A graph of the chain is not there.
        UnknownEntryError: It has an entry that its schema has not, or a graph of another release.
        ValueError: It has no such sections, or a graph cannot be read.
    """
    while data["schema_version"] < SCHEMA_VERSION:
        graphs = _section(data, "graphs")
        check_chain(graphs)
        old = _Old(data, {name: read_graph(_text(data, "graphs", name, "file")) for name in graphs})
        for step in _STEPS[data["schema_version"]]:
            step(old)
        data["schema_version"] += 1
    return data


def _files_of_weights(old: _Old) -> None:
    """1 to 2: a graph names the files that hold its weights."""
    for name, graph in old.graphs.items():
        spec = old.section("graphs", name)
        _add(spec, "files", weight_files(graph, spec["file"]), f"graphs.{name}")


def _decoder_facts(old: _Old) -> None:
    """1 to 2: the model says whether its output matrix is the embedding table, and what its projections have."""
    model, table = old.section("model"), _text(old.data, "embeddings", "file")
    weights = [tensor.name for tensor in old.graphs["llm_pre"].external]
    _add(model, "tied", table in old.section("graphs", "llm_post")["files"], "model")
    _add(model, "projection_bias", any(name.endswith(".q_proj.bias") for name in weights), "model")
    _add(model, "query_key_norm", any(name.endswith(".q_norm.weight") for name in weights), "model")


def _cache(old: _Old) -> None:
    """1 to 2: how the KV cache lies followed from the dialect, and its type stood beside the quantization."""
    dialect, quantization = _text(old.data, "dialect"), old.data.get("quantization")
    if dialect not in DIALECTS:
        raise ValueError(f"its dialect is {shown(dialect)}, and known are {', '.join(DIALECTS)}")
    dtype = old.section("quantization").pop("kv_cache", None) if quantization is not None else None
    if dtype is None:
        dtype = _text(old.data, "embeddings", "dtype")
    _add(old.data, "cache", {"layout": DIALECTS[dialect].cache_layout, "dtype": dtype})


def _blocks(old: _Old) -> None:
    """1 to 2: all graphs were run in blocks of the same size."""
    _add(old.data, "blocks", {"frames": 4, "rows": 512})


def _merge_method(old: _Old) -> None:
    """1 to 2: there was one merge method."""
    _add(old.section("prune"), "method", "prunevid", "prune")


def _token_layout(old: _Old) -> None:
    """1 to 2: there was one layout of tokens, a frame's in a square and one learned vector behind the video's."""
    tokens = old.section("model").pop("tokens_per_frame", None)
    newline = old.section("embeddings").pop("image_newline", None)
    side = math.isqrt(tokens) if isinstance(tokens, int) and tokens > 0 else 0
    layout = {
        "tokens_per_frame": tokens,
        "grid": [side, side] if side**2 == tokens else None,
        "after_video": [{"row": newline}],
    }
    _add(old.data, "token_layout", layout)
    if "question_tokenizer" in old.section("prompt"):
        raise UnknownEntryError(f"{MANIFEST}.prompt has the entry 'question_tokenizer'")


def _tower_and_crop(old: _Old) -> None:
    """1 to 2: frames were shown whole, no tower had a class token, and pooling stood behind the projector."""
    _add(old.section("preprocessing"), "center_crop", False, "preprocessing")
    _add(old.section("model", "vision"), "class_token", False, "model.vision")
    _add(old.section("model", "vision"), "projected", None, "model.vision")


def _engine_sets(old: _Old) -> None:
    """1 to 2: there was one set of engines by TensorRT and one by TensorRT for RTX, each a section of its own."""
    sets = []
    engines, for_rtx = old.data.pop("engines", None), old.data.pop("rtx_engines", None)
    if engines is not None:
        old.data["engines"] = engines
        device, graphs = old.section("engines", "device"), old.section("engines", "graphs")
        _only("engines", engines, "device", "graphs")
        _only("engines.device", device, "tensorrt", "gpu", "compute_capability", "driver")
        sets.append(
            {
                "product": "tensorrt",
                "release": _text(old.data, "engines", "device", "tensorrt"),
                "capabilities": [_text(old.data, "engines", "device", "compute_capability")],
                "graphs": graphs,
                "gpu": _text(old.data, "engines", "device", "gpu"),
                "driver": _text(old.data, "engines", "device", "driver"),
            }
        )
        del old.data["engines"]
    if for_rtx is not None:
        if not isinstance(for_rtx, dict):
            raise ValueError(f"{MANIFEST}.rtx_engines is not an object")
        _only("rtx_engines", for_rtx, "release", "capabilities", "graphs")
        sets.append({"product": "tensorrt-rtx", **for_rtx})
    _add(old.data, "engine_sets", sets)


_STEPS: dict[int, tuple[Callable[[_Old], None], ...]] = {
    1: (
        _files_of_weights,
        _decoder_facts,
        _cache,
        _blocks,
        _engine_sets,
        _merge_method,
        _token_layout,
        _tower_and_crop,
    ),
}
"""By the schema that they start from, what leads to the next one, in order."""


def _add(section: _Json, name: str, value: Any, where: str = "") -> None:
    """Add an entry that the earlier schema had not."""
    if name in section:
        raise UnknownEntryError(f"{'.'.join(filter(None, (MANIFEST, where)))} has the entry {name!r}")
    section[name] = value


def _only(where: str, section: _Json, *names: str) -> None:
    """Raise UnknownEntryError where an earlier section has another entry: what is taken apart is not decoded."""
    if unknown := sorted(section.keys() - set(names)):
        raise UnknownEntryError(f"{MANIFEST}.{where} has the entry {shown(unknown[0])}")


def _section(data: _Json, *names: str) -> _Json:
    found, where = data, MANIFEST
    for name in names:
        if name not in found:
            raise ValueError(f"{where} lacks {name!r}")
        found, where = found[name], f"{where}.{name}"
        if not isinstance(found, dict):
            raise ValueError(f"{where} is not an object")
    return found


def _text(data: _Json, *names: str) -> str:
    *parents, last = names
    section = _section(data, *parents)
    found, where = section.get(last), ".".join((MANIFEST, *names))
    if not isinstance(found, str):
        raise ValueError(f"{where} is {shown(found)}, and no text")
    return found
