"""What somebody who means harm would put into a bundle: templates, tokenizers and graphs that never end or grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["GRAPHS", "TEMPLATES", "TOKENIZERS", "hostile_graph", "tokenizer_hostile"]

_LOOPS = "{% for a in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4
# By name; @ is replaced by the whole template, so that what comes beside the harm is right.
TEMPLATES = {
    "power": "{{ 'a' * 10**10 }}@",
    "power of power": "{{ 9**9**9 }}@",
    "long number": "{{ (10**100000)|string }}@",
    "nested loops": _LOOPS,
    "nested loops, quiet": _LOOPS.replace("x", "") + "@",
    "large range": "{{ range(10**12)|list|length }}@",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}@{{ n.s }}",
    "doubling list": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}@",
    "recursion": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}@",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}@",
    "many recursions": "{% macro m(x) %}{% if x %}{{ m(x - 1) }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(90) }}@",
    "wide format": "{{ '%0999999999d' | format(1) }}@",
    "wide format method": "{{ '{:>99999999999}'.format(1) }}@",
    "center": "{{ 'a' | center(10**10) }}@",
    "indent": "{{ ('a\\n' * 10**6) | indent(10**5) }}@",
    "lorem": "{{ lipsum(n=10**7) }}@",
    "join": "{{ ['a' * 10**6] * 10**5 | join }}@",
    "join range": "{{ range(99999) | join('a' * 99999) }}@",
    "replace": "{{ ('a' * 10**5) | replace('a', 'a' * 10**5) }}@",
    "sort": "{{ (range(99999) | list * 99) | sort | length }}@",
    "attribute": "{{ messages.__class__.__mro__[1].__subclasses__() }}@",
    "private": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}@",
    "import": "{% import '/etc/passwd' as x %}@",
    "include": "{% include '../secret' %}@",
    "extends": "{% extends 'x' %}@",
    "raise": "{{ raise_exception('first\\nsecond\\nthird') }}@",
    "division": "{{ 1 / 0 }}@",
    "shift": "{{ 1 << 10**9 }}@",
    "time": "{{ strftime_now('%Y' * 10**6) }}@",
    "time with NUL": "{{ strftime_now('\\x00') }}@",
    "surrogate": "{{ '\\ud800' }}@",
    "surrogate literal": '{{ "\\udcff" }}@',
    "unknown filter": "{{ 1 | nobody }}@",
    "undefined": "{{ nobody }}@",
    "undefined deep": "{{ nobody.knows.this }}@",
    "json": "{{ messages | tojson(indent=10**9) }}@",
    "json circle": "{% set n = namespace() %}{% set n.n = n %}{{ n | tojson }}@",
    "two videos": "@@",
    "no video": "{{ messages[0]['role'] }}",
    "question first": "{{ messages[-1]['content'][-1]['text'] }}@",
    "many special tokens": "{{ '<|im_start|>' * 5000 }}@",
    "long": "{{ 'blue ' * 100000 }}@",
    "deep parentheses": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}@",
    "deep ifs": "{% if 1 %}" * 500 + "@" + "{% endif %}" * 500,
    "endless minus": "{{ " + "-" * 5000 + "1 }}@",
    "unclosed": "{% for a in messages %}@",
    "regex filter": "{{ ('a' * 50000) | wordwrap(1) | length }}@",
    "urlize": "{{ ('http://a.b/' * 50000) | urlize | length }}@",
    "html": "{{ ('<' * 100000) | striptags }}@",
    "slice": "{{ (range(99999) | list | slice(99999) | list) | length }}@",
    "batch": "{{ (range(9) | batch(10**9, 'x') | list) | length }}@",
    "group": "{{ messages | groupby('role' * 10**6) | list }}@",
    "quiet": "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}@",
}

_GROWING = [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 60
_SLOW = {"Regex": "(a|a|e|e|i|.)*(a|e|.)*(a|.)*z$"}


def _normalizer(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update(normalizer=value)


def _pre_tokenizer(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update(pre_tokenizer=value)


def _decoder(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update(decoder=value)


def _added(value: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    whole = {"id": 99, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return lambda tokenizer: tokenizer["added_tokens"].append({**whole, **value})


def _model(value: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update(model=value)


def _template(ids: list[int]) -> Callable[[dict[str, Any]], None]:
    part = [{"SpecialToken": {"id": "x", "type_id": 0}}]
    special = {"x": {"id": "x", "ids": ids, "tokens": ["x"] * len(ids)}}
    processor = {"type": "TemplateProcessing", "single": part, "pair": part, "special_tokens": special}
    return lambda tokenizer: tokenizer.update(post_processor=processor)


def _vocabulary(ids: dict[str, int]) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer["model"]["vocab"].update(ids)


TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "growing": _normalizer({"type": "Sequence", "normalizers": _GROWING}),
    "growing much": _normalizer({"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 2_000_000}),
    "prepending": _normalizer({"type": "Prepend", "prepend": "x" * 20_000_000}),
    "slow pattern": _normalizer({"type": "Replace", "pattern": _SLOW, "content": ""}),
    "empty pattern": _normalizer({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
    "endless pattern": _normalizer({"type": "Replace", "pattern": {"Regex": "()*"}, "content": "x"}),
    "bad pattern": _normalizer({"type": "Replace", "pattern": {"Regex": "(["}, "content": "x"}),
    "character map": _normalizer({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
    "character map of noise": _normalizer({"type": "Precompiled", "precompiled_charsmap": "/////w8AAAD///8P" * 9}),
    "deep sequence": _normalizer({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}] * 99}),
    "slow split": _pre_tokenizer({"type": "Split", "pattern": _SLOW, "behavior": "Isolated", "invert": False}),
    "bytes without alphabet": _pre_tokenizer({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}),
    "long replacement": _pre_tokenizer({"type": "Metaspace", "replacement": "xx", "prepend_scheme": "always"}),
    "growing decoder": _decoder({"type": "Sequence", "decoders": _GROWING}),
    "slow decoder": _decoder({"type": "Replace", "pattern": _SLOW, "content": "x"}),
    "strip decoder": _decoder({"type": "Strip", "content": " ", "start": 2**40, "stop": 2**40}),
    "CTC decoder": _decoder({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}),
    "empty added token": _added({"content": ""}),
    "space as a token": _added({"content": " ", "normalized": True}),
    "huge id": _added({"content": "far", "id": 2**32 - 1}),
    "id of another": _added({"content": "other", "id": 5}),
    "long token": _added({"content": "x" * 1_000_000}),
    "letter as a token": _added({"content": "e", "single_word": True, "special": True}),
    "huge vocabulary id": _vocabulary({"far": 2**32 - 1}),
    "outside the table": _vocabulary({"which": 60_000, "triangle": 1_000_000}),
    "same ids": _vocabulary({"which": 5, "triangle": 5}),
    "truncating": lambda t: t.update(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 9}
    ),
    "padding": lambda t: t.update(
        padding={
            "strategy": {"Fixed": 2**40},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "template": _template([2**31]),
    "long template": _template([1] * 200_000),
    "empty model": _model({"type": "BPE", "vocab": {}, "merges": []}),
    "merges of nothing": _model({"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}),
    "no numbers": _model({"type": "Unigram", "unk_id": 0, "vocab": [["<video>", 0.0], ["e", float("nan")]]}),
    "unknown id": _model({"type": "Unigram", "unk_id": 10**9, "vocab": [["<video>", 0.0]]}),
    "endless word": _model(
        {
            "type": "WordPiece",
            "unk_token": "no",
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 2**60,
            "vocab": {"<video>": 5},
        }
    ),
}


def tokenizer_hostile(rng: Random, folder: Path) -> str:
    """Make the tokenizer of a bundle or checkpoint one of these; returns which."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    name = rng.choice(list(TOKENIZERS))
    TOKENIZERS[name](tokenizer)
    path.write_text(json.dumps(tokenizer))
    return name


