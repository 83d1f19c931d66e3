"""The output matrix against transformers' own loading: what the config says of tying, and what the file holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from models import IDS, build_tokenizer, pixel_values, render_frames
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from prunevid import PruneVidError
from prunevid.export import export
from prunevid.export.checkpoint.weights import SafetensorsWeights
from prunevid.export.families import llava_onevision, text_config
from prunevid.runtime import load

FLAGS = (True, False, None)
COMBINATIONS = list(product(FLAGS, FLAGS, ("absent", "same", "different")))


def edited(source: Path, folder: Path, top: bool | None, text: bool | None, head: str) -> Path:
    """A copy of an untied checkpoint with these flags (None: absent) and this output matrix."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    for section, flag in ((config, top), (config["text_config"], text)):
        section.pop("tie_word_embeddings", None)
        if flag is not None:
            section["tie_word_embeddings"] = flag
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("lm_head.weight"))
    (table,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    assert not torch.equal(tensors[name], tensors[table])
    if head == "absent":
        del tensors[name]
    elif head == "same":
        tensors[name] = tensors[table].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("top", "text", "head"), COMBINATIONS)
def test_the_output_matrix_is_the_one_that_transformers_takes(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, top: bool | None, text: bool | None, head: str
) -> None:
    folder = edited(tiny_checkpoint("qwen2"), tmp_path / "edited", top, text, head)
    theirs, report = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    path = folder / "config.json"
    config = llava_onevision.parse_config(json.loads(path.read_text()), str(path))
    shapes = llava_onevision.NAMES.shapes(llava_onevision.empty_model(config))
    optional = {llava_onevision.NAMES.head: shapes[llava_onevision.NAMES.embeddings]}

    def read() -> SafetensorsWeights:
        return SafetensorsWeights(folder, ir.DataType.FLOAT, shapes, llava_onevision.NAMES.renames, optional)

    if "lm_head.weight" in report["missing_keys"]:
        # transformers draws it at random.
        assert (bool(top or text), head) == (False, "absent")
        with pytest.raises(PruneVidError, match=r"lacks 1 of .* among them lm_head\.weight"):
            read()
        return
    weights = read()
    weights.refuse_unused(llava_onevision.NAMES.unused)
    stored = text_config.head_is_stored(config, weights, llava_onevision.NAMES)
    found = weights.tensor(llava_onevision.NAMES.head if stored else llava_onevision.NAMES.embeddings).numpy()
    np.testing.assert_array_equal(found, theirs.lm_head.weight.detach().numpy())
    np.testing.assert_array_equal(
        weights.tensor(llava_onevision.NAMES.embeddings).numpy(), theirs.get_input_embeddings().weight.detach().numpy()
    )
    if bool(top or text) and head != "different":
        assert not stored  # the bundle holds the table once


@pytest.mark.parametrize(("top", "text", "head"), [(True, None, "different"), (None, True, "same")])
def test_an_exported_bundle_answers_as_transformers(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, top: bool | None, text: bool | None, head: str
) -> None:
    folder = edited(tiny_checkpoint("qwen2"), tmp_path / "edited", top, text, head)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    frames = render_frames(4, model.config.vision_config.image_size, cuts=(2,))
    content = [{"type": "video"}, {"type": "text", "text": "What moves?"}]
    ids = build_tokenizer().apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
    )
    split = ids.index(IDS["<video>"])
    ids = torch.tensor([[*ids[:split], *[IDS["<video>"]] * (4 * 25 + 1), *ids[split + 1 :]]])
    expected = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=torch.from_numpy(pixel_values(frames))[None],
        max_new_tokens=8,
    )[0, ids.shape[1] :]
    bundle = export("llava-ov", tmp_path / "bundle", checkpoint=str(folder))
    answer = load(bundle.path).ask(frames, "What moves?", prune=False, max_new_tokens=8)
    assert answer.text == build_tokenizer().decode(expected, skip_special_tokens=True)
    assert len(expected) == 8
