"""Frames from real files: exact, cheap on long films, and clear errors for what cannot be read."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from videos import decode_all, h264, numbered_frame, read_number, write_audio, write_film, write_video

from prunevid.errors import PruneVidError
from prunevid.runtime.video import container, frames
from prunevid.runtime.video.file import read_video_file
from prunevid.runtime.video.sources import read_frames, sample_indices

X264 = pytest.mark.skipif("libx264" not in av.codecs_available, reason="needs libx264 in PyAV")

# Irregular: as fast as 100 frames a second and as slow as 10, starting after 1.7 s.
VARIABLE = [50_000 + int(x) for x in np.cumsum(np.random.default_rng(0).choice([300, 700, 3000], 60))]
IRREGULAR = {"pts": VARIABLE, "time_base": Fraction(1, 30000)}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4-b-frames": ("a.mp4", {"bframes": 3, "gop": 30}),
    "mp4-open-gop": ("a.mp4", {"bframes": 2, "gop": 15, "options": {"x264-params": "open-gop=1"}}),
    "mp4-intra-refresh": ("a.mp4", {"gop": 15, "options": {"x264-params": "intra-refresh=1"}}),
    "mp4-fragmented": (
        "a.mp4",
        {"bframes": 2, "container_options": FRAGMENTS},
    ),
    "mp4-without-edit-list": ("a.mp4", {"bframes": 2, "container_options": {"use_editlist": "0"}}),
    "mp4-variable-rate": (
        "a.mp4",
        {"bframes": 3, "gop": 30, "pts": VARIABLE, "time_base": Fraction(1, 30000)},
    ),
    "mkv-variable-rate": (
        "a.mkv",
        {"bframes": 3, "gop": 30, "pts": VARIABLE, "time_base": Fraction(1, 30000)},
    ),
    "mp4-late-start": ("a.mp4", {"pts": [i + 100 for i in range(60)], "bframes": 2}),
    "mkv-no-count": ("a.mkv", {"bframes": 3, "gop": 30}),
    "ts-no-count-late-start": ("a.ts", {"bframes": 3, "gop": 30}),
    "ts-intra-refresh": ("a.ts", {"gop": 15, "options": {"x264-params": "intra-refresh=1"}}),
    "avi-without-display-times": ("a.avi", {"bframes": 2, "gop": 30}),
    "avi-mpeg4": ("a.avi", {"codec": "mpeg4", "bframes": 2}),
    "avi-mjpeg": ("a.avi", {"codec": "mjpeg"}),
    "mpeg-program-stream": ("a.mpg", {"codec": "mpeg2video", "bframes": 2, "gop": 15}),
    "raw-h264-no-timestamps": ("a.h264", {"bframes": 2, "gop": 30}),
    "raw-mpeg2": ("a.m2v", {"codec": "mpeg2video", "bframes": 2, "gop": 15}),
    "flv": ("a.flv", {"bframes": 2}),
    "hevc": (
        "a.mp4",
        {"codec": "libx265", "options": {"preset": "fast", "x265-params": "keyint=15:log-level=none"}},
    ),
}


@pytest.mark.parametrize("count", [1, 7, 32, 100])
@pytest.mark.parametrize("source", SOURCES)
@X264
def test_frames_equal_those_of_a_full_decode(source: str, count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, everything = _source(source, tmp_path_factory)
    assert [read_number(image) for image in everything] == list(range(60))
    sampled = read_frames(path, count)
    expected = np.linspace(0, 59, min(count, 60)).astype(int)
    assert [read_number(image) for image in sampled.frames] == expected.tolist()
    np.testing.assert_array_equal(sampled.frames, everything[expected])
    assert sampled.skipped == 0
    assert sampled.source == str(path)


def _source(name: str, factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file and all its frames, made once for all counts."""
    if name not in _written:
        file, arguments = SOURCES[name]
        if arguments.get("codec") == "libx265" and "libx265" not in av.codecs_available:
            pytest.skip("needs libx265 in PyAV")
        size = (128, 128) if arguments.get("codec") == "libx265" else (64, 64)
        path = write_video(factory.mktemp(name) / file, 60, size=size, **arguments)
        _written[name] = path, decode_all(path)[0]
    return _written[name]


_written: dict[str, tuple[Path, np.ndarray]] = {}


def test_timestamps_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 60, pts=VARIABLE, time_base=Fraction(1, 30000))
    seconds = (np.array(VARIABLE) - VARIABLE[0]) / 30000
    np.testing.assert_allclose(read_frames(path, 60).timestamps_s, seconds, atol=0.001)
    path = write_video(tmp_path / "b.h264", 50, fps=10)
    np.testing.assert_allclose(read_frames(path, 50).timestamps_s, np.arange(50) / 10)


