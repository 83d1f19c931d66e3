"""Pictures as frames, and what a file is by its content: modes, orientation, animations, order, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from ffmpeg import ffmpeg, shown
from PIL import Image, ImageOps
from videos import numbered_frame, read_number, write_video

from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.errors import PruneVidError
from prunevid.runtime.video.frames import sample_indices
from prunevid.runtime.video.pixel_values import preprocess, resizer
from prunevid.runtime.video.sources import read_frames


def _numbers(source: Path | str, count: int) -> list[int]:
    return [read_number(image) for image in read_frames(source, count).frames]


# Content decides


def _animation(path: Path, count: int = 10, **options: Any) -> Path:
    images = [Image.fromarray(numbered_frame(i)) for i in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize(
    ("format_", "options"),
    [("webp", {"lossless": True, "duration": 100}), ("png", {"duration": 100}), ("gif", {"duration": 100})],
)
@pytest.mark.parametrize("name", ["a", "a.mp4", "a.JPG", "a.webp", "a.png"])
def test_animations_are_films_whatever_their_name(
    format_: str, options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    path = _animation(tmp_path / f"x.{format_}", **options).rename(tmp_path / name)
    sampled = read_frames(path, 4)
    assert [read_number(image) for image in sampled.frames] == [0, 3, 6, 9]
    np.testing.assert_allclose(sampled.timestamps_s, [0, 0.3, 0.6, 0.9])
    if name == "a":
        assert [read_number(image) for image in shown(path)[0]] == list(range(10))


def test_frames_of_an_animation_that_last_differently(tmp_path: Path) -> None:
    path = _animation(tmp_path / "a.webp", 4, lossless=True, duration=[100, 300, 50, 10])
    np.testing.assert_allclose(read_frames(path, 4).timestamps_s, [0, 0.1, 0.4, 0.45])


def test_pages_of_a_tiff_are_frames_but_for_smaller_copies(tmp_path: Path) -> None:
    assert _numbers(_animation(tmp_path / "a.tif"), 4) == [0, 3, 6, 9]
    from PIL import TiffImagePlugin

    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "b.tif"), new=True) as file:
        for number, (side, subfile) in enumerate([(64, 0), (16, 1), (64, 0), (16, 1)]):
            directory = TiffImagePlugin.ImageFileDirectory_v2()
            directory[254] = subfile
            Image.fromarray(numbered_frame(number, side, side)).save(file, format="tiff", tiffinfo=directory)
            file.newFrame()
    assert _numbers(tmp_path / "b.tif", 8) == [0, 2]


@pytest.mark.parametrize("name", ["film", "film.png", "film.txt", "film.MP4"])
def test_a_film_by_any_name(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 10).rename(tmp_path / name)
    assert _numbers(path, 4) == [0, 3, 6, 9]


@pytest.mark.parametrize("format_", ["jpeg", "png", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("name", ["a", "a.mp4", "a.PNG"])
def test_a_picture_by_any_name(format_: str, name: str, tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(77)).save(tmp_path / name, format=format_)
    assert _numbers(tmp_path / name, 4) == [77]


def test_jpegs_one_behind_the_other_are_a_film_and_a_thumbnail_is_none(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", 10)
    ffmpeg("-i", source, "-c:v", "mjpeg", "-q:v", 2, "-f", "mjpeg", tmp_path / "a.jpg")
    assert _numbers(tmp_path / "a.jpg", 4) == [0, 3, 6, 9]
    small, large = (Image.fromarray(numbered_frame(5, side, side)) for side in (64, 128))
    large.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[small])
    assert read_frames(tmp_path / "b.jpg", 4).frames.shape == (1, 128, 128, 3)


def test_an_animation_in_a_folder_is_not_taken_for_a_frame(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(0)).save(tmp_path / "0.png")
    _animation(tmp_path / "1.webp", lossless=True)
    with pytest.raises(PruneVidError, match=r"1\.webp: this has 10 frames or pages, not one"):
        read_frames(tmp_path, 2)


def test_only_files_of_a_folder_are_read(tmp_path: Path) -> None:
    import os

    Image.fromarray(numbered_frame(4)).save(tmp_path / "0.PNG")
    (tmp_path / "1.png").mkdir()
    os.mkfifo(tmp_path / "2.png")
    assert _numbers(tmp_path, 8) == [4]


# Order


@pytest.mark.parametrize(
    "names",
    [
        ["t0.25", "t0.5", "t1", "t1.25", "t10"],
        ["frame9", "frame10", "frame0011"],
        ["a1b10", "a1b9", "a2b1"][1:] + ["a10b0"],
        ["v1.9.0", "v1.10.0", "v2.0.0"],
        ["2024-01-09", "2024-01-10", "2024-02-01"],
        ["x0,5", "x0,75", "x1"],
        ["cam-1", "cam-2", "cam-10"],  # a sign is a separator
        ["01", "1", "1.0", "2"],  # equal numbers: by their characters
        ["A1", "a2", "A3"],
        ["7", "clip7", "clip7b"],
        ["f1", "f1.5", "f2"],
    ],
)
def test_order_of_names(names: list[str], tmp_path: Path) -> None:
    for number, name in reversed(list(enumerate(names))):
        Image.fromarray(numbered_frame(number)).save(tmp_path / f"{name}.png")
    assert _numbers(tmp_path, 99) == list(range(len(names)))


# Pixels


def _ramp(highest: int, dtype: type) -> np.ndarray:
    return np.linspace(0, highest, 64 * 64).astype(dtype).reshape(64, 64)


def test_16_bit_grey_is_scaled_by_its_range(tmp_path: Path) -> None:
    values = _ramp(65535, np.uint16)
    expected = np.rint(values / 65535 * 255)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        frame = read_frames(tmp_path / name, 1).frames[0]
        for channel in range(3):
            np.testing.assert_array_equal(frame[..., channel], expected)
    assert np.abs(shown(tmp_path / "a.png")[0][0, ..., 0] - expected).max() <= 1


def test_16_bit_grey_that_is_white_at_zero(tmp_path: Path) -> None:
    values = _ramp(65535, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    data = bytearray((tmp_path / "a.tiff").read_bytes())
    at = data.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    data[at + 8 : at + 10] = bytes(2)  # PhotometricInterpretation: WhiteIsZero
    (tmp_path / "a.tiff").write_bytes(data)
    frame = read_frames(tmp_path / "a.tiff", 1).frames[0]
    np.testing.assert_array_equal(frame[..., 0], 255 - np.rint(values / 65535 * 255))


@pytest.mark.parametrize(("values", "kind"), [(_ramp(1, np.float32), "F"), (_ramp(2**31 - 1, np.int32), "I")])
def test_pixels_without_a_range_are_refused(values: np.ndarray, kind: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(PruneVidError, match=rf"a\.tiff: pixels of the kind '{kind}' say not which value is black"):
        read_frames(tmp_path / "a.tiff", 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(numbered_frame(9)).convert("P" if mode == "PA" else mode)
    suffix = {"CMYK": "tiff", "YCbCr": "tiff", "PA": "tiff"}.get(mode, "png")
    if mode == "PA":
        image = image.convert("PA")
    if mode in ("LA", "RGBA"):
        image.putalpha(0)  # what lies under it is shown, as by ffmpeg
    image.save(tmp_path / f"a.{suffix}")
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 writes YCbCr in a TIFF that it cannot read")
    frame = read_frames(tmp_path / f"a.{suffix}", 1).frames[0]
    with Image.open(tmp_path / f"a.{suffix}") as saved:
        np.testing.assert_array_equal(frame, np.asarray(saved.convert("RGB")))
    assert read_number(frame) == 9


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_", ["jpeg", "png", "webp", "tiff"])
def test_orientations(orientation: int, format_: str, tmp_path: Path) -> None:
    image = Image.fromarray(numbered_frame(3, 32, 64))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a", format=format_, exif=exif)
    with Image.open(tmp_path / "a") as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved).convert("RGB"))
    np.testing.assert_array_equal(read_frames(tmp_path / "a", 1).frames[0], expected)


# Memory


@pytest.mark.parametrize("shape", [(3, 700, 900), (2, 64, 48), (2, 1, 1), (1, 1, 4000), (1, 4000, 3), (2, 2100, 1001)])
@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_shrunk_frames_are_preprocessed_as_whole_ones(shape: tuple[int, int, int], resample: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    settings = Preprocessing(48, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resample=resample)
    shrunk = read_frames(frames, 99, resizer(settings))
    assert shrunk.frames.shape == (len(frames), 48, 48, 3)
    filter_ = Image.Resampling[resample.upper()]
    for frame, small in zip(frames, shrunk.frames, strict=True):
        whole = Image.fromarray(frame).resize((48, frame.shape[0]), filter_).resize((48, 48), filter_)
        np.testing.assert_array_equal(small, np.asarray(whole))
    np.testing.assert_array_equal(preprocess(shrunk.frames, settings), preprocess(frames, settings))


@pytest.mark.parametrize("shape", [(3, 700, 900), (2, 64, 48), (1, 1, 4000), (1, 4000, 3), (2, 2100, 1001)])
def test_shrunk_frames_are_cropped_once(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    settings = Preprocessing(48, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), center_crop=True)
    shrunk = read_frames(frames, 99, resizer(settings)).frames
    assert shrunk.shape == (len(frames), 48, 48, 3)
    np.testing.assert_array_equal(preprocess(shrunk, settings), preprocess(frames, settings))


_PEAK = """
import sys
from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.runtime.video.pixel_values import resizer
from prunevid.runtime.video.sources import read_frames
half = (0.5, 0.5, 0.5)
frames = read_frames(sys.argv[1], int(sys.argv[2]), resizer(Preprocessing(32, half, half, resample="nearest"))).frames
assert frames.shape == (int(sys.argv[2]), 32, 32, 3)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _peak_mib(source: Path, count: int) -> float:
    command = [sys.executable, "-c", _PEAK, str(source), str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("kind", ["folder", "gif", "mp4"])
def test_memory_does_not_grow_with_the_number_of_frames(kind: str, tmp_path: Path) -> None:
    side, count = 4608, 8  # 64 MB of RGB a frame
    if kind == "folder":
        source = tmp_path
        for number in range(count):
            Image.new("L", (side, side), number).save(tmp_path / f"{number}.png")
    elif kind == "gif":
        source = tmp_path / "a.gif"
        images = [Image.new("L", (side, side), number) for number in range(count)]
        images[0].save(source, save_all=True, append_images=images[1:], duration=100)
        assert source.stat().st_size < 10**6
    else:
        source = tmp_path / "a.mp4"
        ffmpeg("-f", "lavfi", "-i", f"color=red:s={side}x{side}:r=8:d=1", "-preset", "ultrafast", source)
    peak = _peak_mib(source, count)
    assert peak < _peak_mib(source, 2) + 128
    assert peak < 600


# Arrays


def test_arrays_of_any_layout() -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (6, 20, 30, 3), np.uint8)
    settings = Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    readonly = frames.copy()
    readonly.flags.writeable = False
    layouts = {
        "fortran": np.asfortranarray(frames),
        "channels first": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        "reversed": np.ascontiguousarray(frames[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        "window": np.pad(frames, ((1, 1), (2, 2), (3, 3), (1, 1)))[1:-1, 2:-2, 3:-3, 1:-1],
        "read only": readonly,
        "subclass": frames.view(type("Subclass", (np.ndarray,), {})),
        "big endian": frames.astype(">u1"),
    }
    for name, array in layouts.items():
        for count in (1, 4, 6):
            chosen = frames[sample_indices(6, count)]
            for shrink, expected in (
                (None, chosen),
                (resizer(settings), np.stack([resizer(settings)(f) for f in chosen])),
            ):
                found = read_frames(array, count, shrink).frames
                np.testing.assert_array_equal(found, expected, err_msg=name)
                assert found.flags.c_contiguous
                assert type(found) is np.ndarray
    repeated = np.broadcast_to(frames[0], (10**7, 20, 30, 3))
    np.testing.assert_array_equal(read_frames(repeated, 3).frames, np.stack([frames[0]] * 3))
    with pytest.raises(PruneVidError, match="masked"):
        read_frames(np.ma.masked_equal(frames, 7), 3)
    for dtype in (np.int8, ">u2", bool, np.float16, object):
        with pytest.raises(PruneVidError, match=r"uint8 of shape"):
            read_frames(frames.astype(dtype), 3)
