"""llm_pre, select and llm_post of tiny models, graph by graph, against transformers and NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from models import Tiny, build_model, cpu_session, save_checkpoint

from prunevid.cost import DecoderShape
from prunevid.export.checkpoint.weights import SafetensorsWeights
from prunevid.export.families import llava_onevision
from prunevid.export.graphs.decoder import build_llm_post, build_llm_pre
from prunevid.export.graphs.dialects import dialect_named
from prunevid.export.graphs.select import build_select
from prunevid.methods.selection import group_topk

Array = npt.NDArray[Any]

DIALECTS = ("ort", "portable")
DECODERS = ("qwen2", "tied", "llama", "qwen3", "mistral")
PRUNE_LAYER = 2
CAPACITY = 64
# Measured at 1e-5; 1e-3 is what is promised.
TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Segments:
    """The decoder's graphs as ONNX Runtime sessions."""

    dialect: str
    shape: DecoderShape
    dtype: Any
    pre: ort.InferenceSession
    select: ort.InferenceSession
    post: ort.InferenceSession


def session_of(model: ir.Model) -> ort.InferenceSession:
    return cpu_session(ir.to_proto(model).SerializeToString())


def build_segments(
    checkpoint: Path, dialect: str, dtype: ir.DataType = ir.DataType.FLOAT, prune_layer: int = PRUNE_LAYER
) -> Segments:
    config_file = checkpoint / "config.json"
    config = llava_onevision.parse_config(json.loads(config_file.read_text()), str(config_file))
    shapes = llava_onevision.NAMES.shapes(llava_onevision.empty_model(config))
    weights = SafetensorsWeights(checkpoint, dtype, shapes, llava_onevision.NAMES.renames)
    spec, spelling = llava_onevision.decoder_spec(config), dialect_named(dialect)
    return Segments(
        dialect,
        spec.shape,
        np.dtype(dtype.numpy()),
        session_of(build_llm_pre(spec, weights, spelling, prune_layer)),
        session_of(build_select(spec.shape, spelling, dtype, prune_layer + 1, largest=9)),
        session_of(build_llm_post(spec, weights, spelling, prune_layer, weights.tensor(spec.head))),
    )


@pytest.fixture(scope="module")
def segments(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str, str], Segments]:
    return cache(lambda name, dialect: build_segments(tiny_checkpoint(name), dialect))


class Runner:
    """Feeds rows through a segment and keeps its cache, in the layout of the dialect."""

    def __init__(self, segments: Segments, session: ort.InferenceSession) -> None:
        self._segments, self._session = segments, session
        self.length = 0
        shape = segments.shape
        dims = (1, shape.kv_heads, CAPACITY, shape.head_dim)
        if segments.dialect == "portable":
            dims = (1, 0, shape.kv_heads, shape.head_dim)
        self.cache = {
            value.name: np.zeros(dims, segments.dtype)
            for value in session.get_inputs()
            if value.name.startswith("past_") and value.name != "past_length"
        }

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """All outputs but the cache, which is kept."""
        feeds = {**inputs, **self.cache, "past_length": np.array([self.length])}
        names = [value.name for value in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(None, feeds), strict=True))
        for name in self.cache:
            present = outputs.pop(name.replace("past_", "present_"))
            if self._segments.dialect == "portable":
                # Only the new rows come back.
                present = np.concatenate([self.cache[name], present], axis=1)
            self.cache[name] = present
        self.length += inputs["position_ids"].shape[1]
        return outputs

    def rows(self, name: str) -> Array:
        """The rows in use of one cache tensor: [rows, kv_heads, head_dim]."""
        cached: Array = self.cache[name][0]
        return cached.transpose(1, 0, 2)[: self.length] if self._segments.dialect == "ort" else cached


def random_ids(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, size=(1, count))