@pytest.mark.parametrize("file", ["film.mp4", "film.mkv"])
def test_a_film_of_two_hours_costs_what_its_frames_cost(file: str, tmp_path: Path) -> None:
    total = write_film(tmp_path / file, seconds=7200)
    assert total == 172_800
    sampled = read_frames(tmp_path / file, 32)
    indices = sample_indices(total, 32)
    assert [read_number(image) for image in sampled.frames] == [int(i) % 240 for i in indices]
    np.testing.assert_allclose(sampled.timestamps_s, indices / 24, atol=0.001)
    # At most one group of pictures of 240 frames for each.
    assert sampled.decoded <= 32 * 240
    # A file too large to have its packets listed is read without; Matroska's rate may be a little off then.
    trusted = read_video_file(tmp_path / file, 32, scan_limit=0)
    np.testing.assert_allclose(trusted.timestamps_s, sampled.timestamps_s, atol=1.05 / 24)
    assert trusted.decoded <= 32 * 240
    if file == "film.mp4":
        np.testing.assert_array_equal(trusted.frames, sampled.frames)


def test_neighbouring_targets_are_decoded_in_one_go(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 120, gop=60, bframes=2)
    assert read_frames(path, 120).decoded == 120
    assert read_frames(path, 40).decoded <= 120
    # Two frames, each in its own group: the rest of the first group is not decoded.
    assert read_frames(path, 2).decoded <= 1 + 60


def test_a_large_file_of_variable_rate_is_spread_over_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 60, pts=VARIABLE, time_base=Fraction(1, 30000), gop=10)
    sampled = read_video_file(path, 5, scan_limit=0)
    assert len(sampled.frames) == 5
    assert np.all(np.diff(sampled.timestamps_s) > 0)
    assert sampled.timestamps_s[0] == 0


def test_a_large_file_whose_sound_is_longer_is_spread_over_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 20, audio_seconds=5.0)
    sampled = read_video_file(path, 4, scan_limit=0)
    assert [read_number(image) for image in sampled.frames] == [0, 6, 12, 19]


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv"])
def test_rotation_is_applied(file: str, tmp_path: Path) -> None:
    flat = write_video(tmp_path / f"flat-{file}", 5, size=(32, 64))
    turned = write_video(tmp_path / f"turned-{file}", 5, size=(32, 64), rotation=90)
    frames = read_frames(turned, 5).frames
    assert frames.shape == (5, 64, 32, 3)
    np.testing.assert_array_equal(frames, np.rot90(read_frames(flat, 5).frames, axes=(1, 2)))


@X264
@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.ts"])
def test_damage_in_the_middle_is_not_fatal(file: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / file, 90, gop=30, bframes=2)
    data = bytearray(path.read_bytes())
    start, end = int(len(data) * 0.40), int(len(data) * 0.50)
    data[start:end] = np.random.default_rng(0).bytes(end - start)
    path.write_bytes(data)
    sampled = read_frames(path, 10)
    assert 8 <= len(sampled.frames) <= 10
    numbers = [read_number(image) for image in sampled.frames]
    # What lies in front of the damage and in groups of pictures behind it is whole.
    assert numbers[0] == 0
    assert numbers[-1] == 89
    assert np.all(np.diff(sampled.timestamps_s) > 0)
    if file == "a.mp4":  # the others lose the packets themselves
        assert sampled.skipped > 0


@X264
def test_a_damaged_frame_gives_way_to_the_next(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20, gop=1)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = places[9]
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    sampled = read_frames(path, 3)  # frames 0, 9, 19
    assert [read_number(image) for image in sampled.frames] == [0, 10, 19]
    assert sampled.skipped == 1
    everything = read_frames(path, 20)
    assert [read_number(image) for image in everything.frames] == [i for i in range(20) if i != 9]


def test_lost_transport_packets_are_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", 60, gop=30, size=(256, 256), options={"crf": "5"})
    data = path.read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    middle = len(packets) // 2
    path.write_bytes(b"".join(packets[:middle] + packets[middle + 2 :]))
    sampled = read_frames(path, 60)
    assert 1 <= sampled.skipped <= 4
    assert 56 <= len(sampled.frames) < 60


