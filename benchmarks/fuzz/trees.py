"""Formats made of nested parts, read into a tree, damaged there, and written again with their lengths right.

A damaged file whose lengths and checksums hold is read much further than one that breaks at its first part.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from random import Random

from benchmarks.fuzz.raw import damage_bytes, overwrite_number

__all__ = ["FORMATS", "Format", "Part", "damage_parts", "damage_tree"]


@dataclass
class Part:
    """A part: its name as the format writes it, and either its bytes or the parts within it.

    width: how many bytes its size takes, in formats that leave this to the writer.
    """

    name: bytes
    body: bytes | list[Part]
    width: int = 1


@dataclass(frozen=True)
class Format:
    """How a file is cut into parts, and made of parts again."""

    read: Callable[[bytes], list[Part]]
    write: Callable[[list[Part]], bytes]


def damage_tree(rng: Random, data: bytes, name: str) -> tuple[bytes, str]:
    """One to three damages to the parts of a file of the format `name`; returns it and what was done."""
    form = FORMATS[name]
    parts = form.read(data)
    done = [damage_parts(rng, parts) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return form.write(parts), "; ".join(done)


def damage_parts(rng: Random, parts: list[Part]) -> str:
    """Damage one part; returns what was done."""
    siblings, index = _descend(rng, parts)
    if not siblings:
        return "nothing to damage"
    part = siblings[index]
    what = part.name.hex() if not part.name.isalnum() else part.name.decode()
    inner = ["number", "number", "number", "bytes", "bytes", "empty", "cut"]
    outer = ["delete", "repeat", "swap", "rename", "move"]
    nested = ["delete", "repeat", "swap", "rename", "move", "empty", "many", "into itself", "reverse"]
    how = rng.choice(nested if isinstance(part.body, list) else inner + outer)
    if how == "delete":
        del siblings[index]
    elif how == "repeat":
        siblings.insert(rng.randrange(len(siblings) + 1), deepcopy(part))
    elif how == "many":
        siblings[index:index] = [part] * 500
    elif how == "swap":
        other = rng.randrange(len(siblings))
        siblings[index], siblings[other] = siblings[other], siblings[index]
    elif how == "move":
        elsewhere, at = _descend(rng, parts)
        elsewhere.insert(at, deepcopy(part))
    elif how == "rename":
        part.name = damage_name(rng, part.name, [sibling.name for sibling in siblings])
    elif how == "into itself":
        for _ in range(rng.choice([1, 3, 100])):
            part.body = [Part(part.name, part.body)]
    elif how == "reverse" and isinstance(part.body, list):
        part.body.reverse()
    elif how == "empty":
        part.body = b""
    elif isinstance(part.body, bytes) and part.body:
        if how == "number":
            part.body = overwrite_number(rng, part.body)
        elif how == "cut":
            part.body = part.body[: rng.randrange(len(part.body))]
        else:
            part.body = damage_bytes(rng, part.body)[0]
    return f"{how} {what}"


def damage_name(rng: Random, name: bytes, others: list[bytes]) -> bytes:
    """Another part's name, or one that nobody has."""
    if rng.random() < 0.6:
        return rng.choice(others)
    changed = bytearray(name)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _descend(rng: Random, parts: list[Part]) -> tuple[list[Part], int]:
    """A part, by walking down from the top: every branch is as likely, however many leaves it has."""
    siblings = parts
    while siblings:
        index = rng.randrange(len(siblings))
        body = siblings[index].body
        if isinstance(body, list) and body and rng.random() < 0.85:
            siblings = body
        else:
            return siblings, index
    return siblings, 0


# ISO base media (MP4, MOV): size and name, nested.

_BOXES = frozenset(b"moov trak mdia minf stbl edts dinf udta mvex moof traf".split())


