"""Damaged videos, asked about with `prunevid run`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import av
import av.error

from benchmarks.fuzz.bases import Bases
from benchmarks.fuzz.clips import CLIPS, Clip
from benchmarks.fuzz.job import Job
from benchmarks.fuzz.large import large_video
from benchmarks.fuzz.raw import damage_bytes, odd_number
from benchmarks.fuzz.trees import damage_tree

__all__ = ["control", "controls", "make"]

# More than any clip has: all that can be seen is asked for.
_ASKED_FRAMES = 64
_CONTAINERS = ("mp4", "mov", "matroska", "avi", "mpegts", "flv", "nut", "mpeg", "asf")
_SUFFIXES = (".mp4", ".mkv", ".avi", ".png", ".jpg", ".webp", ".gif", ".txt", ".ts", "", ".MP4", ".h264", ".yuv")


def controls(bases: Bases) -> list[str]:
    """Whole videos, of which every frame must be shown."""
    return list(CLIPS)


def control(name: str, bases: Bases, folder: Path) -> Job:
    """The whole video `name`."""
    video = folder / bases.clips[name].name
    _copy(bases.clips[name], video)
    return _job(bases, video, "control", name, frames=CLIPS[name].frames)


def make(rng: Random, bases: Bases, folder: Path) -> Job:
    """A damaged video in `folder`."""
    if rng.random() < 0.05:
        video, detail = large_video(rng, folder)
        return _job(bases, video, f"large: {video.suffix or 'folder'}", detail)
    name = rng.choice(list(CLIPS))
    clip, source = CLIPS[name], bases.clips[name]
    if source.is_dir():
        return _damaged_folder(rng, bases, source, folder)
    mutations = [_bytes, _bytes, _header, _truncated, _joined, _misnamed]
    if clip.tree:
        mutations += [_parts] * 5
    if clip.packets:
        mutations += [_packets] * 3
    mutate = rng.choice(mutations)
    video = folder / source.name
    if mutate is _truncated and clip.packets:
        return _cut_off(rng, bases, name, video)
    data, detail = mutate(rng, bases, source, clip)
    if mutate is _misnamed:
        video = video.with_suffix(rng.choice(_SUFFIXES))
    video.write_bytes(data)
    return _job(bases, video, f"{name}: {mutate.__name__[1:]}", detail)


def _job(
    bases: Bases, video: Path, mutation: str, detail: str, frames: int | None = None, fewer_than: int | None = None
) -> Job:
    arguments = ("run", str(bases.bundles["ort"]), "--video", video.name, "--question", bases.question, "--json")
    limits = ("--frames", str(_ASKED_FRAMES), "--max-new-tokens", "2", "--threads", "1")
    return Job((*arguments, *limits), mutation, detail, frames=frames, fewer_than=fewer_than)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _bytes(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    return damage_bytes(rng, source.read_bytes())


def _header(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    data = source.read_bytes()
    cut = min(len(data), 1 << rng.randrange(5, 12))
    damaged, detail = damage_bytes(rng, data[:cut])
    return damaged + data[cut:], f"{detail} in the first {cut}"


def _truncated(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    data = source.read_bytes()
    left = rng.randrange(len(data))
    return data[:left], f"{left} of {len(data)} bytes left"


def _joined(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    files = [name for name, path in bases.clips.items() if path.is_file()]
    other = rng.choice(files)
    return source.read_bytes() + bases.clips[other].read_bytes() * rng.choice([1, 1, 5]), f"{other} behind it"


def _misnamed(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    return source.read_bytes(), "another suffix"


def _parts(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    assert clip.tree is not None
    return damage_tree(rng, source.read_bytes(), clip.tree)


def _cut_off(rng: Random, bases: Bases, name: str, video: Path) -> Job:
    """A file that ends early. Where whole frames went with its end, that must show."""
    source = bases.clips[name]
    data = source.read_bytes()
    left = rng.randrange(len(data))
    video.write_bytes(data[:left])
    lost = sum(position >= left for position in _positions(source))
    fewer_than = CLIPS[name].frames if lost >= 2 else None
    return _job(bases, video, f"{name}: truncated", f"{left} of {len(data)} bytes left", fewer_than=fewer_than)


def _positions(source: Path) -> list[int]:
    """Where in the file the video's packets begin."""
    with av.open(str(source)) as container:
        packets = container.demux(container.streams.video[0])
        return [packet.pos for packet in packets if packet.size and packet.pos is not None]


# Packet by packet: a container that is right around streams that are not.


def _packets(rng: Random, bases: Bases, source: Path, clip: Clip) -> tuple[bytes, str]:
    container = rng.choice(_CONTAINERS)
    how = rng.choice(list(_PACKET_DAMAGES))
    target = bases.scratch / f"{rng.getrandbits(64):x}"
    try:
        _remux(rng, source, target, container, _PACKET_DAMAGES[how])
        return target.read_bytes(), f"{how}, in {container}"
    except (av.error.FFmpegError, ValueError) as error:
        # This container takes no such stream. What was written until then is a damaged file, too.
        data = target.read_bytes() if target.exists() else b""
        return data or source.read_bytes()[:1000], f"{how}, in {container} until {type(error).__name__}"
    finally:
        target.unlink(missing_ok=True)


