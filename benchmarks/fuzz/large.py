"""Small files with large pictures in them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from random import Random

import av
from PIL import Image

__all__ = ["large_video"]

_SIDES = (4_000, 8_192, 8_193, 16_384, 16_385, 32_767, 65_535, 1_000_000)
_PICTURES = 16


def large_video(rng: Random, folder: Path) -> tuple[Path, str]:
    """Write a picture, a folder of pictures or a film of large pictures into `folder`."""
    name = rng.choice(list(_KINDS))
    width, height = rng.choice(_SIDES), rng.choice([1, 64, *_SIDES])
    while width * height > 2**28:
        width, height = max(1, width // 2), max(1, height // 2)
    video = folder / f"large{name}"
    _KINDS[name](video, width, height)
    return video, f"{width} x {height}"


def _png(width: int, height: int) -> bytes:
    """A black picture, compressed without ever being held."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    written = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", size + b"\x08\x02\0\0\0"), (b"IDAT", data), (b"IEND", b"")):
        written += len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    return written


def _jpeg(width: int, height: int) -> bytes:
    with BytesIO() as file:
        Image.new("L", (min(width, 65_000), min(height, 8_192))).save(file, "JPEG")
        return file.getvalue()


def _folder(path: Path, width: int, height: int) -> None:
    path.mkdir()
    (path / "0.png").write_bytes(_png(width, height))
    for index in range(1, _PICTURES):
        (path / f"{index}.png").hardlink_to(path / "0.png")


def _film(path: Path, width: int, height: int) -> None:
    """The same JPEG again and again, in a container that thinks it smaller."""
    picture = _jpeg(width, height)
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for index in range(_PICTURES):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux_one(packet)


def _gif(path: Path, width: int, height: int) -> None:
    """A canvas of any size around frames of one pixel."""
    with BytesIO() as file:
        first, *rest = (Image.new("RGB", (1, 1), (15 * index, 99, 255)) for index in range(_PICTURES))
        first.save(file, "GIF", save_all=True, append_images=rest, duration=100)
        data = file.getvalue()
    size = min(width, 65_535).to_bytes(2, "little") + min(height, 65_535).to_bytes(2, "little")
    path.write_bytes(data[:6] + size + data[10:])


_KINDS: dict[str, Callable[[Path, int, int], None]] = {
    ".png": lambda path, width, height: _write(path, _png(width, height)),
    ".jpg": lambda path, width, height: _write(path, _jpeg(width, height)),
    "-folder": _folder,
    ".avi": _film,
    ".mkv": _film,
    ".gif": _gif,
}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