@pytest.mark.parametrize("file", ["a.mkv", "a.ts", "a.mp4"])
@pytest.mark.parametrize("scan_limit", [2**30, 0])
def test_a_truncated_file_gives_what_it_has(file: str, scan_limit: int, tmp_path: Path) -> None:
    # The header of an MP4 comes last unless asked otherwise: without it, there is nothing to read.
    options = {"movflags": "+faststart"} if file == "a.mp4" else {}
    path = write_video(tmp_path / file, 90, gop=30, bframes=2, container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    sampled = read_video_file(path, 10, scan_limit)
    numbers = [read_number(image) for image in sampled.frames]
    assert len(numbers) >= 8
    assert numbers[:4] == sorted(numbers[:4])
    assert max(numbers[:8]) < 70


def test_a_change_of_resolution_keeps_the_first(tmp_path: Path) -> None:
    first = write_video(tmp_path / "1.ts", 20, size=(64, 64))
    second = write_video(tmp_path / "2.ts", 20, size=(128, 96))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    sampled = read_frames(path, 8)
    assert sampled.frames.shape == (8, 64, 64, 3)
    assert [read_number(image) for image in sampled.frames[:4]] == sorted(
        read_number(image) for image in sampled.frames[:4]
    )


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    image = tmp_path / "cover.jpg"
    Image.fromarray(numbered_frame(1)).save(image)
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3", rate=16000)
        cover = container.add_stream("mjpeg")
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(numbered_frame(1), format="rgb24").reformat(format="yuvj420p")
        container.mux(cover.encode(picture))
        container.mux(cover.encode(None))
        for index in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 576), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, index * 576
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(PruneVidError, match="no video in this file"):
        read_frames(path, 4)


def test_a_title_that_is_not_utf_8_is_no_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 5, title="caf00e")
    path.write_bytes(path.read_bytes().replace(b"caf00e", b"caf\xe9\xff\xfe"))
    assert [read_number(image) for image in read_frames(path, 5).frames] == [0, 1, 2, 3, 4]


def _text(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("not a video\n" * 100)
    return path


def _playlist(folder: Path) -> Path:
    write_video(folder / "a.ts", 5)
    path = folder / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9.0,\na.ts\n#EXT-X-ENDLIST\n")
    return path


def _concat_list(folder: Path) -> Path:
    write_video(folder / "a.ts", 5)
    path = folder / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile a.ts\n")
    return path


def _head(folder: Path) -> Path:
    path = write_video(folder / "a.mp4", 30)
    path.write_bytes(path.read_bytes()[:1000])
    return path


def _empty(folder: Path) -> Path:
    path = folder / "a.mp4"
    path.write_bytes(b"")
    return path


def _no_frames(folder: Path) -> Path:
    return write_video(folder / "a.mp4", 0, container_options={"movflags": "empty_moov"})


def _folder(folder: Path) -> Path:
    (folder / "readme.txt").write_text("hello")
    return folder


def _all_zero(folder: Path) -> Path:
    path = write_video(folder / "a.mp4", 20, gop=1)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "gone.mp4", "no such file"),
        (lambda folder: "a" * 5000, "cannot be opened"),
        (lambda folder: "a\0b.mp4", "no such file|cannot be opened"),
        (_text, "not a video"),
        (_playlist, "not a video"),
        (_concat_list, "not a video"),
        (_head, "not a video"),
        (_empty, "empty"),
        (_no_frames, "no frames"),
        (_all_zero, "no frame of this video can be decoded"),
        (_folder, "no images"),
        (lambda folder: write_audio(folder / "a.m4a"), r"no video in this file \(only audio\)"),
        (lambda folder: 7, "must be a path or a uint8 array"),
        (lambda folder: "/dev/null", "neither a file nor a folder"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(make, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PruneVidError, match=message) as error:
        read_frames(make(tmp_path), 8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, -1, True, 2.0, None])
def test_count_must_be_positive(count: object) -> None:
    with pytest.raises(PruneVidError, match="number of frames"):
        read_frames(np.zeros((3, 4, 4, 3), np.uint8), count)  # type: ignore[arg-type]


def test_absurd_dimensions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 5, size=(64, 96))
    image = tmp_path / "images" / "1.png"
    image.parent.mkdir()
    Image.fromarray(numbered_frame(1, 64, 96)).save(image)
    array = np.zeros((2, 64, 96, 3), np.uint8)
    for name, value in (("MAX_SIDE", 80), ("MAX_FRAME_PIXELS", 5000), ("MAX_TOTAL_PIXELS", 6143)):
        with monkeypatch.context() as patch:
            patch.setattr(frames, name, value)
            for source in (path, image.parent, image):
                with pytest.raises(PruneVidError, match="96 x 64"):
                    read_frames(source, 5)
            if name != "MAX_TOTAL_PIXELS":  # an array is in memory already
                with pytest.raises(PruneVidError, match="96 x 64"):
                    read_frames(array, 5)
    with pytest.raises(PruneVidError, match="0 x 64"):
        read_frames(np.zeros((2, 64, 0, 3), np.uint8), 5)