def _remux(rng: Random, source: Path, target: Path, container: str, damage: Callable[[Random, list[Any]], Any]) -> None:
    options = {"fflags": "+bitexact"}
    with av.open(str(source)) as reading, av.open(str(target), "w", container, container_options=options) as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        packets = [packet for packet in reading.demux(video=0) if packet.size]
        for packet in damage(rng, packets):
            packet.stream = stream
            writing.mux_one(packet)


def _with_data(packet: Any, data: bytes) -> Any:
    changed = av.Packet(data)
    changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
    changed.is_keyframe = packet.is_keyframe
    return changed


def _damaged_data(rng: Random, packets: list[Any]) -> list[Any]:
    hit = {rng.randrange(len(packets)) for _ in range(rng.choice([1, 3, 20]))}
    return [
        _with_data(packet, damage_bytes(rng, bytes(packet))[0] or b"\0") if index in hit else packet
        for index, packet in enumerate(packets)
    ]


def _dropped(rng: Random, packets: list[Any]) -> list[Any]:
    if rng.random() < 0.3:
        return packets[rng.randrange(len(packets)) :]
    return [packet for packet in packets if rng.random() < 0.6]


def _swapped_data(rng: Random, packets: list[Any]) -> list[Any]:
    contents = [bytes(packet) for packet in packets]
    rng.shuffle(contents)
    return [_with_data(packet, data) for packet, data in zip(packets, contents, strict=True)]


def _without_times(rng: Random, packets: list[Any]) -> list[Any]:
    for packet in packets:
        if rng.random() < 0.5:
            packet.pts = None
        if rng.random() < 0.2:
            packet.dts = None
    return packets


def _odd_times(rng: Random, packets: list[Any]) -> list[Any]:
    for packet in packets:
        if rng.random() < 0.3 and packet.pts is not None:
            packet.pts += rng.choice([-1, 1]) * odd_number(rng)
    return packets


def _shifted_times(rng: Random, packets: list[Any]) -> list[Any]:
    shift, at = rng.choice([-1, 1, 1]) * odd_number(rng), rng.randrange(len(packets))
    for packet in packets[at:]:
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift
    return packets


def _odd_time_base(rng: Random, packets: list[Any]) -> list[Any]:
    base = rng.choice([Fraction(1, 1), Fraction(1, 2**30), Fraction(1000), Fraction(1, 7)])
    for packet in packets:
        packet.time_base = base
    return packets


def _no_keys(rng: Random, packets: list[Any]) -> list[Any]:
    for packet in packets:
        packet.is_keyframe = rng.random() < 0.1
    return packets


_PACKET_DAMAGES: dict[str, Callable[[Random, list[Any]], list[Any]]] = {
    "damaged data": _damaged_data,
    "dropped": _dropped,
    "swapped data": _swapped_data,
    "without times": _without_times,
    "odd times": _odd_times,
    "shifted times": _shifted_times,
    "odd time base": _odd_time_base,
    "no key frames": _no_keys,
    "only the first": lambda rng, packets: packets[:1],
    "nothing": lambda rng, packets: packets,
}


def _damaged_folder(rng: Random, bases: Bases, source: Path, folder: Path) -> Job:
    """A folder of pictures in which one is damaged, or the folder itself is odd."""
    video = folder / source.name
    shutil.copytree(source, video)
    pictures = sorted(video.iterdir())
    hit = rng.choice(pictures)
    how = rng.choice(["damaged", "all damaged", "another size", "odd name", "empty", "folder", "link", "other clip"])
    if how == "damaged":
        hit.write_bytes(damage_bytes(rng, hit.read_bytes())[0])
    elif how == "all damaged":
        for picture in pictures:
            picture.write_bytes(damage_bytes(rng, picture.read_bytes())[0])
    elif how == "another size":
        shutil.copyfile(bases.clips["bmp"], hit.with_suffix(".bmp"))
        hit.with_suffix(".bmp").write_bytes(_other_size(hit))
    elif how == "odd name":
        names = ("9" * 250 + ".png", ".png", "a\nb.png", "-.png", "1e999.png", "nan.png", "\u0663.png", "1.2.3.png")
        hit.rename(video / rng.choice(names))
    elif how == "empty":
        shutil.rmtree(video)
        video.mkdir()
    elif how == "folder":
        hit.unlink()
        hit.mkdir()
    elif how == "link":
        hit.unlink()
        hit.symlink_to(rng.choice(["nothing.png", hit.name, "/dev/null", "/proc/self/environ", "../.."]))
    else:
        shutil.copyfile(bases.clips["mp4"], hit)
    return _job(bases, video, f"folder: {how}", hit.name)


def _other_size(picture: Path) -> bytes:
    from io import BytesIO

    from PIL import Image

    with Image.open(picture) as image, BytesIO() as file:
        image.resize((33, 7)).save(file, "BMP")
        return file.getvalue()
