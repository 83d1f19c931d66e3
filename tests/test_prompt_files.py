"""The text side of a checkpoint against transformers on the same folder: which template, which special tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import CHAT_TEMPLATE, IDS, VOCABULARY
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin

from prunevid import PruneVidError
from prunevid.bundle import open_bundle
from prunevid.export import export
from prunevid.export.checkpoint.json_files import read_json
from prunevid.export.families import llava_onevision
from prunevid.export.prompt_files import CheckpointPrompt, read_prompt
from prunevid.text.chat import ChatPrompt

JINJA, LEGACY, PROCESSOR = "chat_template.jinja", "chat_template.json", "processor_config.json"
CONFIG, MAP, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
NAMED = "additional_chat_templates/{}.jinja"


def template(mark: str) -> str:
    return mark + CHAT_TEMPLATE


@pytest.fixture
def folder(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint's folder without weights, and without any chat template."""
    copied = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "checkpoint"))
    (copied / "model.safetensors").unlink()
    (copied / JINJA).unlink()
    write(copied, CONFIG, {"chat_template": None})
    return copied


def write(folder: Path, name: str, content: Any) -> None:
    """A file's content; an object is added to what a JSON file has, and None takes keys out."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, dict):
        data = json.loads(path.read_text()) if path.exists() else {}
        data = {key: value for key, value in (data | content).items() if value is not None}
        path.write_text(json.dumps(data))
    else:
        path.write_text(content)


def read(folder: Path) -> CheckpointPrompt:
    path = folder / "config.json"
    config = llava_onevision.parse_config(read_json(path), str(path))
    return read_prompt(folder, config, llava_onevision.placeholder(config), llava_onevision.token_layout(config))


def refused(folder: Path, message: str) -> str:
    with pytest.raises(PruneVidError, match=message) as error:
        read(folder)
    text = str(error.value)
    assert str(folder) in text
    assert "\n" not in text
    return text


# --- which template ----------------------------------------------------------------------------------------

LIST = [{"name": "tool_use", "template": template("t")}, {"name": "default", "template": template("d")}]


@pytest.mark.parametrize(
    "files",
    [
        {JINJA: template("j")},
        {LEGACY: {"chat_template": template("l")}},
        {PROCESSOR: {"chat_template": template("p")}},
        {CONFIG: {"chat_template": template("c")}},
        {CONFIG: {"chat_template": LIST}},
        {JINJA: template("j"), CONFIG: {"chat_template": template("c")}},
        {JINJA: template("j"), LEGACY: {"chat_template": template("l")}},
        {JINJA: template("j"), PROCESSOR: {"chat_template": template("p")}},
        {LEGACY: {"chat_template": template("l")}, PROCESSOR: {"chat_template": template("p")}},
        {JINJA: template("j"), NAMED.format("tool_use"): template("t")},
        {JINJA: template("j"), NAMED.format("tool_use"): template("t"), CONFIG: {"chat_template": LIST}},
        {NAMED.format("default"): template("n"), CONFIG: {"chat_template": template("c")}},
        {PROCESSOR: {"chat_template": {"default": template("d"), "rag": template("r")}}},
    ],
    ids=lambda files: "+".join(Path(name).name for name in files),
)
def test_the_template_is_the_one_that_transformers_takes(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        write(folder, name, content)
    theirs = ProcessorMixin.get_processor_dict(folder)[0].get("chat_template")
    if theirs is None:
        # Without a template of its own, a processor is asked through its tokenizer.
        theirs = AutoTokenizer.from_pretrained(folder).chat_template
    theirs = theirs["default"] if isinstance(theirs, dict) else theirs
    assert theirs.endswith(CHAT_TEMPLATE)
    assert read(folder).template == theirs


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no chat template"),
        ({CONFIG: {"chat_template": LIST[:1]}}, "'tool_use', and none named 'default'"),
        ({CONFIG: {"chat_template": []}}, "no entries, and none named 'default'"),
        ({CONFIG: {"chat_template": [LIST[1], LIST[1]]}}, "two entries named 'default'"),
        ({CONFIG: {"chat_template": ["x"]}}, r"chat_template\[0\] must be an object, not 'x'"),
        ({CONFIG: {"chat_template": [{"name": "default"}]}}, r"chat_template\[0\].template is missing"),
        ({CONFIG: {"chat_template": 7}}, "chat_template must be a Jinja template, .* not 7"),
        ({JINJA: ""}, "0 times"),
        (
            {NAMED.format("rag"): template("r"), CONFIG: {"chat_template": template("c")}},
            "rag, and none is",
        ),
        ({NAMED.format("rag"): template("r"), LEGACY: {"chat_template": template("l")}}, "contradict each other"),
        ({LEGACY: {"template": template("l")}}, "chat_template is missing"),
        ({JINJA: "{{ messages }}"}, "cannot be used: .*0 times"),
        ({JINJA: template("<video>")}, "cannot be used: .*2 times"),
        ({JINJA: "{{ messages[0].content[1].text }}<video>"}, "cannot be used: .*question before the video"),
        ({JINJA: "<video>"}, "cannot be used: .*leaves the question out"),
        ({JINJA: "{{ bos_token }}" + CHAT_TEMPLATE}, "cannot be used: .*'bos_token' is undefined"),
        ({JINJA: "{{ '[INST]' + messages[0].content }}"}, "cannot be used: .*cannot be rendered"),
        ({JINJA: "{% for x in %}"}, "cannot be used: .*not valid"),
        ({JINJA: "{{ raise_exception('only images') }}"}, "cannot be used: .*only images"),
    ],
)
def test_a_template_that_cannot_be_asked_is_refused(folder: Path, files: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        write(folder, name, content)
    refused(folder, message)


# --- special tokens ----------------------------------------------------------------------------------------

BOS = "<|im_start|>"
ADDED = {"content": BOS, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
DECODER = {"added_tokens_decoder": {str(IDS[BOS]): ADDED | {"special": True}}}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {CONFIG: {"bos_token": BOS}},
        {CONFIG: {"bos_token": ADDED | {"__type": "AddedToken", "special": True}}},
        {MAP: {"bos_token": BOS}},
        {MAP: {"bos_token": ADDED}},
        {MAP: {"bos_token": ADDED, "additional_special_tokens": ["<image>", "<video>"]}},
        {CONFIG: {"bos_token": "<|endoftext|>"}, MAP: {"bos_token": BOS}},
        {CONFIG: {"bos_token": BOS} | DECODER, MAP: {"bos_token": "<|endoftext|>"}},
        {CONFIG: {"image_token": "<image>", "video_token": "<video>"}},
        {CONFIG: {"extra_special_tokens": {"image_token": "<image>", "video_token": "<video>"}}},
    ],
)
def test_special_tokens_are_those_of_transformers(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        write(folder, name, content)
    write(folder, JINJA, "{{ bos_token if bos_token is defined }}{{ eos_token }}" + CHAT_TEMPLATE)
    theirs = AutoTokenizer.from_pretrained(folder)
    prompt = read(folder)
    assert prompt.spec.special_tokens == theirs.special_tokens_map
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "why?"}]}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    spec = prompt.spec
    chat = ChatPrompt(prompt.tokenizer, prompt.template, spec.video_token, special_tokens=spec.special_tokens)
    found = chat.encode("why?")
    assert [*found.prefix, IDS["<video>"], *found.suffix] == expected


def test_a_bundle_of_a_llama_like_checkpoint_begins_with_bos(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))
    write(checkpoint, JINJA, "{{ bos_token }}" + CHAT_TEMPLATE)
    write(checkpoint, CONFIG, {"bos_token": "<|endoftext|>"})
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    bos = ("<|endoftext|>", IDS["<|endoftext|>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    bundle = open_bundle(export("llava-ov", tmp_path / "bundle", checkpoint=str(checkpoint)).path)
    assert bundle.manifest.prompt.special_tokens is not None
    assert bundle.manifest.prompt.special_tokens["bos_token"] == "<|endoftext|>"
    prefix = ChatPrompt.of(bundle).encode("why?").prefix.tolist()
    assert prefix[:2] == [IDS["<|endoftext|>"], IDS["<|im_start|>"]]


@pytest.mark.parametrize("value", [7, [], True, {"content": 7}, {"content": None, "x": []}, "x" * 2000])
def test_a_special_token_that_is_none_is_refused(folder: Path, value: Any) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    write(folder, CONFIG, {"bos_token": value})
    if isinstance(value, dict) and value["content"] is None:
        assert "bos_token" not in (read(folder).spec.special_tokens or {})
    else:
        refused(folder, "'bos_token' must be the text of a token")


# --- which tokens end an answer ----------------------------------------------------------------------------

END = IDS["<|im_end|>"]


@pytest.mark.parametrize(
    ("generation", "text", "expected"),
    [
        (END, None, (END,)),
        ([END, 256], None, (256, END)),
        (None, END, (END,)),
        (None, [END, END], (END,)),
        (256, END, (256,)),
        ("absent", END, (END,)),
    ],
)
def test_ends_are_those_of_the_files(folder: Path, generation: Any, text: Any, expected: tuple[int, ...]) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = text
    (folder / "config.json").write_text(json.dumps(config))
    (folder / GENERATION).unlink()
    if generation != "absent":
        (folder / GENERATION).write_text(json.dumps({"eos_token_id": generation}))
    assert read(folder).spec.eos_ids == expected


@pytest.mark.parametrize("value", [-1, VOCABULARY, 2**40, 1.0, float("nan"), "261", True, [], [END, -1], [[END]], {}])
def test_an_end_that_no_token_can_be_is_refused_by_name(folder: Path, value: Any) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    (folder / GENERATION).write_text(json.dumps({"eos_token_id": value}))
    refused(folder, f"{GENERATION}: eos_token_id must be .*a whole number from 0 to {VOCABULARY - 1}")


def test_an_end_that_the_tokenizer_does_not_have_is_refused(folder: Path) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    (folder / GENERATION).write_text(json.dumps({"eos_token_id": VOCABULARY - 1}))
    refused(folder, f"has no token {VOCABULARY - 1} .eos_token_id.")


def test_no_end_at_all_is_refused(folder: Path) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    (folder / GENERATION).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "names no end-of-text token")


# --- tokenizer and config ----------------------------------------------------------------------------------


def test_a_tokenizer_with_more_tokens_than_the_table_has_rows_is_refused(folder: Path) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"more{index}" for index in range(VOCABULARY - tokenizer.get_vocab_size())])
    tokenizer.save(str(folder / "tokenizer.json"))
    read(folder)
    tokenizer.add_tokens(["one too many"])
    tokenizer.save(str(folder / "tokenizer.json"))
    refused(folder, f"'one too many' has the number {VOCABULARY}, and text_config.vocab_size has {VOCABULARY} rows")


@pytest.mark.parametrize("token", [ord("a"), VOCABULARY - 1, IDS["<image>"]])
def test_another_video_token_than_the_templates_is_refused(folder: Path, token: int) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    write(folder, "config.json", {"video_token_index": token})
    refused(folder, "no token 271|0 times|no special token")


def test_more_prompt_than_positions_is_refused(folder: Path) -> None:
    write(folder, JINJA, CHAT_TEMPLATE)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "max_position_embeddings must be more than .* not 16")