def reference_outputs(model: Any, ids: Array) -> tuple[Array, Array, Array]:
    """Of transformers: logits [S, vocab], hidden after layer M [S, C], probabilities [heads, S, S] at layer M."""
    with torch.no_grad():
        inner = model.model.language_model
        hidden: list[torch.Tensor] = []
        hook = inner.layers[PRUNE_LAYER].register_forward_hook(lambda *args: hidden.append(args[-1]))
        found = inner(input_ids=torch.from_numpy(ids), output_attentions=True)
        hook.remove()
        logits = model.lm_head(found.last_hidden_state)[0]
    return logits.numpy(), hidden[0][0].numpy(), found.attentions[PRUNE_LAYER][0].numpy()


def embeddings(model: Any, ids: Array) -> Array:
    with torch.no_grad():
        return np.asarray(model.model.language_model.embed_tokens(torch.from_numpy(ids)).numpy())


@dataclass(frozen=True, eq=False)
class Run:
    """A prefill and some steps after it, through llm_pre and llm_post: what came out, row by row."""

    logits: dict[int, Array]
    hidden: Array
    scores: list[Array]
    pre: Runner
    post: Runner


def run_chunks(segments: Segments, embeds: Array, chunks: list[int], question: list[int]) -> Run:
    """Run rows in chunks of these lengths; `question` says where in each chunk the scoring rows begin."""
    pre, post = Runner(segments, segments.pre), Runner(segments, segments.post)
    logits: dict[int, Array] = {}
    hidden, scores, start = [], [], 0
    for length, first in zip(chunks, question, strict=True):
        position = np.arange(start, start + length)[None]
        rows = embeds[:, start : start + length].astype(segments.dtype)
        found = pre(inputs_embeds=rows, position_ids=position, question_start=np.array([first]))
        hidden.append(found["hidden"][0])
        scores.append(found["question_scores"])
        start += length
        logits[start - 1] = post(hidden=found["hidden"], position_ids=position)["logits"][0]
    return Run(logits, np.concatenate(hidden), scores, pre, post)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("chunks", [[24], [1], [10, 14], [7, 13, 1, 1]], ids=str)
def test_logits_and_scores_equal_transformers(
    tiny_model: Callable[[str], Any],
    segments: Callable[[str, str], Segments],
    decoder: str,
    dialect: str,
    chunks: list[int],
) -> None:
    model, ids = tiny_model(decoder), random_ids(sum(chunks))
    logits, hidden, probabilities = reference_outputs(model, ids)
    question = [length // 2 for length in chunks]
    found = run_chunks(segments(decoder, dialect), embeddings(model, ids), chunks, question)
    np.testing.assert_allclose(found.hidden, hidden, atol=TOLERANCE)
    for row, values in found.logits.items():
        np.testing.assert_allclose(values, logits[row], atol=TOLERANCE)
    end = 0
    for length, first, scores in zip(chunks, question, found.scores, strict=True):
        expected = probabilities[:, end + first : end + length, : end + length].max(axis=(0, 1))
        end += length
        np.testing.assert_allclose(scores, expected, atol=3e-5)
        # Scores that say nothing would prove nothing.
        assert end == 1 or np.ptp(expected) > 0.05


@pytest.mark.parametrize("dialect", DIALECTS)
def test_positions_are_those_given_not_those_in_the_cache(
    tiny_model: Callable[[str], Any], segments: Callable[[str, str], Segments], dialect: str
) -> None:
    # As after selection: rows of a sequence with gaps, then decoding behind the whole of it.
    model = tiny_model("qwen2")
    kept = np.array([0, 1, 4, 5, 9, 12, 20, 21, 22])
    embeds = embeddings(model, random_ids(len(kept)))
    with torch.no_grad():
        found = model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds), position_ids=torch.from_numpy(kept)[None]
        )
        expected = model.lm_head(found.last_hidden_state)[0, -1].numpy()
        contiguous = model.lm_head(
            model.model.language_model(inputs_embeds=torch.from_numpy(embeds)).last_hidden_state
        )[0, -1].numpy()
    assert np.abs(expected - contiguous).max() > 0.1
    both = segments("qwen2", dialect)
    pre, post = Runner(both, both.pre), Runner(both, both.post)
    for rows in (slice(0, 8), slice(8, 9)):
        position = kept[None, rows]
        hidden = pre(inputs_embeds=embeds[:, rows], position_ids=position, question_start=np.array([0]))["hidden"]
        logits = post(hidden=hidden, position_ids=position)["logits"][0]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


