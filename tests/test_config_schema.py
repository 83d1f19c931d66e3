"""Malformed config.json files: each ends in one sentence with file, key, value and what is allowed, before any work."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunevid import PruneVidError
from prunevid.export.catalog import shipped_config
from prunevid.export.checkpoint.json_files import find_file, read_json
from prunevid.export.checkpoint.schema import Section, conform, list_of, number, one_of, whole
from prunevid.export.families import family_of, llava_onevision
from prunevid.models import KNOWN

NAN, INFINITY = float("nan"), float("inf")
# What no key of a kind may be.
BAD: dict[str, list[Any]] = {
    "count": [None, True, 0, -1, 10**9, 10**12, 10**400, 0.5, 2.0, NAN, INFINITY, "8", "", [], [4], {}, {"a": 1}],
    "number": [None, True, -1, -1e-9, 1e300, 10**400, NAN, INFINITY, -INFINITY, "1e-6", [], [1e-6], {}],
    "token": [None, True, -1, 10**9, 2**40, 0.5, NAN, "8", [], [8], {}],
    "flag": [None, 0, 1, 0.0, "true", "false", "", [], [True], {}],
    "section": [None, True, 0, 7, 0.5, "", "text", [], [{}]],
    "name": [None, True, 0, 7, NAN, "", "nonsense", "x" * 100_000, "a\nb", "\ud800", [], ["silu"], {}],
}
KEYS = {
    "text_config": "section",
    "vision_config": "section",
    "tie_word_embeddings": "flag",
    "multimodal_projector_bias": "flag",
    "projector_hidden_act": "name",
    "vision_feature_select_strategy": "name",
    "video_token_index": "token",
    "image_token_index": "token",
    "video_token_id": "token",
    **{
        f"text_config.{key}": "count"
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    },
    "text_config.model_type": "name",
    "text_config.rms_norm_eps": "number",
    "text_config.rope_theta": "number",
    "text_config.rope_parameters.rope_theta": "number",
    "text_config.rope_parameters.rope_type": "name",
    "text_config.rope_scaling.factor": "number",
    "text_config.rope_scaling.type": "name",
    "text_config.tie_word_embeddings": "flag",
    "text_config.use_sliding_window": "flag",
    "text_config.attention_bias": "flag",
    "text_config.mlp_bias": "flag",
    **{
        f"vision_config.{key}": "count"
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_channels",
            "image_size",
            "patch_size",
        )
    },
    "vision_config.model_type": "name",
    "vision_config.hidden_act": "name",
    "vision_config.layer_norm_eps": "number",
    "vision_config.vision_use_head": "flag",
}
MUTATIONS = [(key, value) for key, kind in KEYS.items() for value in BAD[kind]]


def base() -> dict[str, Any]:
    return copy.deepcopy(shipped_config(KNOWN["demo"]))


def change(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    inner = data
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return data


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(PruneVidError) as error:
        llava_onevision.parse_config(data, "/models/it/config.json")
    text = str(error.value)
    assert "/models/it/config.json" in text
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize("key", KEYS)
def test_every_bad_value_of_a_key_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    import transformers

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("transformers saw it")

    monkeypatch.setattr(transformers.LlavaOnevisionConfig, "from_dict", never)
    for value in BAD[KEYS[key]]:
        text = refused(change(base(), key, value))
        assert key in text, (value, text)
        assert "must be" in text, (value, text)


def test_there_are_a_few_hundred_of_them() -> None:
    assert len(MUTATIONS) > 350


@pytest.mark.parametrize("name", KNOWN)
def test_configs_as_they_are_pass(name: str) -> None:
    # What the mutations above change must be all that is wrong with them.
    data = shipped_config(KNOWN[name])
    family = family_of(data, name)
    config = family.parse_config(data, name)
    assert family.decoder_spec(config).shape.layers == config.text_config.num_hidden_layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_config.num_key_value_heads": 3},
            r"num_key_value_heads must be a divisor of num_attention_heads 4, not 3",
        ),
        (
            {"text_config.num_key_value_heads": 8},
            r"num_key_value_heads must be a divisor of num_attention_heads 4, not 8",
        ),
        ({"text_config.num_attention_heads": 3}, r"num_attention_heads must be a divisor of hidden_size 128, not 3"),
        ({"text_config.num_attention_heads": 128}, r"head_dim must be even.* not 1"),
        ({"text_config.head_dim": 25}, r"head_dim must be an even number .* not 25"),
        ({"text_config.layer_types": ["full_attention"]}, r"layer_types must be a list of num_hidden_layers 7"),
        (
            {"vision_config.num_attention_heads": 5},
            r"vision_config.num_attention_heads must be a divisor of .*96, not 5",
        ),
        ({"vision_config.patch_size": 129}, r"patch_size must be no larger than image_size 128, not 129"),
        ({"vision_config.patch_size": 1, "vision_config.image_size": 4096}, r"patch_size must be such that .* patches"),
        ({"vision_feature_layer": 3}, r"vision_feature_layer must be 1 to 2.* -1 to -2, not 3"),
        ({"vision_feature_layer": 0}, r"vision_feature_layer must be 1 to 2.* -1 to -2, not 0"),
        ({"vision_feature_layer": [-1, -4]}, r"vision_feature_layer must be 1 to 2.* -1 to -2, not -4"),
        ({"vision_feature_layer": []}, r"vision_feature_layer must be"),
        ({"vision_feature_layer": 0.5}, r"vision_feature_layer must be"),
        ({"vision_feature_select_strategy": "default"}, r"vision_feature_select_strategy must be 'full'"),
        ({"video_token_index": 61}, r"video_token_index must be below text_config.vocab_size 61, not 61"),
        ({"video_token_id": 4}, r"video_token_id must be 5, as video_token_index is, not 4"),
        ({"text_config.rope_scaling": {"type": "linear"}}, r"rope_scaling.factor is missing"),
        ({"text_config.rope_scaling": {"type": "mrope", "mrope_section": [1]}}, r"rope_scaling.type must be"),
        ({"text_config.rope_scaling": {"type": "linear", "factor": 2, "ntk": 1}}, r"rope_scaling.ntk' is 1"),
        ({"text_config.rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2}}, r"type must be 'yarn'"),
        (
            {
                "text_config.rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                }
            },
            r"high_freq_factor must be above low_freq_factor 4, not 4",
        ),
        ({"text_config.partial_rotary_factor": 0.5}, r"partial_rotary_factor must be 1, or null"),
        ({"text_config.eos_token_id": -1}, r"eos_token_id must be"),
        ({"text_config.eos_token_id": [3, None]}, r"eos_token_id must be"),
        ({"text_config.eos_token_id": "3"}, r"eos_token_id must be .* not '3'"),
        ({"text_config.eos_token_id": 3.0}, r"eos_token_id must be .* not 3.0"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config must be null .*not quantized"),
        ({"text_config.quantization_config": {"bits": 4}}, r"text_config.quantization_config must be null"),
        ({"text_config.per_layer_config": {"0": {}}}, r"per_layer_config must be null"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    data = base()
    for key, value in changes.items():
        change(data, key, value)
    with pytest.raises(PruneVidError, match=message):
        llava_onevision.parse_config(data, "config.json")
    refused(data)


@pytest.mark.parametrize("key", ["text_config", "vision_config"])
def test_a_missing_section_is_refused_by_name(key: str) -> None:
    data = base()
    del data[key]
    assert f"{key} is missing" in refused(data)


def test_what_changes_nothing_may_be_anything() -> None:
    data = base() | {"image_grid_pinpoints": "none", "torch_dtype": 7, "id2label": [], "num_labels": -1}
    data["text_config"] |= {"attention_dropout": "x", "rms_norm_eps": 1, "factor": 2.0, "type": "linear"}
    config = llava_onevision.parse_config(data, "it")
    assert config.text_config.rms_norm_eps == 1.0
    assert config.text_config.rope_parameters["rope_type"] == "default"


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"\xff\xfe{\x00}\x00", "is damaged"),
        (b"\xef\xbb\xbf{}", "is damaged .*BOM"),
        (b'{"a": "\xff"}', "is damaged"),
        (b"[" * 200_000, "is damaged"),
        (b'{"a":' * 200_000, "is damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(PruneVidError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_endless_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    with pytest.raises(PruneVidError, match="is larger than 64 MB"):
        read_json(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "cannot read .*config.json: it is a folder"),
        (
            lambda path: path.symlink_to("nowhere"),
            "cannot read .*config.json: it is a link to a file that is not there",
        ),
        (lambda path: path.symlink_to(path.name), "cannot read .*config.json: "),
        (lambda path: path.symlink_to(path.parent), "cannot read .*config.json: it is a folder"),
        (lambda path: os.mkfifo(path), "cannot read .*config.json: it is no plain file"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(PruneVidError, match=message):
        find_file(tmp_path, "config.json")
    assert find_file(tmp_path, "other.json") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0)
    with pytest.raises(PruneVidError, match="cannot read .*Permission denied"):
        read_json(tmp_path / "config.json")


# --- the schema itself -------------------------------------------------------------------------------------


def test_rules_say_what_they_allow() -> None:
    section = Section({"a": whole(1, 3), "b": list_of(number(0, 1), 1, 2), "c": one_of("x", None)}, closed=True)
    assert conform({"a": 2, "b": [0, 0.5], "c": None, "d": None}, section, "f") == {"a": 2, "b": [0, 0.5], "c": None}
    for data, sentence in (
        ({"a": 4}, "f: a must be a whole number from 1 to 3, not 4"),
        ({"b": [0, 2]}, "f: b must be a list of 1 to 2 entries, each a number from 0 to 1, not a list of 2"),
        ({"c": "y" * 100}, f"f: c must be 'x' or null, not '{'y' * 59}..."),
        ({"e": 1}, "f: 'e' is 1, and what that asks for is not known: remove it if it changes nothing"),
        ([], "f: its content must be an object, not a list of 0"),
    ):
        with pytest.raises(PruneVidError) as error:
            conform(data, section, "f")
        assert str(error.value) == sentence
