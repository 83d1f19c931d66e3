"""Small real videos for tests, written with PyAV.

Every frame carries its own number as a row of black and white blocks, which survives lossy coding: a test can
tell which frame it was given without trusting any timestamp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from ffmpeg import ffmpeg

NUMBER_BITS = 16


def numbered_frame(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A moving gradient whose top half spells `number` in binary blocks; uint8 [height, width, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = (columns * 255 // max(width - 1, 1) + 3 * number) % 256
    image[..., 1] = rows * 255 // max(height - 1, 1)
    image[..., 2] = 128
    side_y, side_x = height // 8, width // 4
    for bit in range(NUMBER_BITS):
        y, x = divmod(bit, 4)
        image[y * side_y : (y + 1) * side_y, x * side_x : (x + 1) * side_x] = 255 if number >> bit & 1 else 0
    return image


def read_number(image: np.ndarray) -> int:
    """The number that numbered_frame() wrote into an image."""
    height, width = image.shape[:2]
    side_y, side_x = height // 8, width // 4
    number = 0
    for bit in range(NUMBER_BITS):
        y, x = divmod(bit, 4)
        block = image[y * side_y : (y + 1) * side_y, x * side_x : (x + 1) * side_x]
        number |= int(block.mean() > 128) << bit
    return number


def h264() -> str:
    """The H.264 encoder of this PyAV, or mpeg4 where it was built without one."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_video(
    path: Path,
    frames: Iterable[np.ndarray] | int = 30,
    *,
    fps: Fraction | int = 25,
    codec: str | None = None,
    gop: int = 12,
    bframes: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    audio_seconds: float = 0.0,
    size: tuple[int, int] = (64, 64),
    title: str = "",
) -> Path:
    """Writes a video; `frames` are images or how many numbered ones, `pts` (in time_base) makes the rate
    variable."""
    images = [numbered_frame(i, *size) for i in range(frames)] if isinstance(frames, int) else list(frames)
    codec = codec or h264()
    time_base = time_base or 1 / Fraction(fps)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        if title:
            container.metadata["title"] = title
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = images[0].shape[:2] if images else size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = bframes
        stream.codec_context.thread_count = 1
        defaults = {"preset": "ultrafast", "crf": "18", "bf": str(bframes), "g": str(gop)}
        stream.options = (defaults if codec == "libx264" else {}) | (options or {})
        sound = container.add_stream("aac", rate=16000) if audio_seconds else None
        container.start_encoding()  # a file without frames has a header too
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_silence(container, sound, audio_seconds)
    if rotation:
        plain = path.rename(path.with_name(f"plain-{path.name}"))
        ffmpeg("-display_rotation", rotation, "-i", plain, "-c", "copy", path)
        plain.unlink()
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=16000), seconds)
    return path


def write_film(path: Path, seconds: int, fps: int = 24, gop: int = 240) -> int:
    """A long film: one encoded group of pictures repeated with shifted timestamps; returns its number of
    frames.

    Encoding two real hours would take minutes; muxing them takes seconds and demands the same of a reader.
    """
    clip = path.with_name(f"{path.stem}-clip.mp4")
    write_video(clip, gop, fps=fps, gop=gop, bframes=2, codec=h264())
    repeats = seconds * fps // gop
    with av.open(str(clip)) as source, av.open(str(path), "w") as film:
        template = source.streams.video[0]
        packets = [p for p in source.demux(template) if p.dts is not None]
        tick = int(1 / (fps * template.time_base))
        stamps = [(p.pts, p.dts) for p in packets]
        stream = film.add_stream_from_template(template)
        for repeat in range(repeats):
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                packet.pts, packet.dts = pts + repeat * gop * tick, dts + repeat * gop * tick
                packet.time_base = template.time_base
                packet.stream = stream
                film.mux_one(packet)
                packet.time_base = template.time_base
    return repeats * gop


def decode_all(path: Path) -> tuple[np.ndarray, list[int | None]]:
    """Every frame by plain sequential decoding, as transformers' readers do: uint8 [T, H, W, 3] and pts."""
    images, stamps = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            images.append(frame.to_ndarray(format="rgb24"))
            stamps.append(frame.pts)
    return np.stack(images), stamps


def _write_silence(container: Any, stream: Any, seconds: float) -> None:
    samples = 1024
    for index in range(max(1, int(seconds * 16000 / samples))):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        frame.pts = index * samples
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
