"""The frames of a file are those that ffmpeg shows of it: edit lists, turns and mirrors, tracks, joined recordings."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ffmpeg import ffmpeg, shown
from mp4 import set_edits, set_matrix
from videos import numbered_frame, read_number, write_video

from prunevid.errors import PruneVidError
from prunevid.runtime.video.file import read_video_file
from prunevid.runtime.video.frames import sample_indices
from prunevid.runtime.video.sources import read_frames

pytestmark = pytest.mark.skipif("libx264" not in av.codecs_available, reason="needs libx264 in PyAV")

LONG_GROUPS = {"gop": 250, "options": {"sc_threshold": "0"}}
ALWAYS, NEVER = 2**40, 0
"""Scan limits: packets are listed; they are listed where nothing else says which frame is which."""


def assert_as_shown(path: Path, stream: str = "0:v:0", limits: tuple[int, ...] = (ALWAYS, NEVER)) -> list[int]:
    """Holds few, some and all frames against ffmpeg's; returns the numbers of all."""
    images, times = shown(path, stream)
    numbers = [read_number(image) for image in images]
    for limit in limits:
        for count in (1, 2, 7, 1000):
            sampled = read_video_file(path, count, limit)
            chosen = sample_indices(len(images), count)
            assert [read_number(image) for image in sampled.frames] == [numbers[index] for index in chosen]
            assert sampled.skipped == 0
            if np.all(np.diff(times) > 0):  # else ffmpeg's clock starts anew in the middle
                np.testing.assert_allclose(sampled.timestamps_s, (times - times[0])[chosen], atol=0.002)
    return numbers


