"""Processor files against transformers' processors on the same folder: every key is obeyed, or refused by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunevid import PruneVidError
from prunevid.export.families.llava_onevision import PROCESSOR
from prunevid.export.processor_files import read_preprocessing
from prunevid.runtime.video.pixel_values import preprocess

SIZE, PATCHES = 72, 81
SQUARE = {"height": SIZE, "width": SIZE}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": SQUARE}
SKEWED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.6, 0.9], "size": SQUARE}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
# What LlavaOnevisionVideoProcessor assumes for what is missing.
DEFAULTS = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3, **CLIP}
DEFAULTS |= {"do_center_crop": False}
VIDEO, IMAGE, NESTED = "video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"
ONE = {"size": SQUARE, "video_processor_type": "LlavaOnevisionVideoProcessor"}
CROPPED = {"size": {"shortest_edge": SIZE}, "do_center_crop": True, "crop_size": SQUARE}

# The files of a folder, and what is in effect where that is not what the one file says.
OBEYED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "half": ({VIDEO: HALF}, None),
    "skewed": ({VIDEO: SKEWED}, None),
    "no-statistics": ({VIDEO: ONE}, None),
    "one-number": (
        {VIDEO: ONE | {"image_mean": 0.25, "image_std": 0.75}},
        ONE | {"image_mean": [0.25] * 3, "image_std": [0.75] * 3},
    ),
    "not-normalized": ({VIDEO: SKEWED | {"do_normalize": False}}, None),
    "normalize-null": ({VIDEO: SKEWED | {"do_normalize": None}}, SKEWED | {"do_normalize": False}),
    "rescale-null": ({VIDEO: SKEWED | {"do_rescale": None}}, SKEWED | {"do_rescale": False}),
    "one-mean": ({VIDEO: {"size": SQUARE, "image_mean": [0.1, 0.2, 0.3]}}, None),
    "null-unused": (
        {VIDEO: {"size": SQUARE, "do_normalize": False, "image_mean": None, "image_std": None}},
        {"size": SQUARE, "do_normalize": False},
    ),
    "not-rescaled": ({VIDEO: SKEWED | {"do_rescale": False}}, None),
    "neither": ({VIDEO: {"size": SQUARE, "do_normalize": False, "do_rescale": False}}, None),
    "factor": ({VIDEO: HALF | {"rescale_factor": 1 / 127.5}}, None),
    "bilinear": ({VIDEO: HALF | {"resample": 2}}, None),
    "int-to-square": ({VIDEO: HALF | {"size": SIZE, "default_to_square": True}}, HALF),
    "changes-nothing": ({VIDEO: HALF | {"do_pad": True, "do_convert_rgb": False, "crop_size": 10, "fps": 3}}, HALF),
    "nulls": ({VIDEO: HALF | {"do_center_crop": None, "do_sample_frames": None, "whatever": None}}, HALF),
    "cropped": ({VIDEO: HALF | CROPPED}, None),
    "cropped-int": ({VIDEO: HALF | CROPPED | {"size": SIZE, "crop_size": SIZE}}, HALF | CROPPED),
    "cropped-square": ({VIDEO: HALF | {"do_center_crop": True, "crop_size": SQUARE}}, HALF),
    "off": ({VIDEO: HALF | {"do_center_crop": False, "do_sample_frames": False, "do_resize": True}}, HALF),
    "image-file": ({IMAGE: SKEWED | {"image_processor_type": "LlavaOnevisionImageProcessor"}}, SKEWED),
    "fast-image-file": ({IMAGE: SKEWED | {"image_processor_type": "LlavaOnevisionImageProcessorFast"}}, SKEWED),
    "siglip-image-file": ({IMAGE: SKEWED | {"image_processor_type": "SiglipImageProcessor"}}, SKEWED),
    "video-wins": ({VIDEO: SKEWED, IMAGE: HALF}, SKEWED),
    "video-wins-with-defaults": ({VIDEO: ONE, IMAGE: HALF}, ONE),
    "nested-wins": ({NESTED: {"video_processor": SKEWED}, VIDEO: HALF, IMAGE: HALF}, SKEWED),
    "nested-wins-with-defaults": ({NESTED: {"video_processor": ONE}, IMAGE: HALF}, ONE),
    "not-nested": ({NESTED: {"num_image_tokens": PATCHES}, VIDEO: SKEWED}, SKEWED),
    "nested-null": ({NESTED: {"video_processor": None}, IMAGE: SKEWED}, SKEWED),
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def frames() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (2, 50, 90, 3), np.uint8).repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("name", OBEYED)
def test_pixels_are_those_of_the_pillow_processor(tmp_path: Path, name: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    files, effective = OBEYED[name]
    if effective is None:
        (effective,) = files.values()
    keys = (*DEFAULTS, "size", "do_center_crop", "crop_size")
    settings = {key: value for key, value in (DEFAULTS | effective).items() if key in keys}
    theirs = CLIPImageProcessorPil(**settings)(list(frames()), return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ]
    ours = preprocess(frames(), read_preprocessing(write(tmp_path, files), PROCESSOR, SIZE, PATCHES))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
@pytest.mark.parametrize("name", OBEYED)
def test_pixels_are_those_of_the_video_processor_of_the_folder(
    tmp_path: Path, tiny_model: Callable[[str], Any], name: str
) -> None:
    from transformers import AutoVideoProcessor

    tiny_model("qwen2").config.save_pretrained(tmp_path)
    folder = write(tmp_path, OBEYED[name][0])
    processor = AutoVideoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaOnevisionVideoProcessor"
    video = torch.from_numpy(frames()).permute(0, 3, 1, 2)
    theirs = processor([video], return_tensors="pt")["pixel_values_videos"][0].numpy()
    settings = read_preprocessing(folder, PROCESSOR, SIZE, PATCHES)
    # In levels of 8 bits: resampling in torch and in Pillow round differently by one, rarely two.
    mean, std = (np.array(values)[:, None, None] for values in (settings.mean, settings.std))
    ours, theirs = ((pixels * std + mean) / settings.rescale for pixels in (preprocess(frames(), settings), theirs))
    apart = np.abs(ours - theirs)
    assert apart.max() < 2.01
    assert (apart > 0.01).mean() < 0.01


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no-file": ({}, "says nowhere how frames become pixel values"),
    "only-a-plain-processor": ({NESTED: {"num_image_tokens": PATCHES}}, "says nowhere how frames become pixel values"),
    "not-resized": ({VIDEO: HALF | {"do_resize": False}}, "do_resize must be true .* not false"),
    "cropped": ({VIDEO: HALF | {"do_center_crop": True}}, "crop_size must be 72 x 72, .* not None x None"),
    "crop-flag": ({VIDEO: HALF | {"do_center_crop": 1}}, "do_center_crop must be true or false, or null, not 1"),
    "cropped-smaller": ({VIDEO: HALF | CROPPED | {"crop_size": 60}}, "crop_size must be 72 x 72, .* not 60 x 60"),
    "cropped-oblong": (
        {VIDEO: HALF | CROPPED | {"crop_size": {"height": SIZE, "width": 60}}},
        "crop_size must be 72 x 72, .* not 72 x 60",
    ),
    "crop-text": ({VIDEO: HALF | CROPPED | {"crop_size": "72"}}, "crop_size must be .* not '72'"),
    "cropped-of-larger": (
        {VIDEO: HALF | CROPPED | {"size": {"shortest_edge": 80}}},
        "size.'shortest_edge'. must be 72",
    ),
    "cropped-up-to": (
        {VIDEO: HALF | CROPPED | {"size": {"shortest_edge": SIZE, "longest_edge": 99}}},
        "size.'longest_edge'. must be absent",
    ),
    "sampled": ({VIDEO: HALF | {"do_sample_frames": True, "num_frames": 8}}, "do_sample_frames must be false"),
    "short-edge": ({VIDEO: HALF | {"size": {"shortest_edge": SIZE}}}, "size.'shortest_edge'. must be absent"),
    "long-edge": ({VIDEO: HALF | {"size": SQUARE | {"longest_edge": 90}}}, "size.'longest_edge'. must be absent"),
    "int": ({VIDEO: HALF | {"size": SIZE}}, "size.'shortest_edge'. must be absent"),
    "size-default": ({VIDEO: CLIP}, "size must be 72 x 72, .* not 384 x 384"),
    "size-null": ({VIDEO: HALF | {"size": None}}, "size must be .* an object of height and width, not null"),
    "null-side": ({VIDEO: HALF | {"size": SQUARE | {"shortest_edge": None}}}, "size.'shortest_edge'. must be absent"),
    "mean-null": ({VIDEO: HALF | {"image_mean": None}}, "image_mean must be three numbers, .* not null"),
    "std-null": ({VIDEO: HALF | {"image_std": None}}, "image_std must be three numbers, .* not null"),
    "factor-null": ({VIDEO: HALF | {"rescale_factor": None}}, "rescale_factor must be a number above 0, .* not null"),
    "resample-null": ({VIDEO: HALF | {"resample": None}}, "resample must be 2 .bilinear. or 3 .bicubic., not null"),
    "resize-null": ({VIDEO: HALF | {"do_resize": None}}, "do_resize must be true .* not null"),
    "no-square": ({VIDEO: HALF | {"size": {"height": SIZE, "width": 71}}}, "size must be 72 x 72, .* not 72 x 71"),
    "no-width": ({VIDEO: HALF | {"size": {"height": SIZE}}}, "size must be 72 x 72, .* not 72 x None"),
    "size-list": ({VIDEO: HALF | {"size": [SIZE, SIZE]}}, "size must be .* not a list of 2"),
    "size-text": ({VIDEO: HALF | {"size": {"height": "72", "width": SIZE}}}, "size must be 72 x 72, .* not '72' x 72"),
    "nearest": ({VIDEO: HALF | {"resample": 0}}, "resample must be 2 .bilinear. or 3 .bicubic., not 0"),
    "lanczos": ({VIDEO: HALF | {"resample": 1}}, "resample must be .* not 1"),
    "resample-text": ({VIDEO: HALF | {"resample": "bicubic"}}, "resample must be .* not 'bicubic'"),
    "two-means": ({VIDEO: HALF | {"image_mean": [0.5, 0.5]}}, "image_mean must be .* not a list of 2"),
    "mean-text": ({VIDEO: HALF | {"image_mean": "half"}}, "image_mean must be .* not 'half'"),
    "mean-nan": ({VIDEO: HALF | {"image_mean": [0.5, 0.5, float("nan")]}}, "image_mean must be"),
    "std-zero": ({VIDEO: HALF | {"image_std": [0.5, 0.0, 0.5]}}, "image_std must be three numbers above 0"),
    "std-negative": ({VIDEO: HALF | {"image_std": -1}}, "image_std must be three numbers above 0"),
    "factor-zero": ({VIDEO: HALF | {"rescale_factor": 0}}, "rescale_factor must be a number above 0"),
    "factor-infinite": ({VIDEO: HALF | {"rescale_factor": float("inf")}}, "rescale_factor must be"),
    "flag-text": ({VIDEO: HALF | {"do_normalize": "no"}}, "do_normalize must be true or false, or null, not 'no'"),
    "flag-number": ({VIDEO: HALF | {"do_rescale": 1}}, "do_rescale must be .* not 1"),
    "layout": ({VIDEO: HALF | {"data_format": "channels_last"}}, "data_format must be 'channels_first' or null"),
    "unknown": ({VIDEO: HALF | {"do_flip_channel_order": True}}, "'do_flip_channel_order' is true"),
    "other-class": ({VIDEO: HALF | {"video_processor_type": "Qwen2VLVideoProcessor"}}, "video_processor_type must be"),
    "other-image-class": (
        {IMAGE: HALF | {"image_processor_type": "Qwen2VLImageProcessor"}},
        "image_processor_type must",
    ),
    "nested-class-defaults": ({NESTED: {"video_processor": {}}, IMAGE: HALF}, "video_processor: size must be 72 x 72"),
    "nested-list": ({NESTED: {"video_processor": []}, IMAGE: HALF}, "video_processor must be an object"),
    "other-patches": ({NESTED: {"num_image_tokens": 729}, IMAGE: HALF}, "num_image_tokens must be 81"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_obeyed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    files, message = REFUSED[name]
    with pytest.raises(PruneVidError, match=message) as error:
        read_preprocessing(write(tmp_path, files), PROCESSOR, SIZE, PATCHES)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
