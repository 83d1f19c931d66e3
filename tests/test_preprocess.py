"""Preprocessing against transformers' own processors."""

from __future__ import annotations

import importlib.util
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.errors import PruneVidError
from prunevid.runtime.video.pixel_values import preprocess

Colour = tuple[float, float, float]
Statistics = tuple[Colour, Colour]
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WIDE = [(48, 64), (360, 640), (384, 384), (31, 517), (1, 1), (1080, 1920)]
SIZES = [*WIDE, (720, 405), (640, 360), (64, 48)]


def _frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise on a gradient: hard edges make bicubic resampling overshoot."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (count, height, width, 3), np.uint8)
    smooth = np.linspace(0, 255, width, dtype=np.uint8)[None, None, :, None]
    return np.where(random.random((count, height, width, 1)) < 0.5, noise, smooth).astype(np.uint8)


@pytest.mark.parametrize("statistics", [OPENAI, HALF], ids=["openai", "half"])
@pytest.mark.parametrize(("height", "width"), WIDE)
def test_equals_the_pillow_processor(height: int, width: int, statistics: Statistics) -> None:
    pytest.importorskip("transformers")
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    mean, std = statistics
    frames = _frames(2, height, width)
    processor = SiglipImageProcessorPil(
        size={"height": 384, "width": 384}, image_mean=list(mean), image_std=list(std), resample=3
    )
    theirs = processor(list(frames), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ours = preprocess(frames, Preprocessing(384, mean, std))
    assert ours.dtype == np.float32
    assert ours.shape == (2, 3, 384, 384)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("height", "width"), [*WIDE, (337, 339), (335, 338), (7, 500)])
def test_cropped_frames_equal_the_pillow_processor_of_clip(height: int, width: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    frames = _frames(2, height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    theirs = processor(list(frames), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ours = preprocess(frames, Preprocessing(336, *OPENAI, center_crop=True))
    np.testing.assert_array_equal(ours, theirs)
    assert height == width or not np.array_equal(ours, preprocess(frames, Preprocessing(336, *OPENAI)))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
@pytest.mark.parametrize(("height", "width"), [*SIZES, (337, 339), (338, 335), (500, 7)])
def test_cropped_frames_are_as_close_as_rounding_to_the_video_processor(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlavaNextVideoVideoProcessor

    frames = _frames(3, height, width)
    processor = LlavaNextVideoVideoProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    theirs = processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")["pixel_values_videos"]
    ours = preprocess(frames, Preprocessing(336, *OPENAI, center_crop=True))
    _assert_equal_but_for_rounding(ours, theirs[0].numpy())


@pytest.mark.parametrize(("height", "width"), [size for size in WIDE if size != (1, 1)])
def test_equals_the_first_patch_of_llava_onevision(height: int, width: int) -> None:
    # The image processor's first patch is the whole image, resized as a frame is; the others are its tiles.
    pytest.importorskip("transformers")
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    frames = _frames(1, height, width)
    processor = LlavaOnevisionImageProcessorPil(image_grid_pinpoints=[[384, 384]])
    theirs = processor([frames[0]], return_tensors="np", input_data_format="channels_last")["pixel_values"]
    np.testing.assert_array_equal(preprocess(frames, Preprocessing(384, *OPENAI))[0], theirs[0, 0])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_is_as_close_as_rounding_to_the_video_processor(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlavaOnevisionVideoProcessor

    frames = _frames(3, height, width)
    theirs = LlavaOnevisionVideoProcessor()([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")[
        "pixel_values_videos"
    ][0].numpy()
    _assert_equal_but_for_rounding(preprocess(frames, Preprocessing(384, *OPENAI)), theirs)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_is_as_close_as_rounding_to_torch_resizing(height: int, width: int) -> None:
    # What the video processor calls in the end; this runs without torchvision too.
    torch = pytest.importorskip("torch")
    frames = _frames(2, height, width)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(tensor, (384, 384), mode="bicubic", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in OPENAI)
    _assert_equal_but_for_rounding(
        preprocess(frames, Preprocessing(384, *OPENAI)), ((resized.float() / 255 - mean) / std).numpy()
    )


def _assert_equal_but_for_rounding(ours: np.ndarray, theirs: np.ndarray) -> None:
    mean, std = (np.array(values)[:, None, None] for values in OPENAI)
    levels = np.abs(np.rint((ours * std + mean) * 255) - np.rint((theirs * std + mean) * 255))
    # Measured on this noise, the worst case there is: one level in 0.7 % of values, two in five of a million.
    assert levels.max() <= 2
    assert (levels > 1).mean() < 2e-5
    assert (levels > 0).mean() < 0.01
    assert np.abs(ours - theirs)[levels == 0].max() < 1e-5


def test_frames_of_the_right_size_are_not_resampled() -> None:
    frames = _frames(1, 12, 12)
    pixels = preprocess(frames, Preprocessing(12, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    np.testing.assert_allclose(pixels[0], frames[0].transpose(2, 0, 1) / 255, atol=1e-7)


@pytest.mark.parametrize("resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_every_filter_keeps_a_flat_frame_flat(resample: str) -> None:
    frames = np.full((1, 20, 30, 3), (10, 100, 200), np.uint8)
    settings_ = Preprocessing(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), rescale=1.0, resample=resample)
    pixels = preprocess(frames, settings_)
    np.testing.assert_array_equal(pixels[0].reshape(3, -1).T, np.tile([10.0, 100.0, 200.0], (64, 1)))


def test_little_more_memory_than_the_result() -> None:
    frames = _frames(16, 480, 640)
    tracemalloc.start()
    pixels = preprocess(frames, Preprocessing(384, *OPENAI))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes + 4 * 2**20


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    count=st.integers(0, 3),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(1, 48),
    seed=st.integers(0, 99),
)
def test_every_frame_is_processed_by_itself(count: int, height: int, width: int, size: int, seed: int) -> None:
    frames = _frames(count, height, width, seed)
    parameters = Preprocessing(size, *HALF)
    pixels = preprocess(frames, parameters)
    assert pixels.shape == (count, 3, size, size)
    assert np.all(np.abs(pixels) <= 1.0)
    for frame, expected in zip(frames, pixels, strict=True):
        np.testing.assert_array_equal(preprocess(frame[None], parameters)[0], expected)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 3, 4, 4), np.uint8)],
)
def test_other_arrays_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(PruneVidError, match=r"uint8 of shape \[T, H, W, 3\]"):
        preprocess(frames, Preprocessing(8, *HALF))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"size": 10**9}, "size"),
        ({"size": "8"}, "size"),
        ({"mean": [0, 0]}, "mean"),
        ({"mean": [0, 0, float("nan")]}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"std": [1, 0, 1]}, "std"),
        ({"std": ["1", "1", "1"]}, "std"),
        ({"rescale": 0}, "rescale"),
        ({"rescale": float("inf")}, "rescale"),
        ({"resample": "cubic"}, "resample"),
        ({"resample": ["bicubic"]}, "resample"),
        ({"center_crop": 1}, "center_crop"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"size": 8, "mean": HALF[0], "std": HALF[1], **change}
    with pytest.raises(PruneVidError, match=message):
        Preprocessing(**values)
