"""The shapes of a bundle's model: most are in its manifest, the rest shows in the graphs' files."""

from __future__ import annotations

from prunevid.bundle import Bundle
from prunevid.files import reading
from prunevid.models import ModelShape

__all__ = ["shape_of"]


def shape_of(bundle: Bundle) -> ModelShape:
    """The shapes of a bundle's model.

    A graph's file names its weights and the files that they lie in: that tells whether the output matrix is the
    embedding table, and what the projections have.
    """
    manifest = bundle.manifest
    with reading(bundle.path):
        llm_pre, llm_post = (bundle.file(manifest.graphs[name].file).read_bytes() for name in ("llm_pre", "llm_post"))
    return ModelShape(
        name=manifest.model.name,
        decoder=manifest.model.decoder,
        vision=manifest.model.vision,
        image_size=manifest.preprocessing.size,
        tokens_per_frame=manifest.model.tokens_per_frame,
        tied=manifest.embeddings.file.encode() in llm_post,
        projection_bias=b".q_proj.bias" in llm_pre,
        query_key_norm=b".q_norm.weight" in llm_pre,
        max_positions=manifest.prompt.max_positions,
        frames=manifest.frames,
        cache_bytes=1 if manifest.cache_dtype == "int8" else None,
    )