# Graphs


def _loop(model: Any, folder: Path) -> None:
    from onnx import TensorProto, helper

    true = helper.make_tensor("fuzz_true", TensorProto.BOOL, [], [True])
    info = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("c_in", "c_out")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["c_in"], ["c_out"])], "body", [count, info[0]], [info[1]])
    model.graph.initializer.append(true)
    model.graph.node.insert(0, helper.make_node("Loop", ["", "fuzz_true"], [], body=body, name="endless"))


def _large(model: Any, folder: Path) -> None:
    from onnx import TensorProto, helper

    shape = helper.make_tensor("fuzz_shape", TensorProto.INT64, [2], [200_000, 100_000])
    one = helper.make_tensor("fuzz_one", TensorProto.FLOAT, [1], [1.0])
    model.graph.initializer.extend([shape, one])
    model.graph.node.insert(0, helper.make_node("Expand", ["fuzz_one", "fuzz_shape"], ["fuzz_large"]))
    model.graph.output.append(helper.make_tensor_value_info("fuzz_large", TensorProto.FLOAT, None))


def _recursive(model: Any, folder: Path) -> None:
    from onnx import helper

    node = helper.make_node("Me", ["x"], ["y"], domain="prunevid")
    opsets = [helper.make_opsetid("prunevid", 1), helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("prunevid", "Me", ["x"], ["y"], [node], opsets))


