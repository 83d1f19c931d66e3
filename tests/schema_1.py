"""Bundles as releases with schema 1 wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hostile import edit_manifest

DEMO = Path(__file__).with_name("schema_1_demo.json")
"""The manifest of the demo bundle that shipped with schema 1, as it was."""


def as_schema_1(source: Path, folder: Path) -> Path:
    """A copy of a bundle whose manifest says what one of schema 1 said."""
    shutil.copytree(source, folder)
    edit_manifest(folder, _back)
    return folder


def _back(data: dict[str, Any]) -> None:
    data["schema_version"] = 1
    del data["blocks"], data["prune"]["method"], data["prompt"]["question_tokenizer"]
    del data["preprocessing"]["center_crop"], data["model"]["vision"]["class_token"]
    del data["model"]["vision"]["projected"]
    layout = data.pop("token_layout")
    data["model"]["tokens_per_frame"] = layout["tokens_per_frame"]
    (data["embeddings"]["image_newline"],) = (piece["row"] for piece in layout["after_video"])
    for section in ("engines", "rtx_engines"):
        data[section] = None
    for engines in data.pop("engine_sets"):
        product, gpu, driver = (engines.pop(name) for name in ("product", "gpu", "driver"))
        if product == "tensorrt":
            release, (capability,) = engines.pop("release"), engines.pop("capabilities")
            device = {"tensorrt": release, "gpu": gpu, "compute_capability": capability, "driver": driver}
            data["engines"] = {"device": device, **engines}
        else:
            data["rtx_engines"] = engines
    cache = data.pop("cache")
    for name in ("tied", "projection_bias", "query_key_norm"):
        del data["model"][name]
    for graph in data["graphs"].values():
        del graph["files"]
    if data["quantization"] is not None:
        data["quantization"]["kv_cache"] = "int8" if cache["dtype"] == "int8" else None