@pytest.fixture(scope="module", params=[0, 2], ids=["no-b-frames", "b-frames"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds in two groups of pictures, with sound; tests must not change it."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, 250, bframes=request.param, audio_seconds=10, gop=125, options={"sc_threshold": "0"})


# Edit lists


def test_a_clip_trimmed_without_encoding_begins_where_it_was_cut(tmp_path: Path) -> None:
    source = write_video(tmp_path / "12s.mp4", 300, **LONG_GROUPS)  # type: ignore[arg-type]
    ffmpeg("-ss", 1, "-i", source, "-c", "copy", tmp_path / "cut.mp4")
    sampled = read_frames(tmp_path / "cut.mp4", 16)
    assert [read_number(image) for image in sampled.frames] == (25 + sample_indices(275, 16)).tolist()


@pytest.mark.parametrize("file", ["cut.mp4", "cut.mov", "cut.mkv", "cut.ts"])
@pytest.mark.parametrize(("start", "seconds"), [(1, 20), (2.34, 1.5), (6, 3)])
def test_trimmed_clips(clip: Path, file: str, start: float, seconds: float, tmp_path: Path) -> None:
    ffmpeg("-ss", start, "-i", clip, "-t", seconds, "-c", "copy", tmp_path / file)
    numbers = assert_as_shown(tmp_path / file)
    assert numbers == sorted(set(numbers))
    if file in ("cut.mp4", "cut.mov"):
        assert numbers[0] == math.ceil(start * 25)


@pytest.mark.parametrize(
    "edits",
    [
        [(2, 1.0)],
        [(1, -1), (2, 1.0)],  # shown a second late
        [(1, 0), (1, 6.0)],
        [(1, 6.0), (1, 1.0)],
        [(1, 0), (1, -1), (1, 6.0)],
        [(1, 1.0), (1, 1.0)],
        [(20, 2.5)],
        [(1, 9.9)],
    ],
)
def test_edit_lists(clip: Path, edits: list[tuple[float, float]], tmp_path: Path) -> None:
    path = set_edits(Path(shutil.copy(clip, tmp_path / "a.mp4")), edits)
    images, _ = shown(path)
    numbers = [read_number(image) for image in images]
    for limit in (ALWAYS, NEVER):
        for count in (1, 5, 1000):
            sampled = read_video_file(path, count, limit)
            chosen = sample_indices(len(numbers), count)
            assert [read_number(image) for image in sampled.frames] == [numbers[index] for index in chosen]
            assert np.all(np.diff(sampled.timestamps_s) > 0)


def test_an_edit_list_that_shows_nothing_is_refused(clip: Path, tmp_path: Path) -> None:
    path = set_edits(Path(shutil.copy(clip, tmp_path / "a.mp4")), [(1, 30)])
    assert len(shown(path)[0]) == 0
    with pytest.raises(PruneVidError, match="shows no frame"):
        read_frames(path, 4)


def test_sound_and_picture_cut_at_different_places(clip: Path, tmp_path: Path) -> None:
    ffmpeg(
        *("-ss", 1.3, "-i", clip, "-ss", 2, "-i", clip, "-map", "0:v", "-map", "1:a"),
        *("-c", "copy", "-t", 3, tmp_path / "a.mp4"),
    )
    ffmpeg("-itsoffset", 1.5, "-i", clip, "-i", clip, "-map", "0:v", "-map", "1:a", "-c", "copy", tmp_path / "late.mp4")
    assert_as_shown(tmp_path / "a.mp4")
    assert_as_shown(tmp_path / "late.mp4")


# Turns and mirrors

MATRICES = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "half-turn": (-1, 0, 0, -1),
    "quarter-turn": (0, 1, -1, 0),
    "quarter-turn-back": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed-the-other-way": (0, -1, -1, 0),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("file", ["a.mp4", "a.mov"])
def test_display_matrices(name: str, file: str, tmp_path: Path) -> None:
    path = set_matrix(write_video(tmp_path / file, 5, size=(32, 64)), *MATRICES[name])
    images, _ = shown(path)
    frames = read_frames(path, 5).frames
    assert frames.shape == images.shape
    assert np.abs(frames.astype(int) - images).mean() < 3  # ffmpeg's arithmetic of colours differs a little


def test_a_trimmed_clip_that_is_turned(clip: Path, tmp_path: Path) -> None:
    set_matrix(Path(shutil.copy(clip, tmp_path / "turned.mp4")), 0, 1, -1, 0)
    ffmpeg("-ss", 1, "-i", tmp_path / "turned.mp4", "-c", "copy", tmp_path / "cut.mp4")
    images, _ = shown(tmp_path / "cut.mp4")
    frames = read_frames(tmp_path / "cut.mp4", 1000).frames
    assert len(frames) == 225
    assert frames.shape == images.shape
    assert read_number(np.rot90(frames[0])) == 25
    assert np.abs(frames.astype(int) - images).mean() < 3


def test_an_odd_angle_is_refused_and_no_matrix_at_all_is_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 5)
    set_matrix(path, 0.8, 0.6, -0.6, 0.8)
    with pytest.raises(PruneVidError, match=r"turned by 37 degrees; only quarter turns"):
        read_frames(path, 2)
    set_matrix(path, 0, 0, 0, 0)
    assert read_number(read_frames(path, 1).frames[0]) == 0


# Tracks


def _tracks(path: Path, *tracks: tuple[int, int, int, str]) -> Path:
    """A file of several video tracks: the number of the first frame, how many frames, side, disposition."""
    inputs: list[Any] = []
    maps: list[Any] = []
    for index, (first, count, side, disposition) in enumerate(tracks):
        part = path.with_name(f"part{index}.mp4")
        write_video(part, [numbered_frame(first + i, side, side) for i in range(count)])
        inputs += ["-i", part]
        maps += ["-map", f"{index}:v", f"-disposition:v:{index}", disposition]
    ffmpeg(*inputs, *maps, "-c", "copy", path)
    return path


@pytest.mark.parametrize("file", ["a.mkv", "a.mp4", "a.mov"])
@pytest.mark.parametrize(
    ("tracks", "expected"),
    [
        ([(0, 20, 64, "default"), (1000, 20, 64, "0")], 0),
        ([(0, 20, 64, "0"), (1000, 20, 64, "default")], 1),
        ([(0, 1, 64, "default"), (1000, 20, 64, "0")], 1),  # a still
        ([(0, 1, 256, "default"), (1000, 20, 64, "default")], 1),
        ([(0, 20, 64, "0"), (1000, 20, 128, "0")], 1),
        ([(0, 20, 64, "default"), (1000, 20, 128, "default")], 1),
        ([(0, 20, 128, "default"), (1000, 20, 64, "default"), (2000, 20, 64, "0")], 0),
        ([(0, 20, 64, "0"), (1000, 20, 64, "0")], 0),
    ],
)
def test_the_track_to_show(file: str, tracks: list[tuple[int, int, int, str]], expected: int, tmp_path: Path) -> None:
    path = _tracks(tmp_path / file, *tracks)
    with av.open(str(path)) as container:
        marked = [bool(s.disposition & av.stream.Disposition.default) for s in container.streams.video]
    if marked != [track[3] == "default" for track in tracks]:
        pytest.skip("this container marks tracks in its own way")
    assert read_number(read_frames(path, 4).frames[0]) == tracks[expected][0]


@pytest.mark.parametrize("mark", ["still_image", "timed_thumbnails", "attached_pic"])
def test_pictures_beside_the_film_are_not_shown(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunevid.runtime.video import container

    path = _tracks(tmp_path / "a.mkv", (0, 20, 128, "default"), (1000, 20, 64, "0"))
    # No muxer stores all of these marks: they are given here as the demuxer gives them.
    real = container._marked
    monkeypatch.setattr(
        container,
        "_marked",
        lambda stream, *names: (stream.index == 0 and mark in names) or real(stream, *names),
    )
    assert read_number(read_frames(path, 4).frames[0]) == 1000


# What was sampled, and what exists


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("ts", "libx264"), ("webm", "libvpx"), ("mkv", "libx264"), ("vob", "mpeg2video"), ("h264", "libx264")],
)
def test_joined_recordings_are_read_to_the_end(suffix: str, codec: str, tmp_path: Path) -> None:
    frames, bframes = [numbered_frame(i) for i in range(100)], 0 if codec == "libvpx" else 2
    parts = [
        write_video(tmp_path / f"{begin}.{suffix}", frames[begin:end], codec=codec, gop=15, bframes=bframes)
        for begin, end in ((0, 60), (60, 100))
    ]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert assert_as_shown(path) == list(range(100))


