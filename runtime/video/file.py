"""Sampled frames of one video file, read by sparse seeking.

A film of two hours costs what its sampled frames cost: for each of them the decoder starts at the key frame
before it, or goes on from where it is when that is nearer. Which frame is the i-th is known without decoding:
from the container's index, from an even frame rate, or from the timestamps of the packets. What is found is held
against what was expected, and where it is not that, the next surer way is taken; the surest is to decode the whole
file and count. Damaged frames are skipped and counted.
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunevid.errors import PruneVidError
from prunevid.runtime.video.container import LARGE_FRAME_PIXELS, OpenVideo, choose_stream, open_video
from prunevid.runtime.video.frames import FrameStack, SampledFrames, Shrink, check_dimensions, sample_indices
from prunevid.runtime.video.orientation import UPRIGHT, Orientation, orientation_of_matrix
from prunevid.runtime.video.timestamps import (
    Targets,
    UnusableTimestampsError,
    targets_by_index,
    targets_by_packets,
    targets_by_rate,
)

__all__ = ["SCAN_LIMIT_BYTES", "read_video_file"]

SCAN_LIMIT_BYTES = 128 * 2**20
"""Up to this size packets are listed (not decoded) to number frames exactly; above it, only where nothing else
proves which frame is which."""

_FALLBACK_RATE = Fraction(25)
# How far before a place where recordings were joined packets are taken for incomplete.
_JOINT_PACKETS = 2


@dataclass
class _Statistics:
    decoded: int = 0
    damaged: set[tuple[str, int]] = field(default_factory=set)


class _UnexpectedFrameError(Exception):
    """The frames of the file are not those that were expected."""


def read_video_file(
    path: Path, count: int, scan_limit: int = SCAN_LIMIT_BYTES, shrink: Shrink | None = None
) -> SampledFrames:
    """Reads `count` frames spread uniformly over a video file, or all of them where it has fewer.

    Args:
        path: An existing file.
        count: How many frames, at least 1.
        scan_limit: Size in bytes up to which the packets of any file are listed. Those of a larger one are
            listed only where its index or frame rate does not tell which frame is the i-th, or tells wrong.
        shrink: What is kept of every frame, by default all of it.

    Returns:
        The frames, as ffmpeg shows them (edit lists, turns and mirrors applied), with seconds since the first
        frame of the video. A damaged frame gives way to the next one; frames that were lost with their packets
        leave no trace in `skipped`.

    Raises:
        PruneVidError: The file is no video, has no picture or no decodable frame, or absurd dimensions.
    """
    index = choose_stream(path)
    ways: list[Callable[[OpenVideo, int], Targets | None]] = [targets_by_index, targets_by_packets]
    if path.stat().st_size > scan_limit:
        ways.insert(1, targets_by_rate)
    for way in ways:
        try:
            with open_video(path, index) as video:
                targets = way(video, count)
            if targets is not None:
                return _read_targets(path, index, targets, shrink)
        except (UnusableTimestampsError, _UnexpectedFrameError):
            continue
    return _read_in_order(path, index, count, shrink)


def _finish(frames: FrameStack, path: Path, statistics: _Statistics, missed: int = 0) -> SampledFrames:
    damaged = len(statistics.damaged)
    if not len(frames) and not damaged:
        raise PruneVidError(f"{path}: this video shows no frame (its edit list may leave none); give another file")
    if not len(frames):
        raise PruneVidError(
            f"{path}: no frame of this video can be decoded ({damaged} damaged ones met); "
            "the file is damaged or cut off, record or copy it again"
        )
    return frames.finish(max(damaged, missed), statistics.decoded)


def _read_targets(path: Path, index: int, targets: Targets, shrink: Shrink | None) -> SampledFrames:
    """The frame at every target; among damaged ones the nearest decodable one after it, no frame twice.

    Raises:
        _UnexpectedFrameError: Other frames came, and no damage explains it.
        UnusableTimestampsError: Frames come without timestamps, or out of order.
    """
    frames, statistics, picture = FrameStack(str(path), len(targets.pts), shrink), _Statistics(), _Pictures(path)
    missed = 0
    with open_video(path, index) as video, open_video(path, index) as searched:
        seeker = _Seeker(video, searched, targets, statistics)
        last = None
        for target in targets.pts:
            frame = seeker.frame_at(target)
            found = frame is not None and abs(frame.pts - target) <= targets.tolerance
            missed += not found
            explained = targets.listed and bool(statistics.damaged)
            if not explained and not (found and seeker.complete(frame.pts)):
                raise _UnexpectedFrameError
            if frame is None or (last is not None and frame.pts <= last):
                continue
            last = frame.pts
            frames.add(picture(frame, frames.size), float((last - targets.pts[0]) * video.time_base))
        if not targets.listed and len(targets.pts) > 1 and seeker.goes_on():
            raise _UnexpectedFrameError
    return _finish(frames, path, statistics, missed)


def _read_in_order(path: Path, index: int, count: int, shrink: Shrink | None) -> SampledFrames:
    """Decodes the whole file twice: to count its frames, then to keep the sampled ones."""
    with open_video(path, index) as video:
        stamps = [frame.pts for frame in _decode(video, _Statistics())]
        time_base = video.time_base
    wanted = set(sample_indices(len(stamps), count).tolist()) if stamps else set()
    clocked = None not in stamps and all(a < b for a, b in zip(stamps, stamps[1:], strict=False))
    frames, statistics, picture = FrameStack(str(path), len(wanted), shrink), _Statistics(), _Pictures(path)
    with open_video(path, index) as video:
        rate = video.stream.guessed_rate or video.stream.average_rate or _FALLBACK_RATE
        for rank, frame in enumerate(_decode(video, statistics)):
            if rank in wanted:
                seconds = (stamps[rank] - stamps[0]) * time_base if clocked else rank / rate
                frames.add(picture(frame, frames.size), float(seconds))
    return _finish(frames, path, statistics)


class _Seeker:
    """Finds frames by timestamp, in increasing order, decoding as little as possible.

    `video` is decoded; `searched` is the same file opened again, to look for key frames in without disturbing
    the decoder.
    """

    def __init__(self, video: OpenVideo, searched: OpenVideo, targets: Targets, statistics: _Statistics) -> None:
        self._video = video
        self._searched = searched
        self._targets = targets
        self._statistics = statistics
        self._frames = _decode(video, statistics)
        self._last: Any = None  # the frame decoded last
        self._first_pts: int | None = None  # of the first frame since the last seek
        self._since = 0  # frames since the last seek

    def frame_at(self, target: int) -> Any:
        """The first frame at or after the target; else the last one before it; None where neither decodes."""
        if self._last is not None and self._last.pts >= target - self._targets.tolerance:
            return self._last
        key = self._key_before(target)
        if key is not None and (self._last is None or key > self._last.pts):
            self._seek(key)
        frame = self._advance(target)
        if key is not None and self._missed(target):
            # Some streams recover only a while after the point they call a key frame: start one earlier.
            earlier = self._key_before(key - 1)
            if earlier is not None:
                self._seek(earlier)
                frame = self._advance(target)
        return frame

    def complete(self, pts: int) -> bool:
        """Whether all frames that should have come since the last seek up to this one did, and no others."""
        stamps = self._targets.stamps
        if stamps is None or self._first_pts is None:
            return True
        begin, end = np.searchsorted(stamps, np.array([self._first_pts, pts]) - self._targets.tolerance)
        return bool(end - begin + 1 == self._since)

    def goes_on(self) -> bool:
        """Whether frames come after the last one that was found."""
        return self._last is not None and next(self._frames, None) is not None

    def _missed(self, target: int) -> bool:
        return self._first_pts is None or self._first_pts > target + self._targets.tolerance

    def _advance(self, target: int) -> Any:
        for frame in self._frames:
            if frame.pts is None or (self._last is not None and frame.pts <= self._last.pts):
                raise UnusableTimestampsError
            if self._first_pts is None:
                self._first_pts = frame.pts
            self._last = frame
            self._since += 1
            if frame.pts >= target - self._targets.tolerance:
                return frame
        return self._last

    def _seek(self, key: int) -> None:
        """Moves the decoder to the key frame shown at `key`."""
        self._find_key(self._video, key)
        self._frames = _decode(self._video, self._statistics, key=key)
        self._last, self._first_pts, self._since = None, None, 0

    def _key_before(self, target: int) -> int | None:
        """Timestamp of the last key frame at or before the target; None where seeking does not find one."""
        # Most packets of an MPEG program stream have no timestamp, and those made up after a seek are wrong.
        if self._searched.format == "mpeg":
            return None
        keys = self._targets.keys
        if keys is None:
            return self._find_key(self._searched, target)
        position = bisect_right(keys, target) - 1
        if position < 0:
            return None
        key = keys[position]
        if self._last is not None and key <= self._last.pts:
            return key
        # A container that tells other timestamps after a seek cannot be searched.
        return key if self._find_key(self._searched, key) in keys else None

    @staticmethod
    def _find_key(video: OpenVideo, target: int) -> int | None:
        """Places a container so that reading meets a key frame at or before the target; returns its time.

        Containers seek by decoding time, and some land anywhere: step back until a key frame is early enough.
        """
        at, step = target, max(1, int(Fraction(1, 10) / video.time_base))
        first = video.stream.start_time if video.stream.start_time is not None else 0
        lowest = min(first, target) - int(10 / video.time_base)
        while True:
            try:
                video.container.seek(at, stream=video.stream)
            except av.error.FFmpegError:
                return None
            keys = (packet for packet in video.packets() if packet.is_keyframe)
            found = next((packet.pts for packet in keys if packet.pts is not None), None)
            if found is not None and found <= target:
                video.container.seek(at, stream=video.stream)  # reading has gone past it
                return int(found)
            if at <= lowest:
                return None
            at, step = max(lowest, at - step), 2 * step


def _decode(video: OpenVideo, statistics: _Statistics, key: int | None = None) -> Iterator[Any]:
    """Undamaged frames from where the container is; after a seek, those from the key frame at `key` on."""
    waiting = key is not None
    incomplete: Counter[int] = Counter()
    for packet, broken in _with_damage(video.packets()):
        if waiting:
            if not packet.is_keyframe or packet.pts != key:
                continue
            waiting = False
        if broken and packet.pts is not None:
            incomplete[packet.pts] += 1
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
            if frame.is_corrupt or incomplete[frame.pts]:
                incomplete[frame.pts] -= 1
                statistics.damaged.add(("frame", frame.pts if frame.pts is not None else statistics.decoded))
                continue
            yield frame


def _with_damage(packets: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Packets, and whether each lacks something.

    Where recordings were joined, the last packets before the joint are taken for incomplete, since the next
    recording counts its own; what follows is a key frame. Those are shown, as ffmpeg does.
    """
    ahead: deque[Any] = deque()
    for packet in packets:
        ahead.append(packet)
        if len(ahead) > _JOINT_PACKETS:
            yield _judged(ahead)
    while ahead:
        yield _judged(ahead)


