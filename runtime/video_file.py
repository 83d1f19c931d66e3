"""Sampled frames of one video file, read by sparse seeking.

A film of two hours costs what its sampled frames cost: for each of them the decoder starts at the key frame
before it, or goes on from where it is when that is nearer. Which frame is the i-th is known without decoding:
from the frame rate where the container proves it constant, else from the timestamps of the packets. Only a
file without usable timestamps is decoded whole. Damaged frames are skipped and counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunevid.errors import PruneVidError
from prunevid.runtime.video_container import (
    Targets,
    UnusableTimestampsError,
    open_video,
    packets_of,
    targets_by_packets,
    targets_by_rate,
    video_stream,
)
from prunevid.runtime.video_frames import FrameStack, SampledFrames, check_dimensions, sample_indices

__all__ = ["SCAN_LIMIT_BYTES", "read_video_file"]

SCAN_LIMIT_BYTES = 128 * 2**20
"""Up to this size packets are listed (not decoded) to number frames exactly; above it the rate is trusted."""

_FALLBACK_RATE = Fraction(25)


@dataclass
class _Statistics:
    decoded: int = 0
    damaged: set[tuple[str, int]] = field(default_factory=set)


def read_video_file(path: Path, count: int, scan_limit: int = SCAN_LIMIT_BYTES) -> SampledFrames:
    """Reads `count` frames spread uniformly over a video file, or all of them where it has fewer.

    Args:
        path: An existing file.
        count: How many frames, at least 1.
        scan_limit: Size in bytes up to which frames are numbered by listing every packet. In a larger file
            whose frame rate varies, frames are spread uniformly over time instead.

    Returns:
        The frames, upright (rotation metadata applied), with seconds since the first frame of the video. A
        damaged frame gives way to the next one; frames that were lost with their packets leave no trace in
        `skipped`.

    Raises:
        PruneVidError: The file is no video, has no picture or no decodable frame, or absurd dimensions.
    """
    statistics = _Statistics()
    with open_video(path) as container:
        stream = video_stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width and height:  # else unknown before the first frame is decoded
            check_dimensions(width, height, str(path))
        targets = targets_by_rate(container, stream, count, trusted=path.stat().st_size > scan_limit)
    try:
        if targets is not None:
            frames = _read_targets(path, targets, statistics)
            if len(frames) == len(targets.pts):
                return _sampled(frames, path, statistics)
            # The rate or duration was a lie (a truncated file, sound longer than the picture), or frames are
            # damaged.
            statistics = _Statistics()
        with open_video(path) as container:
            targets = targets_by_packets(container, video_stream(container, path), count, path)
        frames = _read_targets(path, targets, statistics)
    except UnusableTimestampsError:
        statistics = _Statistics()
        frames = _read_in_order(path, count, statistics)
    return _sampled(frames, path, statistics)


def _sampled(frames: FrameStack, path: Path, statistics: _Statistics) -> SampledFrames:
    if not len(frames):
        raise PruneVidError(
            f"{path}: no frame of this video can be decoded ({len(statistics.damaged)} damaged ones met); "
            "the file is damaged or cut off, record or copy it again"
        )
    return frames.finish(len(statistics.damaged), statistics.decoded)


def _read_targets(path: Path, targets: Targets, statistics: _Statistics) -> FrameStack:
    """The frame at every target, or the nearest decodable one after it; no frame twice."""
    frames = FrameStack(str(path), len(targets.pts))
    with open_video(path) as container, open_video(path) as index:
        seeker = _Seeker(container, index, path, targets, statistics)
        last = None
        for target in targets.pts:
            frame = seeker.frame_at(target)
            if frame is None or (last is not None and frame.pts <= last):
                continue
            last = frame.pts
            seconds = float((frame.pts - targets.pts[0]) * seeker.stream.time_base)
            frames.add(_image(frame, path, frames.size), seconds)
    return frames


def _read_in_order(path: Path, count: int, statistics: _Statistics) -> FrameStack:
    """Decodes the whole file twice: to count its frames, then to keep the sampled ones."""
    with open_video(path) as container:
        total = sum(1 for _ in _decode(container, video_stream(container, path), _Statistics()))
    wanted = set(sample_indices(total, count).tolist()) if total else set()
    frames = FrameStack(str(path), len(wanted))
    with open_video(path) as container:
        stream = video_stream(container, path)
        rate = stream.guessed_rate or stream.average_rate or _FALLBACK_RATE
        for rank, frame in enumerate(_decode(container, stream, statistics)):
            if rank in wanted:
                frames.add(_image(frame, path, frames.size), float(rank / rate))
    return frames


class _Seeker:
    """Finds frames by timestamp, in increasing order, decoding as little as possible.

    `container` is decoded; `index` is the same file opened again, to look for key frames in without
    disturbing the decoder.
    """

    def __init__(self, container: Any, index: Any, path: Path, targets: Targets, statistics: _Statistics) -> None:
        self.stream = video_stream(container, path)
        self._container = container
        self._index = index
        self._index_stream = video_stream(index, path)
        self._targets = targets
        self._statistics = statistics
        self._frames = _decode(container, self.stream, statistics)
        self._last: Any = None  # the frame decoded last
        self._first_pts: int | None = None  # of the first frame since the last seek

    def frame_at(self, target: int) -> Any:
        """The first frame at or after the target; else the last one before it; None where neither decodes."""
        if self._last is not None and self._last.pts >= target - self._targets.slack:
            return self._last
        key = self._key_before(target)
        if key is not None and (self._last is None or key > self._last.pts):
            self._seek(key)
        frame = self._advance(target)
        if self._targets.exact and key is not None and self._missed(target):
            # Some streams recover only a while after the point they call a key frame: start one earlier.
            earlier = self._key_before(key - 1)
            if earlier is not None:
                self._seek(earlier)
                frame = self._advance(target)
        return frame

    def _missed(self, target: int) -> bool:
        return self._first_pts is None or self._first_pts > target + self._targets.slack

    def _advance(self, target: int) -> Any:
        for frame in self._frames:
            if frame.pts is None:
                raise UnusableTimestampsError
            if self._last is not None and frame.pts < self._last.pts:
                if self._targets.exact:
                    raise UnusableTimestampsError
                continue
            if self._first_pts is None:
                self._first_pts = frame.pts
            self._last = frame
            if frame.pts >= target - self._targets.slack:
                return frame
        return self._last

    def _seek(self, key: int) -> None:
        """Moves the decoder to the key frame shown at `key`."""
        self._find_key(self._container, self.stream, key)
        self._frames = _decode(self._container, self.stream, self._statistics, key=key)
        self._last = self._first_pts = None

    def _key_before(self, target: int) -> int | None:
        """Timestamp of the last key frame at or before the target; None where seeking does not find one."""
        # Most packets of an MPEG program stream have no timestamp, and those made up after a seek are wrong.
        if self._targets.exact and self._index.format.name == "mpeg":
            return None
        keys = self._targets.keys
        if keys is None:
            return self._find_key(self._index, self._index_stream, target)
        position = bisect_right(keys, target) - 1
        if position < 0:
            return None
        key = keys[position]
        if self._last is not None and key <= self._last.pts:
            return key
        # A container that tells other timestamps after a seek cannot be searched.
        return key if self._find_key(self._index, self._index_stream, key) in keys else None

    def _find_key(self, container: Any, stream: Any, target: int) -> int | None:
        """Places a container so that reading meets a key frame at or before the target; returns its time.

        Containers seek by decoding time, and some land anywhere: step back until a key frame is early enough.
        """
        at, step = target, max(1, int(Fraction(1, 10) / stream.time_base))
        first = stream.start_time if stream.start_time is not None else 0
        lowest = first - int(10 / stream.time_base)
        while True:
            try:
                container.seek(at, stream=stream)
            except av.error.FFmpegError:
                return None
            keys = (packet for packet in packets_of(container, stream) if packet.is_keyframe)
            found = next((packet.pts for packet in keys if packet.pts is not None), None)
            if found is not None and found <= target:
                container.seek(at, stream=stream)  # reading has gone past it
                return int(found)
            if at <= lowest:
                return None
            at, step = max(lowest, at - step), 2 * step


def _decode(container: Any, stream: Any, statistics: _Statistics, key: int | None = None) -> Iterator[Any]:
    """Undamaged frames from where the container is; after a seek, those from the key frame at `key` on."""
    waiting = key is not None
    incomplete: set[int] = set()
    for packet in packets_of(container, stream):
        if waiting:
            if not packet.is_keyframe or packet.pts != key:
                continue
            waiting = False
        if packet.is_corrupt and packet.pts is not None:
            incomplete.add(packet.pts)
        try:
            decoded = packet.decode()
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, ValueError):  # the latter where the decoder would not open, from PyAV 19 on
            statistics.damaged.add(("packet", packet.dts if packet.dts is not None else -1))
            continue
        for frame in decoded:
            statistics.decoded += 1
            # Pictures stored after the key frame but shown before it lean on what the seek jumped over.
            if key is not None and frame.pts is not None and frame.pts < key:
                continue
            if frame.is_corrupt or frame.pts in incomplete:
                statistics.damaged.add(("frame", frame.pts if frame.pts is not None else statistics.decoded))
                continue
            yield frame


def _image(frame: Any, path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A decoded frame as RGB, uint8 [H, W, 3], turned as its metadata says; resized to `size` if given."""
    check_dimensions(frame.width, frame.height, str(path))
    try:
        image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, ValueError) as error:
        raise PruneVidError(
            f"{path}: frames of pixel format {frame.format.name} cannot be converted to RGB; convert the video to H.264"
        ) from error
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    image = np.rot90(image, quarters) if quarters else image
    if size is not None and image.shape[:2] != size:  # the resolution changes in the middle of the video
        image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return image
