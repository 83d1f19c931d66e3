"""Sizes and checksums of a bundle's files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prunevid.bundle.manifest import MANIFEST, FileRecord

_CHUNK = 1 << 22


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file below `folder`, by its relative name, sorted; the manifest itself left out."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): FileRecord(p.stat().st_size, sha256_of(p)) for p in paths}
