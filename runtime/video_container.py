"""Opening a video file, and finding out which timestamps its sampled frames have, without decoding it.

A video is untrusted input. Formats that refer to other files or to addresses (playlists) are refused, and the
decoder is told how large a frame may become.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from prunevid.errors import PruneVidError
from prunevid.runtime.video_frames import MAX_FRAME_PIXELS, sample_indices

__all__ = [
    "Targets",
    "UnusableTimestampsError",
    "open_video",
    "packets_of",
    "targets_by_packets",
    "targets_by_rate",
    "video_stream",
]

# Containers and raw streams only. ffmpeg would also open playlists, which name other files and addresses, and
# would show a plain text file as a film of text.
_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,obu,ivf,flv,asf,ogg,nut,mxf,gxf,dv,rm,wtv,mjpeg,"
    "yuv4mpegpipe,gif,apng,mp3,wav,flac,aac"
)
_OPEN_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_MAX_DEMUX_ERRORS = 100
# Titles need not be UTF-8. From PyAV 19 on that is never an error, and there is no such option.
_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class UnusableTimestampsError(Exception):
    """The file's timestamps do not say which frame is the i-th: it must be decoded in order and counted."""


@dataclass(frozen=True)
class Targets:
    """Timestamps of the wanted frames.

    Attributes:
        pts: In the stream's time base, increasing.
        slack: A frame up to this much before a wanted timestamp is the wanted one.
        exact: The timestamps are known to be the frames' own, not estimated.
        keys: Timestamps of all key frames, increasing, where they are known.
    """

    pts: list[int]
    slack: int
    exact: bool
    keys: list[int] | None = None


def open_video(path: Path) -> Any:
    """Opens an existing file as a PyAV input container.

    Raises:
        PruneVidError: It is empty, may not be read, or is not a video.
    """
    try:
        # A name may look like a protocol ("concat:..."); an absolute path never does.
        name = str(path.resolve())
        return av.open(name, mode="r", container_options=dict(_OPEN_OPTIONS), **_TOLERANT)
    except av.error.PermissionError as error:
        raise PruneVidError(f"{path}: no permission to read this file") from error
    except av.error.FFmpegError as error:
        if path.stat().st_size == 0:
            raise PruneVidError(f"{path}: the file is empty") from error
        raise PruneVidError(
            f"{path}: this is not a video that can be read: another kind of file, or one cut off in its "
            "header; give a video file such as MP4, MKV, WebM, AVI or TS"
        ) from error


def video_stream(container: Any, path: Path) -> Any:
    """The container's first video stream that is not a cover picture, set up for decoding.

    Raises:
        PruneVidError: There is none (sound only), or no decoder for it.
    """
    streams = [stream for stream in container.streams.video if not _is_cover_picture(stream)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams} - {"video"})
        what = f"only {' and '.join(kinds)}" if kinds else "no streams"
        raise PruneVidError(f"{path}: there is no video in this file ({what}); give a file with a picture")
    stream = streams[0]
    if stream.codec_context is None:
        raise PruneVidError(f"{path}: no decoder is available for this video's codec; convert it to H.264")
    stream.thread_type = "AUTO"
    # Dimensions may change in the middle of a file, after they were checked.
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return stream


def _is_cover_picture(stream: Any) -> bool:
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and bool(disposition & type(disposition).attached_pic)


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Packets of a stream up to the end of the file, stepping over places where the container is damaged.

    The last one is empty: decoding it drains the decoder.
    """
    for _ in range(_MAX_DEMUX_ERRORS):
        try:
            yield from container.demux(stream)
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            continue


def targets_by_rate(container: Any, stream: Any, count: int, trusted: bool) -> Targets | None:
    """Targets computed from the frame rate, where it is provably constant or `trusted`."""
    rate, frames = stream.average_rate, stream.frames
    seconds = _duration(container, stream)
    if not rate or not seconds:
        return None
    constant = rate == stream.base_rate and frames > 0 and frames == round(seconds * rate)
    # AVI has no times of display and an MPEG program stream few: what packets carry may be some frames off.
    constant &= container.format.name not in ("avi", "mpeg")
    if not constant and not trusted:
        return None
    start = next((packet.pts for packet in packets_of(container, stream) if packet.is_keyframe), None)
    if start is None:
        return None
    total = frames if frames > 0 else max(1, round(seconds * rate))
    step = (1 / rate if constant else seconds / total) / stream.time_base
    pts = [start + round(int(index) * step) for index in sample_indices(total, count)]
    return Targets(pts, slack=int(step / 2), exact=constant)


def _duration(container: Any, stream: Any) -> Fraction | None:
    """Seconds; None where the file does not say."""
    if stream.duration is not None and stream.duration > 0:
        return Fraction(stream.duration * stream.time_base)
    if container.duration is not None and container.duration > 0:
        return Fraction(container.duration, av.time_base)
    return None


def targets_by_packets(container: Any, stream: Any, count: int, path: Path) -> Targets:
    """Targets taken from the timestamps of all packets of a file just opened; they are read but not decoded.

    Raises:
        PruneVidError: There are no packets.
        UnusableTimestampsError: They have no timestamps, or none that rise.
    """
    stamps: list[int] = []
    keys: list[int] = []
    packets, last_dts, ordered = 0, None, True
    for packet in packets_of(container, stream):
        if packet.size == 0 or packet.is_discard:
            continue
        packets += 1
        if packet.dts is not None:
            ordered &= last_dts is None or packet.dts >= last_dts
            last_dts = packet.dts
        if packet.pts is not None:
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not packets:
        raise PruneVidError(f"{path}: the video has no frames; it is empty or cut off after its header")
    # The second field of an interlaced frame is a packet of its own without a timestamp: half is enough.
    if 2 * len(stamps) < packets or not ordered or any(b <= a for a, b in zip(keys, keys[1:], strict=False)):
        raise UnusableTimestampsError
    # AVI has decoding times only; where the parser made no times of display of them, they rise steadily.
    if container.format.name == "avi" and stream.codec_context.has_b_frames and stamps == sorted(stamps):
        raise UnusableTimestampsError
    # What is shown before the first key frame cannot be decoded.
    shown = sorted({stamp for stamp in stamps if not keys or stamp >= keys[0]})
    pts = [shown[index] for index in sample_indices(len(shown), count)]
    return Targets(pts, slack=0, exact=True, keys=keys)
