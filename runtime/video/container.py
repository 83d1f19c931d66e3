"""Opening a video file, choosing what to show of it, and reading its packets.

A video is untrusted input. Formats that refer to other files or to addresses (playlists) are refused, and the
decoder is told how large a frame may become.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from prunevid.errors import PruneVidError
from prunevid.runtime.video.frames import MAX_FRAME_PIXELS, check_dimensions

__all__ = ["LARGE_FRAME_PIXELS", "OpenVideo", "choose_stream", "open_video", "packets_of", "seconds_of"]

# Containers and raw streams only. ffmpeg would also open playlists, which name other files and addresses, and
# would show a plain text file as a film of text.
_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,obu,ivf,flv,asf,ogg,nut,mxf,gxf,dv,rm,wtv,mjpeg,"
    "yuv4mpegpipe,gif,apng,mp3,wav,flac,aac"
)
_OPEN_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
# Places in a row where the container is damaged.
_MAX_DEMUX_ERRORS = 100
# Read to find out which of several tracks move.
_PEEK_BYTES = 64 * 2**20
# Titles need not be UTF-8. From PyAV 19 on that is never an error, and there is no such option.
_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


LARGE_FRAME_PIXELS = 2**24
"""Frames of more pixels are handled one by one: decoding in parallel keeps one for every thread."""


@dataclass(frozen=True)
class OpenVideo:
    """A file that is open for reading, and the stream of it that is shown.

    Attributes:
        path: The file.
        container: PyAV's input container.
        stream: The video stream, set up for decoding.
        time_base: Seconds of one tick of the stream's timestamps.
    """

    path: Path
    container: Any
    stream: Any
    time_base: Fraction

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    @property
    def format(self) -> str:
        """The container's format, as ffmpeg names it; of several names, the first."""
        return str(self.container.format.name).split(",")[0]

    def packets(self) -> Iterator[Any]:
        """The stream's packets, as `packets_of` reads them."""
        return packets_of(self.container, self.stream)


def open_video(path: Path, index: int) -> OpenVideo:
    """Opens an existing file to decode the stream of this index, which `choose_stream` found.

    Raises:
        PruneVidError: As `choose_stream` does.
    """
    container = _open(path)
    try:
        return OpenVideo(path, container, *_prepare(container.streams[index], path))
    except BaseException:
        container.close()
        raise


def _open(path: Path) -> Any:
    try:
        # A name may look like a protocol ("concat:..."); an absolute path never does.
        return _open_name(str(path.resolve()))
    except av.error.PermissionError as error:
        raise PruneVidError(f"{path}: no permission to read this file") from error
    except (av.error.FFmpegError, ValueError) as error:  # the latter of names that are not Unicode
        if path.stat().st_size == 0:
            raise PruneVidError(f"{path}: the file is empty") from error
        # FFmpeg goes by the name too, where it is not quite sure of the content.
        with tempfile.TemporaryDirectory() as folder, suppress(av.error.FFmpegError, OSError, ValueError):
            nameless = Path(folder, "video")
            nameless.symlink_to(path.resolve())
            return _open_name(str(nameless))
        raise PruneVidError(
            f"{path}: this is not a video that can be read: another kind of file, or one cut off in its "
            "header; give a video file such as MP4, MKV, WebM, AVI or TS"
        ) from error


def _open_name(name: str) -> Any:
    return av.open(name, mode="r", container_options=dict(_OPEN_OPTIONS), **_TOLERANT)


def _prepare(stream: Any, path: Path) -> tuple[Any, Fraction]:
    """The stream, set up for decoding, and its time base."""
    if stream.codec_context is None:
        raise PruneVidError(f"{path}: no decoder is available for this video's codec; convert it to H.264")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width and height:  # else unknown before the first frame is decoded
        check_dimensions(width, height, str(path))
    stream.thread_type = "AUTO" if width * height <= LARGE_FRAME_PIXELS else "SLICE"
    # Dimensions may change in the middle of a file, after they were checked.
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return stream, Fraction(stream.time_base.numerator, stream.time_base.denominator)


def choose_stream(path: Path) -> int:
    """Index of the video stream to show.

    Pictures beside the film (covers, thumbnails, stills) come last, as do streams of a single frame; then the
    stream that is marked default comes first, then the larger picture, then the first.

    Raises:
        PruneVidError: The file is empty, may not be read, is not a video, or has no video (sound only).
    """
    with _open(path) as container:
        streams = [stream for stream in container.streams.video if not _marked(stream, "attached_pic")]
        if not streams:
            kinds = sorted({stream.type for stream in container.streams} - {"video"})
            what = f"only {' and '.join(kinds)}" if kinds else "no streams"
            raise PruneVidError(f"{path}: there is no video in this file ({what}); give a file with a picture")
        if len(streams) == 1:
            return int(streams[0].index)
        packets = _count_packets(container, streams)

        def rank(stream: Any) -> tuple[bool, bool, bool, bool, int, int]:
            context = stream.codec_context
            return (
                not _marked(stream, "still_image", "timed_thumbnails", "dependent", "metadata"),
                packets[stream.index] > 1,
                packets[stream.index] > 0,
                _marked(stream, "default"),
                context.width * context.height if context is not None else 0,
                -stream.index,
            )

        return int(max(streams, key=rank).index)


def _marked(stream: Any, *names: str) -> bool:
    """Whether one of these dispositions is set; older versions of PyAV and ffmpeg do not know all of them."""
    known = type(stream.disposition)
    return any(bool(stream.disposition & getattr(known, name)) for name in names if hasattr(known, name))


def _count_packets(container: Any, streams: list[Any]) -> Counter[int]:
    """How many packets each stream has, up to two; those of a stream that begins late may not be seen."""
    found: Counter[int] = Counter()
    read = 0
    for packet in packets_of(container, *streams):
        found[packet.stream_index] += packet.size > 0
        read += packet.size
        if read > _PEEK_BYTES or all(found[stream.index] > 1 for stream in streams):
            break
    return found


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of streams up to the end of the file, stepping over places where the container is damaged.

    A stream's last one is empty: decoding it drains the decoder.
    """
    errors = 0
    while errors < _MAX_DEMUX_ERRORS:
        try:
            for packet in container.demux(*streams):
                errors = 0
                yield packet
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            errors += 1


def seconds_of(container: Any, stream: Any) -> Fraction | None:
    """How long the stream lasts, or the file; None where neither says."""
    if stream.duration is not None and stream.duration > 0:
        return Fraction(stream.duration * Fraction(stream.time_base.numerator, stream.time_base.denominator))
    if container.duration is not None and container.duration > 0:
        return Fraction(container.duration, av.time_base)
    return None
