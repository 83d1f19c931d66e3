"""Damage to bytes whose structure nobody knows."""

from __future__ import annotations

from random import Random

__all__ = ["damage_bytes", "odd_number", "overwrite_number"]

# 32 bits at which counts, sizes and times tip over.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def odd_number(rng: Random) -> int:
    """An unsigned number of 32 bits, most often one at an edge."""
    return rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(32)


def overwrite_number(rng: Random, data: bytes) -> bytes:
    """Another number in place of two, four or eight bytes, in either order."""
    size = rng.choice([size for size in (2, 4, 4, 8) if size <= len(data)] or [len(data)])
    at = rng.randrange(0, len(data) - size + 1)
    if rng.random() < 0.7:
        at -= at % size
    value = odd_number(rng) & ((1 << 8 * size) - 1)
    return data[:at] + value.to_bytes(size, rng.choice(["big", "little"])) + data[at + size :]


def damage_bytes(rng: Random, data: bytes, *, start: int = 0) -> tuple[bytes, str]:
    """Damage from `start` on: what disks, networks and fingers do. Returns the bytes and what was done."""
    if len(data) <= start + 1:
        return data + rng.randbytes(8), "append"
    how = rng.choice(["flip", "flip", "flip", "zero", "random", "truncate", "remove", "repeat", "append", "number"])
    at = rng.randrange(start, len(data))
    length = min(len(data) - at, 1 << rng.randrange(0, 13))
    if how == "flip":
        flipped = bytearray(data)
        for _ in range(1 << rng.randrange(0, 8)):
            flipped[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped), how
    if how == "number":
        return data[:start] + overwrite_number(rng, data[start:]), how
    if how == "append":
        return data + rng.randbytes(length), how
    if how == "truncate":
        return data[:at], how
    if how == "remove":
        return data[:at] + data[at + length :], how
    if how == "repeat":
        return data[:at] + data[at : at + length] * rng.choice([2, 2, 50]) + data[at + length :], how
    filling = bytes(length) if how == "zero" else rng.randbytes(length)
    return data[:at] + filling + data[at + length :], how
