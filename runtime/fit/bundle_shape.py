"""The shapes of a bundle's model, as its manifest has them."""

from __future__ import annotations

from prunevid.bundle import Bundle
from prunevid.models import ModelShape

__all__ = ["shape_of"]


def shape_of(bundle: Bundle) -> ModelShape:
    """The shapes of a bundle's model."""
    manifest = bundle.manifest
    return ModelShape(
        name=manifest.model.name,
        decoder=manifest.model.decoder,
        vision=manifest.model.vision,
        image_size=manifest.preprocessing.size,
        layout=manifest.token_layout,
        tied=manifest.model.tied,
        projection_bias=manifest.model.projection_bias,
        query_key_norm=manifest.model.query_key_norm,
        max_positions=manifest.prompt.max_positions,
        frames=manifest.frames,
        cache_bytes=1 if manifest.cache.dtype == "int8" else None,
        blocks=manifest.blocks,
    )