@pytest.mark.parametrize("prune_layer", [0, 4])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_cut_may_be_behind_the_first_layer_or_before_the_last(
    tiny_model: Callable[[str], Any], tiny_checkpoint: Callable[[str], Path], dialect: str, prune_layer: int
) -> None:
    model, ids = tiny_model("qwen2"), random_ids(16)
    logits, _, _ = reference_outputs(model, ids)
    cut = build_segments(tiny_checkpoint("qwen2"), dialect, prune_layer=prune_layer)
    found = run_chunks(cut, embeddings(model, ids), [12, 4], [0, 0])
    assert len(found.pre.cache) == 2 * (prune_layer + 1)
    assert len(found.post.cache) == 2 * (5 - prune_layer)
    np.testing.assert_allclose(found.logits[15], logits[15], atol=TOLERANCE)


@pytest.mark.parametrize("scaling", ["linear", "llama3", "yarn"])
def test_scaled_rotary_embeddings_equal_transformers(tmp_path: Path, scaling: str) -> None:
    parameters = {"rope_type": scaling, "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    if scaling == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = build_model(Tiny("llama"), rope_parameters=parameters)
    plain = build_model(Tiny("llama"))
    ids = random_ids(40)
    logits, _, _ = reference_outputs(model, ids)
    assert np.abs(logits - reference_outputs(plain, ids)[0]).max() > 0.1
    scaled = build_segments(save_checkpoint(model, tmp_path), "portable")
    found = run_chunks(scaled, embeddings(model, ids), [39, 1], [30, 0])
    np.testing.assert_allclose(found.logits[39], logits[39], atol=TOLERANCE)


@pytest.mark.parametrize(("prefix", "axes"), [(0, 1), (3, 3)])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_select_cuts_what_numpy_cuts(
    tiny_model: Callable[[str], Any], segments: Callable[[str, str], Segments], dialect: str, prefix: int, axes: int
) -> None:
    both, ids = segments("qwen2", dialect), random_ids(24)
    run = run_chunks(both, embeddings(tiny_model("qwen2"), ids), [24], [18])
    # Group 2 is empty, group 3 keeps nothing, group 4 has fewer tokens than its quota.
    group, quota = np.array([0, 0, 0, 0, 1, 1, 1, 3, 3, 4]), np.array([2, 1, 3, 0, 5])
    scores, positions = run.scores[0], np.random.default_rng(axes).integers(0, 999, (axes, 24))
    feeds = {
        "question_scores": scores,
        "token_group": group,
        "quota": quota,
        "kept_count": np.array([len(group_topk(scores[prefix : prefix + 10], group, quota))]),
        "position_ids": positions,
        "video_start": np.array([prefix]),
        "hidden": run.hidden[None],
        **run.pre.cache,
    }
    if dialect == "ort":
        feeds["capacity"] = np.array([40])
    names = [value.name for value in both.select.get_outputs()]
    found = dict(zip(names, both.select.run(None, feeds), strict=True))

    kept = group_topk(scores[prefix : prefix + 10], group, quota)
    rows = np.concatenate([np.arange(prefix), prefix + kept, np.arange(prefix + 10, 24)])
    np.testing.assert_array_equal(found["kept"], kept)
    np.testing.assert_array_equal(found["kept_position_ids"], positions[:, rows])
    np.testing.assert_array_equal(found["kept_hidden"][0], run.hidden[rows])
    for name in run.pre.cache:
        cut = found[name.replace("past_", "present_")][0]
        if dialect == "ort":
            assert cut.shape[1] == 40
            cut = cut.transpose(1, 0, 2)[: len(rows)]
        np.testing.assert_array_equal(cut, run.pre.rows(name)[rows])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_keeping_everything_cuts_nothing(
    tiny_model: Callable[[str], Any], segments: Callable[[str, str], Segments], dialect: str
) -> None:
    both = segments("qwen2", dialect)
    run = run_chunks(both, embeddings(tiny_model("qwen2"), random_ids(12)), [12], [8])
    feeds = {
        "question_scores": run.scores[0],
        "token_group": np.zeros(6, np.int64),
        "quota": np.array([6]),
        "kept_count": np.array([6]),
        "position_ids": np.arange(12)[None],
        "video_start": np.array([2]),
        "hidden": run.hidden[None],
        **run.pre.cache,
    }
    if dialect == "ort":
        feeds["capacity"] = np.array([12])
    kept, position_ids, hidden = both.select.run(["kept", "kept_position_ids", "kept_hidden"], feeds)
    assert kept.tolist() == list(range(6))
    assert position_ids.tolist() == [list(range(12))]
    np.testing.assert_array_equal(hidden[0], run.hidden)


def test_the_fused_dialect_writes_into_the_buffer_it_reads(
    tiny_model: Callable[[str], Any], segments: Callable[[str, str], Segments]
) -> None:
    model, both, ids = tiny_model("qwen2"), segments("qwen2", "ort"), random_ids(20)
    embeds = embeddings(model, ids)
    expected = run_chunks(both, embeds, [16, 1, 1, 1, 1], [0] * 5)
    shape = both.shape
    buffers = {name: np.zeros((1, shape.kv_heads, CAPACITY, shape.head_dim), np.float32) for name in expected.pre.cache}
    for start, stop in ((0, 16), (16, 17), (17, 18), (18, 19), (19, 20)):
        binding = both.pre.io_binding()
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds[:, start:stop]),
            "position_ids": np.arange(start, stop)[None],
            "past_length": np.array([start]),
            "question_start": np.array([0]),
        }
        for name, array in {**inputs, **buffers}.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in buffers.items():
            present = name.replace("past_", "present_")
            binding.bind_output(present, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_output("hidden", "cpu")
        both.pre.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.get_outputs()[-1].numpy()[0], expected.hidden[19:], atol=1e-6)
    for name, buffer in buffers.items():
        np.testing.assert_allclose(buffer[0, :, :20], expected.pre.cache[name][0, :, :20], atol=1e-6)
        assert not buffer[0, :, 20:].any()


