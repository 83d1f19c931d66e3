"""Small whole videos in the containers that people have, to be damaged by others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CLIPS", "FRAMES", "Clip", "write_clips"]

FRAMES = 20
_HEIGHT, _WIDTH = 64, 96
_RATE = 10


@dataclass(frozen=True)
class Clip:
    """A whole video: the suffix of its file, the format by whose parts it can be damaged, and how many frames it has.

    codec: of PyAV, which writes it; without one, Pillow does. packets: can be written again packet by packet.
    """

    suffix: str
    tree: str | None = None
    codec: str | None = None
    frames: int = FRAMES
    gop: int = 6
    b_frames: int = 0
    sound: bool = False
    packets: bool = True


CLIPS = {
    "mp4": Clip(".mp4", "boxes", "libx264", b_frames=2, sound=True),
    "mp4-long-gop": Clip(".mp4", "boxes", "libx264", gop=250),
    "mov": Clip(".mov", "boxes", "mpeg4"),
    "mkv": Clip(".mkv", "ebml", "libx264", b_frames=2),
    "webm": Clip(".webm", "ebml", "libvpx"),
    "avi": Clip(".avi", "riff", "mjpeg"),
    "avi-mpeg4": Clip(".avi", "riff", "mpeg4"),
    "ts": Clip(".ts", "ts", "libx264", sound=True),
    "ts-mpeg2": Clip(".ts", "ts", "mpeg2video"),
    "flv": Clip(".flv", "flv", "flv"),
    "mpg": Clip(".mpg", None, "mpeg2video"),
    "gif": Clip(".gif", packets=False),
    "webp": Clip(".webp", "riff", packets=False),
    "apng": Clip(".png", "png", packets=False),
    "png16": Clip(".png", "png", frames=1, packets=False),
    "jpeg": Clip(".jpg", "jpeg", frames=1, packets=False),
    "bmp": Clip(".bmp", frames=1, packets=False),
    "folder": Clip("", frames=6, packets=False),
}


def write_clips(folder: Path) -> dict[str, Path]:
    """Write every clip into `folder`; returns their paths by name. The same bytes every time."""
    paths = {}
    for name, clip in CLIPS.items():
        path = folder / f"{name}{clip.suffix}"
        images = [_image(index) for index in range(clip.frames)]
        if clip.codec is not None:
            _encode(path, clip, images)
        else:
            _PILLOW[name](path, images)
        paths[name] = path
    return paths


def _image(index: int) -> NDArray[np.uint8]:
    """A gradient that shifts with a square that moves, uint8 [H, W, 3]: no two frames are the same."""
    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    image = np.stack([(columns * 2 + 9 * index) % 256, rows * 4, (rows + columns + 5 * index) % 256], axis=-1)
    left, top = 4 * index % (_WIDTH - 16), 2 * index % (_HEIGHT - 16)
    image[top : top + 16, left : left + 16] = (255, 255 - 10 * index, 0)
    return image.astype(np.uint8)


def _encode(path: Path, clip: Clip, images: list[NDArray[np.uint8]]) -> None:
    # Without bitexact, Matroska writes random ids and MP4 the time of day.
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(clip.codec, rate=25 if clip.codec == "mpeg2video" else _RATE)
        stream.width, stream.height = _WIDTH, _HEIGHT
        stream.pix_fmt = "yuvj420p" if clip.codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = clip.gop
        stream.codec_context.max_b_frames = clip.b_frames
        stream.codec_context.thread_count = 1
        if clip.codec == "libx264":
            stream.options = {"preset": "ultrafast", "bf": str(clip.b_frames), "g": str(clip.gop)}
        sound: Any = container.add_stream("aac", rate=16000) if clip.sound else None
        container.start_encoding()
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_silence(container, sound)


def _write_silence(container: Any, stream: Any) -> None:
    for index in range(FRAMES * 16000 // _RATE // 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, index * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _animation(path: Path, images: list[NDArray[np.uint8]], **settings: Any) -> None:
    first, *rest = map(Image.fromarray, images)
    first.save(path, save_all=True, append_images=rest, duration=100, **settings)


def _folder(path: Path, images: list[NDArray[np.uint8]]) -> None:
    path.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"frame{index}.{('png', 'jpg', 'bmp')[index % 3]}")


def _grey16(path: Path, images: list[NDArray[np.uint8]]) -> None:
    Image.fromarray(images[0][..., 0].astype(np.uint16) * 257).save(path)


_PILLOW: dict[str, Callable[[Path, list[NDArray[np.uint8]]], None]] = {
    "gif": _animation,
    "webp": lambda path, images: _animation(path, images, lossless=True),
    "apng": lambda path, images: _animation(path, images, format="PNG"),
    "png16": _grey16,
    "jpeg": lambda path, images: Image.fromarray(images[0]).save(path),
    "bmp": lambda path, images: Image.fromarray(images[0]).save(path),
    "folder": _folder,
}