def test_the_decoder_is_told_the_largest_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FRAME_PIXELS", 100)
    path = write_video(tmp_path / "a.mp4", 5)
    with pytest.raises(PruneVidError, match="no frame of this video can be decoded"):
        read_frames(path, 5)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_escapes_as_another_error(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    file = ["a.mp4", "a.mkv", "a.ts", "a.avi"][seed % 4]
    path = write_video(tmp_path / file, 30, gop=10, bframes=2, codec=h264())
    data = bytearray(path.read_bytes())
    for position in random.integers(0, len(data), 60):
        data[position] = random.integers(256)
    path.write_bytes(data)
    try:
        sampled = read_frames(path, 8)
    except PruneVidError:
        return
    assert 1 <= len(sampled.frames) <= 8
    assert len(sampled.frames) == len(sampled.timestamps_s)


# Folders of images


def _write_images(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        Image.fromarray(numbered_frame(number)).save(folder / name)
    return folder


def test_images_are_read_in_natural_order(tmp_path: Path) -> None:
    names = ["frame1.png", "frame2.bmp", "Frame10.png", "frame100.webp", "frame101.jpg"]
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    sampled = read_frames(_write_images(tmp_path, names), 8)
    assert [read_number(image) for image in sampled.frames] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(sampled.timestamps_s, [0, 1, 2, 3, 4])
    sampled = read_frames(tmp_path, 2)
    assert [read_number(image) for image in sampled.frames] == [0, 4]
    assert (sampled.decoded, sampled.skipped) == (2, 0)


def test_a_damaged_image_gives_way_to_the_next(tmp_path: Path) -> None:
    _write_images(tmp_path, [f"{i}.png" for i in range(9)])
    (tmp_path / "4.png").write_bytes(b"not an image")
    (tmp_path / "8.png").write_bytes((tmp_path / "8.png").read_bytes()[:100])
    sampled = read_frames(str(tmp_path), 3)
    assert [read_number(image) for image in sampled.frames] == [0, 5]
    assert sampled.skipped == 2
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(PruneVidError, match="damaged"):
        read_frames(tmp_path, 3)


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(0)).save(tmp_path / "0.png")
    Image.fromarray(numbered_frame(1, 32, 32)).save(tmp_path / "1.png")
    with pytest.raises(PruneVidError, match=r"1\.png: 32 x 32 pixels, but .* 64 x 64"):
        read_frames(tmp_path, 2)


def test_one_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(77)).convert("RGBA").save(tmp_path / "one.png")
    assert read_number(read_frames(tmp_path / "one.png", 8).frames[0]) == 77


def test_orientation_of_photos_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(numbered_frame(3, 32, 64))
    exif = image.getexif()
    exif[0x0112] = 6  # turned right to be upright
    image.save(tmp_path / "a.png", exif=exif)
    frames = read_frames(tmp_path, 1).frames
    np.testing.assert_array_equal(frames[0], np.rot90(numbered_frame(3, 32, 64), -1))


# Arrays


def test_an_array_is_subsampled_or_used_as_it_is() -> None:
    array = np.random.default_rng(0).integers(0, 256, (50, 4, 6, 3), np.uint8)
    sampled = read_frames(array, 8)
    expected = np.linspace(0, 49, 8).astype(int)
    np.testing.assert_array_equal(sampled.frames, array[expected])
    np.testing.assert_array_equal(sampled.timestamps_s, expected)
    whole = read_frames(array, 64)
    assert np.shares_memory(whole.frames, array)
    assert whole.frames.shape == array.shape
    assert read_frames(array[:, ::2, ::2], 64).frames.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(PruneVidError, match=r"\[T, H, W, 3\]|no frames"):
        read_frames(array, 4)


@settings(derandomize=True, deadline=None)
@given(total=st.integers(1, 5000), count=st.integers(1, 300))
def test_samples_are_distinct_and_span_the_video(total: int, count: int) -> None:
    indices = sample_indices(total, count)
    assert len(indices) == min(total, count)
    assert indices[0] == 0
    assert count == 1 or indices[-1] == total - 1
    assert np.all(np.diff(indices) >= 1)
    if count <= total:
        np.testing.assert_array_equal(indices, np.linspace(0, total - 1, count).astype(int))


def test_the_name_of_a_file_is_never_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", 5)
    shutil.move("a.mp4", "concat:a.mp4")
    assert len(read_frames("concat:a.mp4", 5).frames) == 5
