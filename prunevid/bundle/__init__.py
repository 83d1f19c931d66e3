"""The bundle: one folder that holds everything a pruned video language model needs at run time.

`manifest.json` names every other file with its size and SHA-256. A bundle is written under a temporary name and
renamed when whole, so a killed export leaves nothing that loads; opening one verifies it, since a bundle is
untrusted input.
"""

from __future__ import annotations

from prunevid.bundle.checksums import record_files, sha256_of
from prunevid.bundle.manifest import (
    MANIFEST,
    MOST_FRAMES,
    SCHEMA_VERSION,
    EmbeddingSpec,
    FileRecord,
    GraphSpec,
    Manifest,
    ModelSpec,
    PromptSpec,
    TensorSpec,
)
from prunevid.bundle.opening import Bundle, open_bundle
from prunevid.bundle.writing import check_target, new_bundle, write_manifest

__all__ = [
    "Bundle",
    "EmbeddingSpec",
    "FileRecord",
    "GraphSpec",
    "MANIFEST",
    "MOST_FRAMES",
    "Manifest",
    "ModelSpec",
    "PromptSpec",
    "SCHEMA_VERSION",
    "TensorSpec",
    "check_target",
    "new_bundle",
    "open_bundle",
    "record_files",
    "sha256_of",
    "write_manifest",
]
