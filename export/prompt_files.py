"""The text side of a checkpoint: tokenizer, chat template, special tokens, and which tokens end an answer.

All of it is tried before anything is written: a prompt is rendered and encoded once, so that a bundle that was
exported can be asked. Which file wins is transformers' order (`ProcessorMixin` and `PreTrainedTokenizerBase`).
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunevid.bundle import PromptSpec
from prunevid.bundle.sections.layout import TokenLayout
from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.json_files import find_file, read_json, read_text
from prunevid.export.checkpoint.schema import Section, conform, either, list_of, optional, refuse, text, whole
from prunevid.export.families.family import ChatFormat
from prunevid.files import reading
from prunevid.text.chat import ChatPrompt
from prunevid.text.process import TextProcess

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
_TEMPLATES = "additional_chat_templates"
_PROCESSOR = "processor_config.json"
_LEGACY = "chat_template.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_GENERATION = "generation_config.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class CheckpointPrompt:
    """A checkpoint's tokenizer and chat template, which were tried together."""

    tokenizer: Path
    template: str
    spec: PromptSpec

    def write(self, folder: Path) -> PromptSpec:
        """Put both into the bundle; returns what the manifest says of them."""
        shutil.copyfile(self.tokenizer, folder / TOKENIZER)
        (folder / CHAT_TEMPLATE).write_text(self.template, encoding="utf-8")
        return self.spec


def read_prompt(checkpoint: Path, config: Any, placeholder: int, layout: TokenLayout) -> CheckpointPrompt:
    """The text side of a checkpoint, found to be usable.

    placeholder: the number of the token that stands for the video, or for each of its frames. layout: which of the two,
    and what else stands among visual tokens. Raises PruneVidError where a file is missing or damaged, where tokenizer
    and config disagree, and where the template cannot be rendered with a video and a question behind it.
    """
    tokenizer = find_file(checkpoint, TOKENIZER)
    if not tokenizer:
        raise PruneVidError(f"the checkpoint {checkpoint} lacks {TOKENIZER}: save its fast tokenizer there")
    template, source = _chat_template(checkpoint)
    special = _special_tokens(checkpoint)
    eos_ids = _eos_ids(checkpoint, config)
    tokens = TextProcess(tokenizer, "")
    try:
        last, text_of_last = tokens.last_token()
    except PruneVidError as error:
        if TOKENIZER in str(error):
            raise
        raise PruneVidError(f"{tokenizer} cannot be used: {error}") from error
    rows = config.text_config.vocab_size
    if last >= rows:
        raise PruneVidError(
            f"{tokenizer}: the token {text_of_last[:80]!r} has the number {last}, and text_config.vocab_size has "
            f"{rows} rows: the tokenizer is of another model"
        )
    video_token = tokens.id_to_token(placeholder)
    if video_token is None:
        raise PruneVidError(f"the tokenizer of {checkpoint} has no token {placeholder}, the config's video token")
    for token in eos_ids:
        if tokens.id_to_token(token) is None:
            raise PruneVidError(
                f"the tokenizer of {checkpoint} has no token {token} (eos_token_id) to end answers with"
            )
    spec = PromptSpec(
        tokenizer=TOKENIZER,
        chat_template=CHAT_TEMPLATE,
        video_token=video_token,
        eos_ids=eos_ids,
        max_positions=config.text_config.max_position_embeddings,
        special_tokens=special,
    )
    try:
        prompt = ChatPrompt(
            tokenizer, template, video_token, eos_ids, special_tokens=special, placeholder=layout.placeholder
        )
    except PruneVidError as error:
        raise PruneVidError(f"{source} cannot be used: {error}") from error
    if spec.max_positions <= prompt.least_tokens + len(layout.after_video):
        allowed = f"more than the {prompt.least_tokens} tokens around a video"
        raise refuse(
            str(checkpoint / "config.json"), "text_config.max_position_embeddings", spec.max_positions, allowed
        )
    return CheckpointPrompt(tokenizer, template, spec)


