"""Where weights come from: what is read is what was saved, and damaged files are refused in one sentence."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from prunevid import PruneVidError
from prunevid.export.checkpoint import weights as weight_reading
from prunevid.export.checkpoint.weights import RandomWeights, SafetensorsWeights, StreamedTensor
from prunevid.export.families import llava_onevision

Array = npt.NDArray[Any]

SHAPES = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (5, 3, 2, 2)}
TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
GIVEN = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def one_line(error: pytest.ExceptionInfo[PruneVidError]) -> str:
    """The message, which must be one line without a Python representation of an exception in it."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("stored", TORCH)
def test_tensors_are_what_was_saved(tmp_path: Path, stored: str, given: ir.DataType) -> None:
    saved = tensors(TORCH[stored])
    save_file(saved, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(tmp_path, given, SHAPES)
    assert weights.dtype == given
    for name, tensor in saved.items():
        found = weights.tensor(name)
        assert found.dtype == given
        assert tuple(found.shape) == SHAPES[name]
        expected = tensor.to(GIVEN[given]).numpy()
        assert found.numpy().dtype == expected.dtype
        np.testing.assert_array_equal(found.numpy(), expected)
        assert found.nbytes == expected.nbytes


@pytest.mark.parametrize("block", [1, 5, 8, 1 << 22])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_blocks_are_the_tensor_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, transpose: bool, block: int
) -> None:
    monkeypatch.setattr(weight_reading, "_BLOCK", block)
    saved = tensors(TORCH[stored])
    save_file(saved, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(tmp_path, ir.DataType.FLOAT, SHAPES)
    names = ["a.weight"] if transpose else list(SHAPES)
    for name in names:
        expected = saved[name].float().numpy()
        expected = expected.T if transpose else expected
        found = weights.tensor(name, transpose=transpose)
        blocks = list(found.blocks())
        assert tuple(found.shape) == expected.shape
        assert len(blocks) == 1 or block < expected.size
        assert len(blocks) > 1 or block >= expected.size
        assert all(part.flags.c_contiguous for part in blocks)
        assert b"".join(part.tobytes() for part in blocks) == np.ascontiguousarray(expected).tobytes()
        np.testing.assert_array_equal(found.numpy(), expected)


def test_shards_are_one_checkpoint(tiny_model: Callable[[str], Any], tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_tensors_are_the_models(tmp_path, model)


def assert_tensors_are_the_models(folder: Path, model: Any) -> None:
    data = json.loads((folder / "config.json").read_text())
    shapes = llava_onevision.NAMES.shapes(llava_onevision.empty_model(llava_onevision.parse_config(data, "it")))
    weights = SafetensorsWeights(folder, ir.DataType.FLOAT, shapes, llava_onevision.NAMES.renames)
    expected = {name: value for name, value in model.named_parameters() if ".post_layernorm." not in name}
    assert shapes.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(weights.tensor(name).numpy(), value.detach().numpy())


def transformers_5(name: str) -> str:
    """The module's own name."""
    return name


def transformers_4_52(name: str) -> str:
    """One model inside, but the tower's old inner name."""
    return re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_model.", name)


def transformers_4_45(name: str) -> str:
    """A causal language model and the rest side by side, as the published checkpoints have it."""
    name = transformers_4_52(name).removeprefix("model.")
    name = re.sub(r"^language_model\.", "language_model.model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


@pytest.mark.parametrize("style", [transformers_5, transformers_4_52, transformers_4_45])
@pytest.mark.parametrize("kind", ["qwen2", "tied"])
def test_names_of_every_age_are_understood(
    tiny_model: Callable[[str], Any], tmp_path: Path, kind: str, style: Callable[[str], str]
) -> None:
    model = tiny_model(kind)
    model.config.save_pretrained(tmp_path)
    saved = {style(name): value.detach().clone() for name, value in model.named_parameters()}
    save_file(saved, tmp_path / "model.safetensors")
    if style is transformers_4_45:
        assert "language_model.model.embed_tokens.weight" in saved
        assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in saved
        assert "image_newline" in saved
        assert ("language_model.lm_head.weight" in saved) == (kind == "qwen2")
    assert_tensors_are_the_models(tmp_path, model)


@pytest.mark.parametrize("kind", ["qwen2", "tied", "llama", "qwen3", "mistral"])
def test_what_transformers_writes_is_understood(
    tiny_model: Callable[[str], Any], tiny_checkpoint: Callable[[str], Path], kind: str
) -> None:
    assert_tensors_are_the_models(tiny_checkpoint(kind), tiny_model(kind))


# --- refusing ----------------------------------------------------------------------------------------------


def read(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> SafetensorsWeights:
    return SafetensorsWeights(folder, ir.DataType.FLOAT, shapes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(PruneVidError, match="neither") as error:
        read(tmp_path)
    assert str(tmp_path) in one_line(error)


def test_a_missing_tensor_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(PruneVidError, match=r"lacks 1 of 4 tensors, among them c\.weight") as error:
        read(folder, {**SHAPES, "c.weight": (2, 2)})
    one_line(error)


@pytest.mark.parametrize("shape", [(4, 6), (6,), (6, 4, 1)])
def test_a_tensor_of_another_shape_is_refused_by_name(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(PruneVidError, match=r"a\.weight") as error:
        read(folder, {"a.weight": shape})
    assert "[6, 4]" in one_line(error)


@pytest.mark.parametrize("size", [0, 4, 8, 20, -1, -100])
def test_a_truncated_file_is_refused(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: size if size >= 0 else len(content) + size])
    with pytest.raises(PruneVidError, match="truncated or damaged") as error:
        read(folder)
    assert str(file) in one_line(error)


def write_header(file: Path, header: bytes, data: bytes = bytes(96)) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(**changes: Any) -> bytes:
    header = {"a.weight": {"dtype": "F32", "shape": [6, 4], "data_offsets": [0, 96]} | changes}
    return json.dumps(header).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json at all",
        b"\xff\xfe\x00{}",
        b"[]",
        b"null",
        b'{"a.weight": 3}',
        b'{"a.weight": {}}',
        b"[" * 200_000,
        b'{"a.weight": ' + b"9" * 5000 + b"}",
        entry(shape=None),
        entry(shape=["x"]),
        entry(shape=[6, 5]),
        entry(data_offsets=[0, 96, 96]),
        entry(data_offsets=[0, 95]),
        entry(data_offsets=[96, 0]),
        entry(data_offsets=[-96, 0]),
        entry(data_offsets=[4, 100]),
        entry(data_offsets=[float("-inf"), 96]),
        entry(data_offsets=[0.0, 96.5]),
        entry(data_offsets=[False, 96]),
        entry(data_offsets=[96]),
        entry(data_offsets=[1 << 60, (1 << 60) + 96]),
        entry(data_offsets=None),
    ],
    ids=lambda header: repr(header[-40:]),
)
def test_a_garbage_header_is_refused(tmp_path: Path, header: bytes) -> None:
    write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(PruneVidError, match="model.safetensors") as error:
        read(tmp_path, {"a.weight": (6, 4)})
    one_line(error)


def test_a_negative_shape_is_refused(tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", entry(shape=[-6, -4]))
    with pytest.raises(PruneVidError, match="a.weight") as error:
        read(tmp_path, {"a.weight": (6, 4)})
    one_line(error)


@pytest.mark.parametrize("length", [1 << 27, 1 << 40, (1 << 64) - 1])
def test_an_absurd_header_length_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(PruneVidError, match="truncated or damaged"):
        read(tmp_path)


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    # The cases above must be refused for what is wrong with them, so the same header untouched must pass.
    write_header(tmp_path / "model.safetensors", entry())
    assert not read(tmp_path, {"a.weight": (6, 4)}).tensor("a.weight").numpy().any()


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3", "I32"])
def test_quantized_tensors_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    write_header(tmp_path / "model.safetensors", entry(dtype=dtype, data_offsets=[0, 24]))
    with pytest.raises(PruneVidError, match=f"a.weight .*{dtype}.*not quantized") as error:
        read(tmp_path, {"a.weight": (6, 4)})
    one_line(error)


def write_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 3])
def test_an_index_that_names_no_file_of_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    save_file(tensors(), tmp_path / "other.safetensors")
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    write_index(inside, json.dumps({"weight_map": dict.fromkeys(SHAPES, name)}))
    with pytest.raises(PruneVidError, match="outside the checkpoint|lacks its file") as error:
        read(inside)
    one_line(error)


def test_an_index_with_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model-1.safetensors")
    write_index(tmp_path, json.dumps({"weight_map": {"a.weight": "model-1.safetensors", "c": "model-2.safetensors"}}))
    with pytest.raises(PruneVidError, match=r"lacks its file model-2\.safetensors") as error:
        read(tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": 3}', "[" * 200_000],
    ids=lambda content: repr(content[:20]),
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    write_index(tmp_path, content)
    with pytest.raises(PruneVidError, match="index.json is damaged") as error:
        read(tmp_path)
    one_line(error)


# --- what is there that should not be ----------------------------------------------------------------------

UNUSED = llava_onevision.NAMES.unused


def read_model(folder: Path, saved: dict[str, torch.Tensor], model: Any) -> SafetensorsWeights:
    """A tiny model's weights, read as an export reads them."""
    save_file(saved, folder / "model.safetensors")
    shapes = llava_onevision.NAMES.shapes(model)
    weights = SafetensorsWeights(folder, ir.DataType.FLOAT, shapes, llava_onevision.NAMES.renames)
    weights.refuse_unused(UNUSED)
    return weights


def saved_as(model: Any, style: Callable[[str], str]) -> dict[str, torch.Tensor]:
    return {style(name): value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.post_layernorm.weight",
        "vision_tower.vision_model.head.attention.in_proj_weight",
        "vision_tower.vision_model.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.language_model.layers.5.self_attn.rotary_emb.inv_freq",
        "language_model.model.rotary_emb.inv_freq",
    ],
)
def test_what_the_family_declares_unused_is_no_reason_to_refuse(
    tiny_model: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    model = tiny_model("qwen2")
    saved = saved_as(model, transformers_4_45)
    saved[name] = torch.arange(4) if "position_ids" in name else torch.ones(4)
    read_model(tmp_path, saved, model)


@pytest.mark.parametrize("style", [transformers_5, transformers_4_45])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "LoRA adapter"),
        ("base_model.model.language_model.model.layers.0.self_attn.v_proj.lora_B.weight", "LoRA adapter"),
        ("language_model.base_model.model.model.layers.0.mlp.up_proj.weight", "LoRA adapter"),
        ("language_model.model.layers.0.self_attn.q_proj.base_layer.weight", "LoRA adapter"),
        ("language_model.model.layers.0.mlp.up_proj.weight_scale", "quantization"),
        ("language_model.model.layers.0.mlp.up_proj.qzeros", "quantization"),
        ("language_model.model.layers.0.self_attn.q_proj.weight.absmax", "quantization"),
        ("language_model.model.layers.6.input_layernorm.weight", "no use for 1 tensors"),
        ("vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias", "no use for 1 tensors"),
        ("vision_tower_2.vision_model.embeddings.patch_embedding.weight", "no use for 1 tensors"),
        ("language_model.model.layers.0.self_attn.o_proj.bias", "no use for 1 tensors"),
        ("language_model.model.layers.0.self_attn.q_norm.weight", "no use for 1 tensors"),
        ("multi_modal_projector.linear_3.weight", "no use for 1 tensors"),
        ("audio_tower.conv.weight", "no use for 1 tensors"),
        ("lm_head.bias", "no use for 1 tensors"),
        ("mask_tokens", "no use for 1 tensors"),
    ],
)
def test_any_other_tensor_is_refused_by_name(
    tiny_model: Callable[[str], Any], tmp_path: Path, style: Callable[[str], str], name: str, message: str
) -> None:
    model = tiny_model("qwen2")
    saved = saved_as(model, style)
    read_model(tmp_path, saved, model)
    with pytest.raises(PruneVidError, match=message) as error:
        read_model(tmp_path, saved | {name: torch.ones(4)}, model)
    assert name in one_line(error)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_weights_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{}")
    with pytest.raises(PruneVidError, match=rf"{re.escape(name)} is a LoRA adapter .* merge it") as error:
        read(folder)
    one_line(error)


def test_two_layouts_at_once_are_refused(tiny_model: Callable[[str], Any], tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    saved = saved_as(model, transformers_5) | saved_as(model, transformers_4_45)
    with pytest.raises(PruneVidError, match="twice: as '.*' in model.safetensors and as '.*' in") as error:
        read_model(tmp_path, saved, model)
    one_line(error)


def shards(folder: Path, files: dict[str, list[str]], weight_map: dict[str, str]) -> None:
    for file, names in files.items():
        save_file({name: tensors()[name] for name in names}, folder / file)
    write_index(folder, json.dumps({"weight_map": weight_map}))


ONE, TWO = "model-1.safetensors", "model-2.safetensors"
LISTED = {"a.weight": ONE, "a.bias": ONE, "b.weight": TWO}


def test_shards_must_hold_what_the_index_says(tmp_path: Path) -> None:
    shards(tmp_path, {ONE: ["a.weight", "a.bias"], TWO: ["b.weight"]}, LISTED)
    read(tmp_path)


@pytest.mark.parametrize(
    ("files", "weight_map", "message"),
    [
        ({ONE: ["a.weight", "a.bias"], TWO: ["b.weight", "a.bias"]}, LISTED, "'a.bias' twice: .*model-1.*model-2"),
        ({ONE: ["a.weight"], TWO: ["b.weight", "a.bias"]}, LISTED, "'a.bias' in a file that does not hold it"),
        ({ONE: ["a.weight", "a.bias"], TWO: ["b.weight"]}, LISTED | {"c": TWO}, "'c' in a file that does not hold it"),
        ({ONE: ["a.weight", "a.bias"], TWO: ["b.weight"]}, {"a.weight": ONE, "a.bias": ONE}, "lacks 1 of 3 tensors"),
        ({ONE: ["a.weight", "a.bias"]}, LISTED | {"b.weight": None}, "names the file None"),
    ],
)
def test_shards_that_contradict_the_index_are_refused(
    tmp_path: Path, files: dict[str, list[str]], weight_map: dict[str, str], message: str
) -> None:
    shards(tmp_path, files, weight_map)
    with pytest.raises(PruneVidError, match=message) as error:
        read(tmp_path)
    one_line(error)


def two_tensors(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    header = {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in (("a", first), ("b", second))
    }
    return json.dumps(header).encode()


@pytest.mark.parametrize(
    ("first", "second", "size"),
    [
        ((0, 48), (40, 88), 88),
        ((0, 48), (0, 48), 48),
        ((0, 48), (56, 96), 96),
        ((8, 48), (48, 96), 96),
        ((0, 48), (48, 88), 96),
    ],
    ids=["overlap", "same", "gap", "gap-first", "behind"],
)
def test_tensors_that_overlap_and_bytes_of_none_are_refused(
    tmp_path: Path, first: tuple[int, int], second: tuple[int, int], size: int
) -> None:
    write_header(tmp_path / "model.safetensors", two_tensors((0, 48), (48, 96)))
    read(tmp_path, {"a": (12,), "b": (12,)})
    write_header(tmp_path / "model.safetensors", two_tensors(first, second), bytes(size))
    shapes: dict[str, tuple[int, ...]] = {"a": ((first[1] - first[0]) // 4,), "b": ((second[1] - second[0]) // 4,)}
    with pytest.raises(PruneVidError, match="truncated or damaged") as error:
        read(tmp_path, shapes)
    one_line(error)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    one = entry()[1:-1]
    write_header(tmp_path / "model.safetensors", b"{" + one + b"," + one + b"}")
    with pytest.raises(PruneVidError, match="truncated or damaged"):
        read(tmp_path, {"a.weight": (6, 4)})


@pytest.mark.parametrize(
    ("value", "given", "message"),
    [
        (float("nan"), ir.DataType.FLOAT, "no numbers: the checkpoint is damaged"),
        (float("-inf"), ir.DataType.FLOAT16, "no numbers: the checkpoint is damaged"),
        (1e5, ir.DataType.FLOAT16, "beyond float16: export with --precision fp32"),
    ],
)
@pytest.mark.parametrize("transpose", [False, True])
def test_values_that_cannot_be_written_are_refused_by_name(
    tmp_path: Path, value: float, given: ir.DataType, message: str, transpose: bool
) -> None:
    saved = tensors(torch.bfloat16)
    saved["a.weight"][3, 2] = value
    save_file(saved, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(tmp_path, given, SHAPES)
    with pytest.raises(PruneVidError, match=f"a.weight has values .*{message}"):
        list(weights.tensor("a.weight", transpose=transpose).blocks())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "cannot read .*model.safetensors: it is a folder"),
        (lambda path: path.symlink_to("gone"), "cannot read .*: it is a link to a file that is not there"),
    ],
)
def test_weights_that_are_no_file_are_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(PruneVidError, match=message) as error:
        read(tmp_path)
    one_line(error)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(folder: Path) -> None:
    weights = read(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(PruneVidError, match="became shorter"):
        [weights.tensor(name).numpy() for name in SHAPES]
    file.unlink()
    with pytest.raises(PruneVidError, match="cannot read .*No such file"):
        weights.tensor("a.weight").numpy()


# --- random weights ----------------------------------------------------------------------------------------

RANDOM = {"x.weight": (150, 5), "y.weight": (150, 5), "x.bias": (9,), "x_norm.weight": (5,), "newline": (7,)}


def random_bytes(tensor: StreamedTensor) -> bytes:
    return b"".join(block.tobytes() for block in tensor.blocks())


@pytest.mark.parametrize("dtype", GIVEN)
def test_random_weights_do_not_depend_on_how_they_are_read(monkeypatch: pytest.MonkeyPatch, dtype: ir.DataType) -> None:
    weights = RandomWeights(dtype, RANDOM)
    whole = {name: random_bytes(weights.tensor(name)) for name in RANDOM}
    transposed = random_bytes(weights.tensor("x.weight", transpose=True))
    monkeypatch.setattr(weight_reading, "_BLOCK", 5)
    again = RandomWeights(dtype, RANDOM)
    for name in reversed(RANDOM):
        assert name == "x_norm.weight" or len(list(again.tensor(name).blocks())) > 1
        assert random_bytes(again.tensor(name)) == whole[name]
        assert again.tensor(name).numpy().tobytes() == whole[name]
    assert random_bytes(again.tensor("x.weight", transpose=True)) == transposed
    values = np.frombuffer(whole["x.weight"], dtype.numpy()).reshape(150, 5)
    assert transposed == np.ascontiguousarray(values.T).tobytes()


def test_random_weights_differ_by_name_row_and_seed() -> None:
    weights, other = RandomWeights(ir.DataType.FLOAT, RANDOM), RandomWeights(ir.DataType.FLOAT, RANDOM, seed=1)
    x = weights.tensor("x.weight").numpy()
    assert len(np.unique(x)) == x.size
    assert not np.isin(x, weights.tensor("y.weight").numpy()).any()
    assert not np.isin(x, other.tensor("x.weight").numpy()).any()


def test_random_weights_have_the_scale_of_a_fresh_model() -> None:
    weights = RandomWeights(ir.DataType.FLOAT, {**RANDOM, "big.weight": (200, 300)})
    assert weights.tensor("big.weight").numpy().std() == pytest.approx(0.02, rel=0.05)
    assert weights.tensor("big.weight").numpy().mean() == pytest.approx(0, abs=1e-3)
    assert (weights.tensor("x_norm.weight").numpy() == 1).all()
    assert (weights.tensor("x.bias").numpy() == 0).all()
