"""Changes to the headers of MP4 and MOV files that no muxer offers: edit lists, display matrices, flags of tracks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

_CONTAINERS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl")


def change_boxes(path: Path, change: Callable[[tuple[bytes, ...], bytes], bytes | None]) -> Path:
    """Rewrites a file whose header comes last, as without faststart: change(names of the boxes around and of the
    box itself, its content) gives the content to have, or None to leave the box out."""
    path.write_bytes(_changed(path.read_bytes(), (), change))
    return path


def set_edits(path: Path, edits: list[tuple[float, float]], track: int = 0) -> Path:
    """Gives a track these edits: seconds that each lasts, and where in the media it begins; -1 shows nothing."""
    media, movie = 0, 0
    seen = -1

    def change(names: tuple[bytes, ...], content: bytes) -> bytes | None:
        nonlocal media, movie, seen
        name = names[-1]
        seen += name == b"trak-begin"
        if name == b"mvhd":
            (movie,) = struct.unpack(">I", content[12:16])
        if name == b"mdhd" and seen == track:
            (media,) = struct.unpack(">I", content[12:16])
        if name == b"edts" and seen == track:
            return None
        return content

    change_boxes(path, change)
    entries = b"".join(
        struct.pack(">IiI", round(long * movie), -1 if start < 0 else round(start * media), 0x10000)
        for long, start in edits
    )
    elst = _box(b"elst", bytes(4) + struct.pack(">I", len(edits)) + entries)
    seen = -1

    def insert(names: tuple[bytes, ...], content: bytes) -> bytes:
        nonlocal seen
        seen += names[-1] == b"trak-begin"
        if names[-1] == b"trak-begin" and seen == track:
            return _box(b"edts", elst)
        return content

    return change_boxes(path, insert)


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Says that a pixel (p, q) is shown at (a p + c q, b p + d q)."""
    numbers = [round(value * 0x10000) for value in (a, b)], [round(value * 0x10000) for value in (c, d)]
    matrix = struct.pack(">9i", *numbers[0], 0, *numbers[1], 0, 0, 0, 0x40000000)

    def change(names: tuple[bytes, ...], content: bytes) -> bytes:
        if names[-1] != b"tkhd":
            return content
        at = 52 if content[0] else 40
        return content[:at] + matrix + content[at + 36 :]

    return change_boxes(path, change)


def _changed(data: bytes, around: tuple[bytes, ...], change: Callable[..., bytes | None]) -> bytes:
    done = b""
    if around and around[-1] == b"trak":  # a place to insert boxes
        done += change((*around, b"trak-begin"), b"") or b""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if size < 8:  # the rest, or a size of 64 bits: media, which are not changed
            return done + data[at:]
        content = data[at + 8 : at + size]
        if name in _CONTAINERS:
            content = _changed(content, (*around, name), change)
        new = change((*around, name), content)
        done += b"" if new is None else _box(name, new)
        at += size
    return done + data[at:]


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content