def test_the_portable_dialect_ignores_rows_behind_the_past_length(
    tiny_model: Callable[[str], Any], segments: Callable[[str, str], Segments]
) -> None:
    # A runtime may bind its whole buffer; what lies behind the rows in use is garbage.
    model, both, ids = tiny_model("qwen2"), segments("qwen2", "portable"), random_ids(16)
    embeds = embeddings(model, ids)
    expected = run_chunks(both, embeds, [12, 4], [0, 0])
    first = run_chunks(both, embeds, [12], [0])
    position = np.arange(12, 16)[None]
    for runner in (first.pre, first.post):
        for name, cached in runner.cache.items():
            runner.cache[name] = np.concatenate([cached, np.full_like(cached[:, :5], 1e3)], axis=1)
    hidden = first.pre(inputs_embeds=embeds[:, 12:], position_ids=position, question_start=np.array([0]))["hidden"]
    np.testing.assert_allclose(hidden[0], expected.hidden[12:], atol=1e-5)
    logits = first.post(hidden=hidden, position_ids=position)["logits"][0]
    np.testing.assert_allclose(logits, expected.logits[15], atol=1e-5)


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Segments]:
    return cache(lambda dialect: build_segments(tiny_checkpoint("qwen2"), dialect, ir.DataType.FLOAT16))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_precision_is_close(
    tiny_model: Callable[[str], Any], half: Callable[[str], Segments], dialect: str
) -> None:
    model, ids = tiny_model("qwen2"), random_ids(24)
    logits, _, probabilities = reference_outputs(model, ids)
    found = run_chunks(half(dialect), embeddings(model, ids), [22, 1, 1], [16, 0, 0])
    for row, values in found.logits.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, logits[row], atol=2e-2)
    np.testing.assert_allclose(found.scores[0], probabilities[:, 16:22, :22].max(axis=(0, 1)), atol=1e-2)
