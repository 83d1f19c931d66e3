"""The families with CLIP, LLaVA-NeXT-Video and LLaVA-1.5: configs, names of tensors and features, by transformers.

What the chain makes of them is in test_chain.py.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import IDS, TINY, pixel_values, render_frames, video_features
from safetensors.numpy import save_file

from prunevid import PruneVidError
from prunevid.bundle import open_bundle
from prunevid.export import export
from prunevid.export.catalog import shipped_config
from prunevid.export.families import family_of
from prunevid.export.processor_files import read_preprocessing
from prunevid.export.prompt_files import prompt_of_bytes
from prunevid.models import KNOWN
from prunevid.runtime import load
from prunevid.runtime.show.maps import observe
from prunevid.runtime.video.pixel_values import preprocess
from prunevid.text.chat import ChatPrompt

NAMES = ["next-video", "llava"]


def shipped(name: str) -> dict[str, Any]:
    """The published config of a tiny model's family."""
    return copy.deepcopy(shipped_config(KNOWN[TINY[name].model]))


def parse(data: dict[str, Any]) -> Any:
    return family_of(data, "it").parse_config(data, "it")


# --- features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", NAMES)
def test_features_are_transformers(
    tiny_model: Callable[[str], Any], tiny_bundle: Callable[[str, str], Path], name: str, dialect: str
) -> None:
    frames = render_frames(5, TINY[name].image_size, seed=3)
    chain = load(tiny_bundle(name, dialect)).chain
    found = chain.memory.download(chain.encode(pixel_values(frames)))
    np.testing.assert_allclose(found, video_features(tiny_model(name), pixel_values(frames)), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_opens_and_is_close(
    tiny_model: Callable[[str], Any], tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    bundle = export(TINY[name].model, tmp_path / "b", checkpoint=str(tiny_checkpoint(name)), precision="fp16")
    frames = render_frames(3, TINY[name].image_size, seed=4)
    chain = load(bundle.path).chain
    found = chain.memory.download(chain.encode(pixel_values(frames))).astype(np.float32)
    expected = video_features(tiny_model(name), pixel_values(frames))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


# --- names of tensors --------------------------------------------------------------------------------------


def published(name: str) -> str:
    """What a tensor of today's transformers is called in the published checkpoints."""
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return "language_model.lm_head.weight" if name == "lm_head.weight" else name.removeprefix("model.")


@pytest.mark.parametrize("names", [published, lambda name: name], ids=["published", "of-transformers-5"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_load_by_old_names_and_new_ones(
    tiny_model: Callable[[str], Any], tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str,
    tiny_bundle: Callable[[str, str], Path], names: Callable[[str], str],
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(tiny_checkpoint(name), tmp_path / "checkpoint"))
    tensors = {n: tensor.detach().numpy() for n, tensor in tiny_model(name).state_dict().items()}
    # What older releases stored, too.
    tensors["model.vision_tower.embeddings.position_ids"] = np.arange(TINY[name].side ** 2 + 1)[None]
    save_file({names(n): np.ascontiguousarray(tensor) for n, tensor in tensors.items()}, folder / "model.safetensors")
    made = export(TINY[name].model, tmp_path / "bundle", checkpoint=str(folder)).manifest
    assert made.files == open_bundle(tiny_bundle(name, "ort")).manifest.files


# --- configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_published_configs_are_read_as_transformers_has_them(name: str) -> None:
    from transformers import CONFIG_MAPPING

    data = shipped(name)
    config, theirs = parse(data), CONFIG_MAPPING[data["model_type"]].from_dict(data)
    for part in ("text_config", "vision_config"):
        ours, expected = (getattr(c, part).to_dict() for c in (config, theirs))
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"):
            assert ours[key] == expected[key]
    # Stray keys beside the model's own are no rotary scaling.
    assert config.text_config.rope_parameters["rope_type"] == "default"
    assert config.text_config.rope_parameters["rope_theta"] == theirs.text_config.rope_parameters["rope_theta"]
    assert config.vision_feature_layer == theirs.vision_feature_layer == -2


def test_linear_scaling_is_read_where_the_config_has_it() -> None:
    data = shipped("next-video")
    data["text_config"]["rope_scaling"] = {"factor": 2.5, "type": "linear"}  # as the variant of longer videos says
    family, plain = family_of(data, "it"), parse(shipped("next-video"))
    scaled = family.decoder_spec(parse(data)).inv_freq
    np.testing.assert_allclose(scaled * 2.5, family.decoder_spec(plain).inv_freq, rtol=1e-6)


def test_the_first_revision_of_llava_next_video_is_told_from_llava_next() -> None:
    data = shipped("next-video") | {"model_type": "llava_next"}
    assert family_of(data, "it").FAMILY == "llava_next_video"
    assert parse(data).model_type == "llava_next_video"
    del data["video_token_index"]
    with pytest.raises(PruneVidError, match="is a 'llava_next' model"):
        family_of(data, "it")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "pooling": ("next-video", {"spatial_pool_mode": "conv"}, "spatial_pool_mode must be 'average' .* not 'conv'"),
    "stride": ("next-video", {"spatial_pool_stride": 4}, "spatial_pool_stride must be 2 .* not 4"),
    "pllava": ("llava", {"pooling_method": "avg"}, "it is PLLaVA's: it has pooling_method, .* knows LLaVA-1.5"),
    "pllava-frames": ("llava", {"num_frames": 16}, "it is PLLaVA's: it has num_frames"),
    "image-token": ("llava", {"image_token_index": 32064}, "image_token_index must be below .* 32064, not 32064"),
    "video-token": ("next-video", {"video_token_index": 32064}, "video_token_index must be below .* 32064, not 32064"),
    **{
        f"{name}-{case}": (name, change, message)
        for name in NAMES
        for case, change, message in (
            (
                "class-token",
                {"vision_feature_select_strategy": "full"},
                "vision_feature_select_strategy must be 'default' .*class token.* not 'full'",
            ),
            (
                "tower",
                {"vision_config": {"model_type": "siglip_vision_model"}},
                "vision_config.model_type must be 'clip_vision_model', not 'siglip_vision_model'",
            ),
            ("layer", {"vision_feature_layer": -25}, "vision_feature_layer must be 1 to 24, .* not -25"),
            ("quantized", {"quantization_config": {"bits": 4}}, "quantization_config must be null"),
        )
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_come_out_wrong_is_refused_by_name(case: str) -> None:
    name, change, message = REFUSED[case]
    with pytest.raises(PruneVidError, match=message) as error:
        parse(shipped(name) | change)
    assert "\n" not in str(error.value)


# --- preprocessing and prompt ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_crops_as_the_checkpoint_says(tiny_bundle: Callable[[str, str], Path], name: str) -> None:
    settings = open_bundle(tiny_bundle(name, "ort")).manifest.preprocessing
    assert (settings.center_crop, settings.size) == (True, TINY[name].image_size)


# What preprocessor_config.json says in the published checkpoints.
PROCESSOR: dict[str, Any] = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "next-video": {
        "do_pad": True,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextVideoProcessor",
    },
    "llava": {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"},
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_published_processor_files_are_obeyed(tmp_path: Path, name: str, nested: bool) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    family, written = family_of(shipped(name), "it"), PROCESSOR | PUBLISHED[name]
    if nested:
        (tmp_path / "processor_config.json").write_text(json.dumps({family.PROCESSOR.section: written}))
    else:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    settings = read_preprocessing(tmp_path, family.PROCESSOR, 336, 576)
    assert settings == family.PROCESSOR.usual(336)
    frames = np.random.default_rng(0).integers(0, 256, (2, 211, 333, 3), np.uint8)
    processor = CLIPImageProcessorPil(**PROCESSOR)
    theirs = processor(list(frames), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    np.testing.assert_array_equal(preprocess(frames, settings), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_processor_file_leaves_out_is_what_the_class_assumes(tmp_path: Path, name: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    family = family_of(shipped(name), "it")
    assert read_preprocessing(tmp_path, family.PROCESSOR, 224, 256) == family.PROCESSOR.usual(224)
    with pytest.raises(PruneVidError, match="crop_size must be 336 x 336, .* not 224 x 224"):
        read_preprocessing(tmp_path, family.PROCESSOR, 336, 576)


@pytest.mark.parametrize("other", ["LlavaNextImageProcessor", "LlavaOnevisionImageProcessor"])
def test_processors_that_cut_images_into_tiles_are_refused_for_llava(tmp_path: Path, other: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"image_processor_type": other}))
    with pytest.raises(PruneVidError, match="image_processor_type must be a processor of LLaVA-1.5"):
        read_preprocessing(tmp_path, family_of(shipped("llava"), "it").PROCESSOR, 336, 576)


def test_frames_that_would_be_padded_are_refused(tmp_path: Path) -> None:
    # LlavaImageProcessor pads them to squares, the video processor of LLaVA-NeXT-Video ignores the key.
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_pad": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(size))
    with pytest.raises(PruneVidError, match="do_pad must be false or null: .*, not true"):
        read_preprocessing(tmp_path, family_of(shipped("llava"), "it").PROCESSOR, 336, 576)
    assert read_preprocessing(tmp_path, family_of(shipped("next-video"), "it").PROCESSOR, 336, 576).center_crop


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_the_square_that_the_model_sees(tiny_bundle: Callable[[str, str], Path], name: str) -> None:
    size = TINY[name].image_size
    frames = np.zeros((2, size, 2 * size, 3), np.uint8)
    frames[:, :, size // 2 : -size // 2] = 200
    maps = observe(load(tiny_bundle(name, "ort")), frames, "Why?")
    assert maps.frames.shape[1] == maps.frames.shape[2]
    assert (maps.frames == 200).all()


@pytest.mark.parametrize("name", NAMES)
def test_bundles_of_random_weights_are_asked_as_vicuna_is(tmp_path: Path, name: str) -> None:
    family = family_of(shipped(name), "it")
    spec = prompt_of_bytes(tmp_path, family.CHAT, 4096)
    kind = family.token_layout(parse(shipped(name))).placeholder
    prompt = ChatPrompt(
        tmp_path / spec.tokenizer, family.CHAT.template, spec.video_token, spec.eos_ids, placeholder=kind
    )
    ids = prompt.encode("What moves?")
    before, between, after = (prompt.tokenizer.decode(part.tolist()) for part in (ids.prefix, ids.between, ids.suffix))
    assert before == "USER: "
    assert between == ("\n" if kind == "frame" else "")
    assert after == "\nWhat moves? ASSISTANT:"
    assert prompt.tokenizer.token_to_id("</s>") == 2
    assert spec.eos_ids == (2,)


# Written with what the published templates are written with: filters, comments, and a tag that only training knows.
PUBLISHED_TEMPLATE = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}\
{# first what is shown #}{% for shown in message['content'] | selectattr('type', 'equalto', KIND) %}\
{{ '<' + KIND + '>\\n' }}{% endfor %}\
{% for said in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% if message['role'] == 'assistant' %}{% generation %}{{ said['text'] + ' ' }}{% endgeneration %}\
{% else %}{{ said['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoints_template_of_the_published_kind_is_asked_like_the_random_one(tmp_path: Path, name: str) -> None:
    family = family_of(shipped(name), "it")
    spec, layout = prompt_of_bytes(tmp_path, family.CHAT, 4096), family.token_layout(parse(shipped(name)))
    kind = {"video": "video", "frame": "image"}[layout.placeholder]
    published, ours = (
        ChatPrompt(tmp_path / spec.tokenizer, template, spec.video_token, spec.eos_ids, placeholder=layout.placeholder)
        for template in (PUBLISHED_TEMPLATE.replace("KIND", repr(kind)), family.CHAT.template)
    )
    for found, expected in zip(
        vars(published.encode("Why?")).values(), vars(ours.encode("Why?")).values(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_placeholder_is_the_configs(tiny_bundle: Callable[[str, str], Path], name: str) -> None:
    prompt = open_bundle(tiny_bundle(name, "ort")).manifest.prompt
    assert prompt.video_token == ("<video>" if name == "next-video" else "<image>")
    assert prompt.video_token in IDS