@pytest.mark.parametrize("begin", [41, 55, 90, 600])
def test_clocks_that_jump_or_overlap(begin: int, tmp_path: Path) -> None:
    first = write_video(tmp_path / "1.ts", 60, gop=15, bframes=2)
    images = [numbered_frame(60 + i) for i in range(40)]
    second = write_video(tmp_path / "2.ts", images, gop=15, bframes=2, pts=list(range(begin, begin + 40)))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert [read_number(image) for image in shown(path)[0]] == list(range(100))
    for limit in (ALWAYS, NEVER):
        for count in (3, 16, 200):
            sampled = read_video_file(path, count, limit)
            assert [read_number(image) for image in sampled.frames] == sample_indices(100, count).tolist()
            assert np.all(np.diff(sampled.timestamps_s) > 0)


def test_segments_of_a_stream_put_together(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", 100, gop=25, bframes=2)
    ffmpeg("-i", source, "-c", "copy", "-f", "segment", "-segment_time", 1, tmp_path / "part%03d.ts")
    parts = sorted(tmp_path.glob("part*.ts"))
    assert len(parts) == 4
    (tmp_path / "all.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert assert_as_shown(tmp_path / "all.ts") == list(range(100))


@pytest.mark.parametrize("without", [1, 2, 5, 30])
def test_first_packets_without_timestamps(without: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", 60, gop=15)
    data = bytearray(path.read_bytes())
    cleared = 0
    for at in range(0, len(data), 188):
        start = data.find(b"\x00\x00\x01\xe0", at + 4, at + 188)
        if data[at + 1] & 0x40 and start >= 0 and cleared < without:
            data[start + 7] &= 0x3F
            cleared += 1
    path.write_bytes(data)
    assert [read_number(image) for image in shown(path)[0]] == list(range(60))
    for limit in (ALWAYS, NEVER):
        for count in (1, 8, 100):
            sampled = read_video_file(path, count, limit)
            assert [read_number(image) for image in sampled.frames] == sample_indices(60, count).tolist()


CONTAINERS: dict[str, tuple[Any, ...]] = {
    "a.dv": ("-c:v", "dvvideo", "-s", "720x576"),
    "a.vob": ("-c:v", "mpeg2video", "-bf", 2, "-g", 12),
    "a.mpg": ("-c:v", "mpeg2video", "-g", 12),
    "a.flv": ("-c:v", "copy"),
    "a.nut": ("-c:v", "copy"),
    "b.nut": ("-c:v", "mpeg4", "-bf", 2),
    "a.avi": ("-c:v", "mpeg4", "-bf", 2),
    "b.avi": ("-c:v", "mjpeg"),
    "a.asf": ("-c:v", "wmv2"),
    "a.webm": ("-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16, "-b:v", "200k"),
    "live.webm": ("-c:v", "libvpx", "-live", 1),
    "fragments.mp4": ("-c:v", "copy", "-movflags", "frag_keyframe+empty_moov"),
    "interlaced.ts": ("-c:v", "mpeg2video", "-flags", "+ilme+ildct"),
    "palette.mov": ("-c:v", "qtrle", "-pix_fmt", "pal8"),
    "a.gif": (),
    "a.apng": ("-f", "apng"),
    "a.y4m": (),
}


@pytest.mark.parametrize("file", CONTAINERS)
def test_every_container_above_the_scan_limit(file: str, tmp_path: Path) -> None:
    source = write_video(tmp_path / "source.mp4", 75 if file != "a.dv" else 20, gop=25, bframes=2, size=(96, 96))
    ffmpeg("-i", source, *CONTAINERS[file], tmp_path / file)
    assert len(assert_as_shown(tmp_path / file, limits=(NEVER,))) >= 20


@pytest.mark.parametrize("format_", ["gray16le", "gray10le", "yuv420p10le", "yuv444p", "bgr0"])
def test_pixel_formats(format_: str, tmp_path: Path) -> None:
    images = np.stack([numbered_frame(i, 64, 64) for i in range(6)])
    raw = tmp_path / "raw"
    raw.write_bytes(images.tobytes())
    options = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-i", raw)
    ffmpeg(*options, "-c:v", "ffv1", "-strict", -2, "-pix_fmt", format_, tmp_path / "a.nut")
    expected, _ = shown(tmp_path / "a.nut")
    frames = read_frames(tmp_path / "a.nut", 6).frames
    assert [read_number(image) for image in frames] == list(range(6))
    assert np.abs(frames.astype(int) - expected).mean() < 4


def test_raw_pictures_of_a_sensor(tmp_path: Path) -> None:
    images = np.stack([numbered_frame(i, 64, 64) for i in range(6)])
    mosaic = np.empty((6, 64, 64), np.uint8)
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[:, row::2, column::2] = images[:, row::2, column::2, channel]
    (tmp_path / "raw").write_bytes(mosaic.tobytes())
    options = ("-f", "rawvideo", "-pix_fmt", "bayer_rggb8", "-s", "64x64", "-i", tmp_path / "raw")
    ffmpeg(*options, "-c:v", "copy", tmp_path / "a.nut")
    assert assert_as_shown(tmp_path / "a.nut") == list(range(6))