def _judged(ahead: deque[Any]) -> tuple[Any, bool]:
    packet = ahead.popleft()
    at_joint = not packet.is_keyframe and any(later.is_keyframe for later in ahead)
    return packet, packet.is_corrupt and not at_joint


class _Pictures:
    """Makes of decoded frames what is seen: RGB, as the file's metadata turns and mirrors it, all of one size."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._orientations: dict[int, Orientation] = {}

    def __call__(self, frame: Any, size: tuple[int, int] | None) -> NDArray[np.uint8]:
        """A frame as uint8 [H, W, 3], resized to `size` (height and width) if that is given."""
        check_dimensions(frame.width, frame.height, str(self._path))
        orientation = self._orientation(frame)
        try:
            image = _rgb(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise PruneVidError(
                f"{self._path}: frames of pixel format {frame.format.name} cannot be converted to RGB; convert the "
                "video to H.264"
            ) from error
        image = orientation.apply(image)
        if size is not None and image.shape[:2] != size:  # the resolution changes in the middle of the video
            image = np.asarray(
                Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
            )
        return image

    def _orientation(self, frame: Any) -> Orientation:
        # A frame whose side data was looked at refers to itself and is not freed before the next collection: look
        # once for every angle, and collect where that is worth its time.
        if frame.width * frame.height > LARGE_FRAME_PIXELS:
            gc.collect()
        if frame.rotation not in self._orientations:
            matrix = frame.side_data.get("DISPLAYMATRIX")
            numbers = [] if matrix is None else np.frombuffer(matrix, np.int32).tolist()
            found = orientation_of_matrix(numbers, str(self._path)) if numbers else UPRIGHT
            self._orientations[frame.rotation] = found
        return self._orientations[frame.rotation]


def _rgb(frame: Any) -> NDArray[np.uint8]:
    """A view of the frame as RGB, uint8 [H, W, 3]: a copy of a large frame would cost much."""
    plane = frame.reformat(format="rgb24").planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height]
    return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
