"""The text and pixel side of a bundle: tokenizer, chat template, special tokens, preprocessing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prunevid.bundle import PromptSpec
from prunevid.errors import PruneVidError
from prunevid.export.catalog import read_json
from prunevid.preprocessing import Preprocessing

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"

# The chat format of LLaVA-OneVision (Qwen2's, with the video on the first line), for bundles without a checkpoint.
_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }} {% for content in message['content'] if content['type'] == 'video' %}<video>
{% endfor %}{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
# Qwen2's special tokens, which LLaVA-OneVision extends.
_SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<image>": 151646,
    "<video>": 151647,
}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


def prompt_from_checkpoint(checkpoint: Path, folder: Path, config: Any) -> PromptSpec:
    """Copy tokenizer and chat template of a checkpoint into the bundle; returns what the manifest says of them."""
    if not (checkpoint / TOKENIZER).is_file():
        raise PruneVidError(f"the checkpoint {checkpoint} lacks {TOKENIZER}: save its fast tokenizer there")
    shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)
    (folder / CHAT_TEMPLATE).write_text(_chat_template(checkpoint), encoding="utf-8")
    return PromptSpec(
        tokenizer=TOKENIZER,
        chat_template=CHAT_TEMPLATE,
        video_token=_video_token(checkpoint, config.video_token_id),
        eos_ids=_eos_ids(checkpoint, config),
        max_positions=config.text_config.max_position_embeddings,
    )


def prompt_of_bytes(folder: Path, config: Any) -> PromptSpec:
    """Write a byte-level tokenizer with LLaVA-OneVision's special tokens, for a bundle of random weights.

    Every byte of a text is a token, three to four times as many as the real tokenizer makes of English.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **_SPECIAL}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(folder / TOKENIZER))
    (folder / CHAT_TEMPLATE).write_text(_TEMPLATE, encoding="utf-8")
    return PromptSpec(
        TOKENIZER,
        CHAT_TEMPLATE,
        "<video>",
        (_SPECIAL["<|im_end|>"],),
        config.text_config.max_position_embeddings,
    )


def preprocessing_from_checkpoint(checkpoint: Path, size: int) -> Preprocessing:
    """Preprocessing as the checkpoint's processor files have it, at the tower's ``size``; by default SigLIP's."""
    data: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if (checkpoint / name).is_file():
            found = read_json(checkpoint / name)
            data.update(found.get("video_processor") or found)
    default = default_preprocessing(size)
    resample = _RESAMPLING.get(data.get("resample", 3))
    if resample is None:
        raise PruneVidError(f"the checkpoint {checkpoint} resizes with PIL filter {data['resample']}: not supported")
    return Preprocessing(
        size=size,
        mean=_triple(data.get("image_mean"), default.mean),
        std=_triple(data.get("image_std"), default.std),
        rescale=float(data.get("rescale_factor", default.rescale)),
        resample=resample,
    )


def default_preprocessing(size: int) -> Preprocessing:
    """SigLIP's preprocessing: bicubic to a square, then to the range -1 to 1."""
    return Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255, "bicubic")


def _triple(values: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if values is None:
        return default
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _chat_template(checkpoint: Path) -> str:
    path = checkpoint / CHAT_TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (checkpoint / name).is_file() and isinstance(
            template := read_json(checkpoint / name).get("chat_template"), str
        ):
            return template
    raise PruneVidError(f"the checkpoint {checkpoint} has no chat template ({CHAT_TEMPLATE}): save its processor there")


def _video_token(checkpoint: Path, video_id: int) -> str:
    entries = read_json(checkpoint / TOKENIZER).get("added_tokens", [])
    for entry in entries:
        if entry.get("id") == video_id:
            return str(entry["content"])
    raise PruneVidError(f"the tokenizer of {checkpoint} has no token {video_id}, the config's video token")


def _eos_ids(checkpoint: Path, config: Any) -> tuple[int, ...]:
    path = checkpoint / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    if found is None:
        found = getattr(config.text_config, "eos_token_id", None)
    if found is None:
        raise PruneVidError(f"the checkpoint {checkpoint} names no end-of-text token: add generation_config.json")
    return tuple(found) if isinstance(found, list) else (int(found),)