def _read_boxes(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        name = data[at + 4 : at + 8]
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + size if header <= size <= len(data) - at else len(data)
        body = data[at + header : end]
        parts.append(Part(name, _read_boxes(body) if name in _BOXES else body))
        at = end
    return parts


def _write_boxes(parts: list[Part]) -> bytes:
    written = b""
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _write_boxes(part.body)
        written += (len(body) + 8).to_bytes(4, "big") + part.name[:4].ljust(4) + body
    return written


# EBML (Matroska, WebM): id and size of variable length, nested.

_MASTERS = frozenset(
    bytes.fromhex(name)
    for name in [
        "1a45dfa3",
        "18538067",
        "1549a966",
        "1654ae6b",
        "ae",
        "e0",
        "1f43b675",
        "a0",
        "1c53bb6b",
        "bb",
        "b7",
        "114d9b74",
        "4dbb",
        "1254c367",
    ]
)


def _vint(data: bytes, at: int, keep_marker: bool) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    length = 9 - data[at].bit_length() if data[at] else 8
    value = int.from_bytes(data[at : at + length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), at + length


def _read_ebml(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 2 <= len(data):
        _, after = _vint(data, at, keep_marker=True)
        name = data[at:after]
        if after >= len(data):
            break
        size, start = _vint(data, after, keep_marker=False)
        unknown = size == (1 << 7 * (start - after)) - 1
        end = len(data) if unknown else min(start + size, len(data))
        body = data[start:end]
        parts.append(Part(name, _read_ebml(body) if name in _MASTERS else body, start - after))
        at = end
    return parts


def _write_ebml(parts: list[Part]) -> bytes:
    written = b""
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _write_ebml(part.body)
        # As wide as it was, so that what points into the file stays right.
        length = next(n for n in range(part.width, 9) if len(body) < (1 << 7 * n) - 1)
        written += part.name + (len(body) | 1 << 7 * length).to_bytes(length, "big") + body
    return written


# RIFF (AVI, WebP): name and size, padded to two bytes; RIFF and LIST hold a type and chunks.


def _read_riff(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = min(at + 8 + size, len(data))
        body = data[at + 8 : end]
        if name in (b"RIFF", b"LIST") and len(body) >= 4:
            parts.append(Part(name, [Part(body[:4], b""), *_read_riff(body[4:])]))
        else:
            parts.append(Part(name, body))
        at = end + size % 2
    return parts


def _write_riff(parts: list[Part]) -> bytes:
    written = b""
    for part in parts:
        if isinstance(part.body, bytes):
            body = part.body
        elif part.body:
            body = part.body[0].name[:4] + _write_riff(part.body[1:])
        else:
            body = b""
        written += part.name[:4] + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)
    return written


# PNG and APNG: chunks with checksums, which are made anew.

_PNG = b"\x89PNG\r\n\x1a\n"


def _read_png(data: bytes) -> list[Part]:
    parts, at = [], len(_PNG)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append(Part(data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return parts


def _write_png(parts: list[Part]) -> bytes:
    written = _PNG
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _write_png(part.body)
        written += len(body).to_bytes(4, "big") + part.name + body + zlib.crc32(part.name + body).to_bytes(4, "big")
    return written


# FLV: tags with a header of eleven bytes, of which the size is made anew.


def _read_flv(data: bytes) -> list[Part]:
    parts, at = [Part(b"", data[:13])], 13
    while at + 15 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        parts.append(Part(data[at : at + 1], data[at + 4 : at + 11 + size]))
        at += 15 + size
    return parts


def _write_flv(parts: list[Part]) -> bytes:
    written = b""
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _write_flv(part.body)
        if part.name:
            size = max(0, len(body) - 7)
            body = part.name[:1] + (size & 0xFFFFFF).to_bytes(3, "big") + body + (size + 11).to_bytes(4, "big")
        written += body
    return written


# MPEG transport stream: packets of 188 bytes, whatever was done to them.


def _read_ts(data: bytes) -> list[Part]:
    return [Part(data[at : at + 4], data[at + 4 : at + 188]) for at in range(0, len(data) - 187, 188)]


def _write_ts(parts: list[Part]) -> bytes:
    bodies = ((part, part.body if isinstance(part.body, bytes) else _write_ts(part.body)) for part in parts)
    return b"".join((part.name + body)[:188].ljust(188, b"\xff") for part, body in bodies)


# JPEG: segments, each with a marker and a size; the scan behind the last is one part.


def _read_jpeg(data: bytes) -> list[Part]:
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(Part(data[at : at + 2], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return [*parts, Part(b"", data[at:])]


def _write_jpeg(parts: list[Part]) -> bytes:
    written = b"\xff\xd8"
    for part in parts:
        body = part.body if isinstance(part.body, bytes) else _write_jpeg(part.body)
        written += part.name + (((len(body) + 2) & 0xFFFF).to_bytes(2, "big") if part.name else b"") + body
    return written


FORMATS = {
    "boxes": Format(_read_boxes, _write_boxes),
    "ebml": Format(_read_ebml, _write_ebml),
    "riff": Format(_read_riff, _write_riff),
    "png": Format(_read_png, _write_png),
    "flv": Format(_read_flv, _write_flv),
    "ts": Format(_read_ts, _write_ts),
    "jpeg": Format(_read_jpeg, _write_jpeg),
}
