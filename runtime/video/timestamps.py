"""Which timestamps the sampled frames of a video file have, found out without decoding it.

Three ways, from the cheapest to the surest: the index of a container that lists all its frames, a constant frame
rate, and the timestamps of all packets. Whoever reads the frames checks what he finds against what was promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av.error
import numpy as np
from numpy.typing import NDArray

from prunevid.errors import PruneVidError
from prunevid.runtime.video.container import OpenVideo, seconds_of
from prunevid.runtime.video.frames import sample_indices

__all__ = ["Targets", "UnusableTimestampsError", "targets_by_index", "targets_by_packets", "targets_by_rate"]


class UnusableTimestampsError(Exception):
    """The file's timestamps do not say which frame is the i-th."""


@dataclass(frozen=True)
class Targets:
    """Timestamps of the wanted frames.

    Attributes:
        pts: In the stream's time base, increasing.
        tolerance: A frame may be that far from its wanted timestamp, for the container rounds.
        stamps: int64, timestamps of all frames that are shown, increasing, as far off; None where unknown.
        keys: Timestamps of all key frames, increasing, where they are known.
        listed: The stamps are those of the packets: nothing is rounded, estimated or left out.
    """

    pts: list[int]
    tolerance: int
    stamps: NDArray[np.int64] | None
    keys: list[int] | None = None
    listed: bool = False


def targets_by_index(video: OpenVideo, count: int) -> Targets | None:
    """Targets from the index of a file just opened; None where it has none that lists every frame.

    MP4, MOV and AVI have one. It holds the times of decoding: frames that are evenly timed, or decoded in the order
    in which they are shown, are shown at the same times but for a shift.
    """
    if video.format not in ("mov", "avi"):
        return None
    entries = [(entry.timestamp, entry.is_discard, entry.size) for entry in video.stream.index_entries]
    if len(entries) < 2 or any(size == 0 for _, _, size in entries):
        return None
    times = np.array([entry[0] for entry in entries], np.int64)
    shown = np.array([not entry[1] for entry in entries])
    steps = np.diff(times)
    reordered = bool(video.stream.codec_context.has_b_frames)
    # AVI has no times of display, and those that were made up for it may be some frames off.
    if steps.min() <= 0 or not shown.any() or (reordered and video.format == "avi"):
        return None
    first = _first_stamp(video)
    if first is None:
        return None
    if not reordered:
        times, tolerance = times[shown], 0
    else:
        tolerance = 2 * int(steps.max() - steps.min())
        if 2 * tolerance >= steps.min():
            return None
        times = times[: np.count_nonzero(shown)]
    stamps = times - times[0] + first
    return Targets(_sampled(stamps, count), tolerance, stamps)


def _first_stamp(video: OpenVideo) -> int | None:
    """Timestamp of the first frame that is shown, of a file just opened."""
    first: int | None = None
    for packet in video.packets():
        if packet.pts is None or packet.dts is None:
            return None if packet.size else first
        if first is not None and packet.dts > first:  # what is decoded later is shown later
            return first
        if not packet.is_discard:
            first = packet.pts if first is None else min(first, packet.pts)
    return first


def targets_by_rate(video: OpenVideo, count: int) -> Targets | None:
    """Targets computed from the frame rate and the timestamps at both ends of a file; None where these do not agree.

    Matroska (WebM) only: it can be searched by time, and says how long it is.
    """
    rate = video.stream.average_rate
    seconds = seconds_of(video.container, video.stream)
    if video.format != "matroska" or not rate or not seconds:
        return None
    first = _first_stamp(video)
    if first is None:
        return None
    last = first
    try:
        video.container.seek(first + int(seconds / video.time_base), stream=video.stream)
    except av.error.FFmpegError:
        return None
    decoding = None
    for packet in video.packets():
        if packet.size == 0:
            continue
        if packet.pts is None or packet.dts is None or (decoding is not None and packet.dts < decoding):
            return None
        decoding, last = packet.dts, max(last, packet.pts)
    step = 1 / (rate.numerator * video.time_base / rate.denominator)
    total = round((last - first) / step) + 1
    tolerance = 2  # both a frame and the first one, from which it is counted, are rounded
    if step <= 4 * tolerance or abs(first + round((total - 1) * step) - last) > tolerance:
        return None
    return Targets([first + round(int(index) * step) for index in sample_indices(total, count)], tolerance, None)


def targets_by_packets(video: OpenVideo, count: int) -> Targets:
    """Targets taken from the timestamps of all packets of a file just opened; they are read but not decoded.

    Raises:
        PruneVidError: There are no packets.
        UnusableTimestampsError: They have no timestamps, or none that rise.
    """
    stamps: list[int] = []
    keys: list[int] = []
    highest: int | None = None
    packets, unstamped, last_dts, ordered, paired, stamped = 0, 0, None, True, True, False
    for packet in video.packets():
        if packet.size == 0:
            continue
        packets += 1
        if packet.dts is not None:
            ordered &= last_dts is None or packet.dts >= last_dts
            last_dts = packet.dts
        paired &= packet.pts is not None or stamped
        stamped = packet.pts is not None
        if packet.pts is None:
            unstamped += 1
            continue
        if packet.is_keyframe:
            # What is decoded before a key frame is shown before it: else recordings were joined.
            ordered &= highest is None or packet.pts > highest
            keys.append(packet.pts)
        highest = packet.pts if highest is None else max(highest, packet.pts)
        # Frames that an edit list cuts off are decoded, since others lean on them, but not shown.
        if not packet.is_discard:
            stamps.append(packet.pts)
    if not packets:
        raise PruneVidError(f"{video.path}: the video has no frames; it is empty or cut off after its header")
    # The second field of an interlaced frame is a packet of its own without a timestamp, behind one that has one.
    # Where few packets are without, they are frames whose times are not known.
    if not paired or 0 < 4 * unstamped < packets:
        raise UnusableTimestampsError
    if not ordered or len(set(stamps)) < len(stamps):
        raise UnusableTimestampsError
    # AVI has decoding times only; where the parser made no times of display of them, they rise steadily.
    if video.format == "avi" and video.stream.codec_context.has_b_frames and stamps == sorted(stamps):
        raise UnusableTimestampsError
    # What is shown before the first key frame cannot be decoded.
    shown = np.array(sorted(stamp for stamp in stamps if not keys or stamp >= keys[0]), np.int64)
    if not len(shown):
        raise UnusableTimestampsError
    return Targets(_sampled(shown, count), 0, shown, keys, listed=True)


def _sampled(stamps: NDArray[np.int64], count: int) -> list[int]:
    chosen: Sequence[int] = stamps[sample_indices(len(stamps), count)].tolist()
    return list(chosen)