def _external(location: Callable[[Path], str], **more: str) -> Callable[[Any, Path], None]:
    """An initializer that no node uses, with its data in another place."""

    def add(model: Any, folder: Path) -> None:
        from onnx import TensorProto

        (folder.parent / "secret").write_bytes(b"secret" * 100)
        tensor = model.graph.initializer.add(name="fuzz_stolen", data_type=TensorProto.UINT8)
        tensor.dims.append(600)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location(folder), "offset": "0", "length": "600", **more}.items():
            tensor.external_data.add(key=key, value=value)

    return add


def _own(key: str, value: str) -> Callable[[Any, Path], None]:
    """Another place of the weights that there are."""

    def change(model: Any, folder: Path) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value
                    return

    return change


def _sparse(model: Any, folder: Path) -> None:
    tensor = model.graph.sparse_initializer.add()
    tensor.dims.append(2**40)
    tensor.values.name = "fuzz_sparse"


def _metadata(model: Any, folder: Path) -> None:
    model.metadata_props.add(key="session.disable_prepacking", value="x" * 1_000_000)
    model.producer_name = "\n" * 100


GRAPHS: dict[str, Callable[[Any, Path], None]] = {
    "endless loop": _loop,
    "large output": _large,
    "recursive function": _recursive,
    "file outside": _external(lambda folder: "../secret"),
    "file by absolute path": _external(lambda folder: str(folder.parent / "secret")),
    "system file": _external(lambda folder: "/etc/passwd", length="20"),
    "endless device": _external(lambda folder: "/dev/zero"),
    "file that is a link": _external(lambda folder: _made(folder, "link")),
    "file that is a pipe": _external(lambda folder: _made(folder, "pipe")),
    "file that is a folder": _external(lambda folder: "."),
    "the manifest": _external(lambda folder: "manifest.json"),
    "the graph itself": _external(lambda folder: "llm_pre.onnx"),
    "no such file": _external(lambda folder: "nowhere"),
    "empty location": _external(lambda folder: ""),
    "NUL in location": _external(lambda folder: "a\0b"),
    "long location": _external(lambda folder: "x" * 10_000),
    "memory address": _external(lambda folder: "*/_ORT_MEM_ADDR_/*", offset="4096"),
    "negative offset": _own("offset", "-4096"),
    "offset behind the end": _own("offset", str(2**40)),
    "offset of many digits": _own("offset", "9" * 400),
    "offset that is no number": _own("offset", "0x10"),
    "negative length": _own("length", "-1"),
    "huge length": _own("length", str(2**62)),
    "short length": _own("length", "4"),
    "sparse": _sparse,
    "metadata": _metadata,
}


def _made(folder: Path, what: str) -> str:
    """Something in the bundle that is no file, by its name."""
    import os

    path = folder / f"fuzz-{what}"
    if what == "link":
        path.symlink_to("../secret")
    else:
        os.mkfifo(path)
    return path.name


def hostile_graph(rng: Random, data: bytes, folder: Path) -> tuple[bytes, str]:
    """One of GRAPHS done to an ONNX model that lies in `folder`; returns it and which."""
    import onnx

    name = rng.choice(list(GRAPHS))
    model = onnx.ModelProto.FromString(data)
    GRAPHS[name](model, folder)
    return bytes(model.SerializeToString()), name