def prompt_of_bytes(folder: Path, chat: ChatFormat, max_positions: int) -> PromptSpec:
    """Write a byte-level tokenizer with a chat format's special tokens, for a bundle of random weights.

    Every byte of a text is a token, three to four times as many as a real tokenizer makes of English.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    free = (number for number in itertools.count() if number not in chat.special_tokens.values())
    vocabulary = dict(zip(alphabet, free, strict=False))
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **chat.special_tokens}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in chat.special_tokens]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / TOKENIZER))
    (folder / CHAT_TEMPLATE).write_text(chat.template, encoding="utf-8")
    return PromptSpec(TOKENIZER, CHAT_TEMPLATE, chat.video_token, (chat.special_tokens[chat.end],), max_positions)


def _chat_template(checkpoint: Path) -> tuple[str, Path]:
    """The template that a processor of transformers would render, or else its tokenizer, and the file it is from."""
    processor, legacy = find_file(checkpoint, _PROCESSOR), find_file(checkpoint, _LEGACY)
    if processor and (found := read_json(processor).get("chat_template")) is not None:
        return _default_of(found, processor), processor
    named = _additional_templates(checkpoint)
    if legacy:
        if named:
            raise PruneVidError(f"{legacy} and {checkpoint / _TEMPLATES} contradict each other: remove one of them")
        found = read_json(legacy).get("chat_template")
        if found is None:
            raise PruneVidError(f"{legacy}: chat_template is missing: this file must have it")
        return _default_of(found, legacy), legacy
    if single := find_file(checkpoint, CHAT_TEMPLATE):
        return read_text(single), single
    if "default" in named:
        path = checkpoint / _TEMPLATES / "default.jinja"
        return read_text(path), path
    if named:
        raise PruneVidError(
            f"the checkpoint {checkpoint} has the chat templates {', '.join(sorted(named))}, and none is the default: "
            f"write the one for questions about a video into {CHAT_TEMPLATE}"
        )
    config = find_file(checkpoint, _TOKENIZER_CONFIG)
    if config and (found := read_json(config).get("chat_template")) is not None:
        return _default_of(found, config), config
    raise PruneVidError(f"the checkpoint {checkpoint} has no chat template ({CHAT_TEMPLATE}): save its processor there")


def _additional_templates(checkpoint: Path) -> list[str]:
    folder = checkpoint / _TEMPLATES
    with reading(folder):
        return [path.stem for path in folder.glob("*.jinja")] if folder.is_dir() else []


def _default_of(found: Any, file: Path) -> str:
    """The default of what a file has as its chat template: a text, or several by name."""
    entry = Section({"name": text(200), "template": text(1 << 20)}, required=("name", "template"))
    if isinstance(found, list):
        templates = {}
        for index, item in enumerate(found):
            known = conform(item, entry, str(file), f"chat_template[{index}]")
            if known["name"] in templates:
                raise PruneVidError(f"{file}: chat_template has two entries named {known['name']!r}")
            templates[known["name"]] = known["template"]
    elif isinstance(found, dict):
        templates = found
    else:
        templates = {"default": found}
    if "default" not in templates:
        names = ", ".join(repr(name)[:40] for name in list(templates)[:8])
        raise PruneVidError(
            f"{file}: chat_template has {names or 'no entries'}, and none named 'default': "
            f"write the one for questions about a video into {CHAT_TEMPLATE}"
        )
    template = templates["default"]
    if not isinstance(template, str) or not template:
        raise refuse(str(file), "chat_template", template, "a Jinja template, or a list of {name, template}")
    return template


def _special_tokens(checkpoint: Path) -> dict[str, str]:
    """The tokenizer's named tokens, which transformers gives to a template as variables."""
    newer, older = find_file(checkpoint, _TOKENIZER_CONFIG), find_file(checkpoint, _SPECIAL_TOKENS)
    data = read_json(newer) if newer else {}
    found = _token_entries(data, newer) if newer else {}
    # The older file counts only where the newer one does not list the added tokens.
    if older and "added_tokens_decoder" not in data:
        found |= _token_entries(read_json(older), older)
    return {name: token for name, token in found.items() if token}


def _token_entries(data: dict[str, Any], file: Path) -> dict[str, str]:
    """Keys such as bos_token, whose value is a text or an object with the text in it; null entries are empty texts."""
    extra = data.get("extra_special_tokens")
    entries = {name: value for name, value in data.items() if name in _NAMED}
    entries |= {n: v for n, v in data.items() if n.endswith("_token") and isinstance(v, (str, dict))}
    entries |= extra if isinstance(extra, dict) else {}
    found: dict[str, str] = {}
    for name, value in entries.items():
        content = value.get("content") if isinstance(value, dict) else value
        if content is not None and not (isinstance(content, str) and len(content) <= 1000):
            raise refuse(str(file), repr(name[:80]), value, "the text of a token, or an object with its content")
        if not (name.isidentifier() and name.endswith("_token")):
            continue  # no template can ask for it
        found[name] = content or ""
    return found


def _eos_ids(checkpoint: Path, config: Any) -> tuple[int, ...]:
    rows = config.text_config.vocab_size
    token = whole(0, rows - 1)
    tokens = optional(either(token, list_of(token, 1, 64)))
    file = find_file(checkpoint, _GENERATION)
    found = conform(read_json(file), Section({"eos_token_id": tokens}), str(file)) if file else {}
    value = found.get("eos_token_id")
    if value is None:
        source = str(checkpoint / "config.json")
        value = getattr(config.text_config, "eos_token_id", None)
        if value is None:
            value = getattr(config, "eos_token_id", None)
        conform({"eos_token_id": value}, Section({"eos_token_id": tokens}), source, "text_config")
    if value is None:
        raise PruneVidError(f"the checkpoint {checkpoint} names no end-of-text token: add generation_config.json")
    return tuple(sorted(set(value))) if isinstance(value, list) else (value,)
