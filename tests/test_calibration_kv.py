"""The KV cache in int8: attention over codes is attention over what they stand for, in bundles that say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import cpu_session
from videos import write_video

from benchmarks.kv_attention import Decoder, attention
from demo import world
from prunevid import PruneVidError
from prunevid.bundle import Bundle, open_bundle, write_manifest
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.kv_int8 import Scales, put_int8_cache, scales_of
from prunevid.calibration.questions import AskedVideo, Question
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.backends.ort import check_onnxruntime
from prunevid.runtime.fit.bundle_shape import shape_of
from prunevid.runtime.fit.devices.cards import device_named
from prunevid.runtime.fit.estimate import estimate, workload
from prunevid.runtime.fit.precision import PRECISIONS

HEADS, KV_HEADS, DIM, CAPACITY = 6, 2, 16, 40


def reference(query: np.ndarray, keys: np.ndarray, values: np.ndarray, past: int) -> np.ndarray:
    """Causal grouped-query attention in float64: query [S, heads, d], keys and values [kv_heads, past + S, d]."""
    rows, heads, dim = query.shape
    of_head = np.arange(heads) // (heads // len(keys))
    scores = np.einsum("shd,htd->hst", query.astype(np.float64), keys[of_head]) / np.sqrt(dim)
    seen = np.arange(keys.shape[1]) <= past + np.arange(rows)[:, None]
    weights = np.exp(np.where(seen, scores, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hst,htd->shd", weights, values[of_head]))


def by_head(rows: np.ndarray) -> np.ndarray:
    """[1, S, kv_heads * d] as [kv_heads, S, d]."""
    heads: np.ndarray = rows.reshape(-1, KV_HEADS, DIM).transpose(1, 0, 2)
    return heads


@pytest.mark.parametrize(("past", "rows"), [(0, 1), (0, 7), (11, 1), (11, 2), (11, 29), (39, 1)])
def test_attention_over_codes_is_attention_over_what_they_stand_for(past: int, rows: int) -> None:
    rng = np.random.default_rng(100 * past + rows)
    scales = Scales(*(rng.uniform(0.5, 1.5, KV_HEADS * DIM).astype(np.float32) / 32 for _ in range(2)))
    model = ir.from_proto(attention(Decoder("tiny", HEADS, KV_HEADS, DIM), CAPACITY, codes=False))
    put_int8_cache(model, [scales])
    session = cpu_session(ir.to_proto(model).SerializeToString())
    query = rng.standard_normal((1, rows, HEADS * DIM)).astype(np.float32)
    # Some are larger than anything that was measured: their codes are the largest there are.
    key, value = (2 * rng.standard_normal((1, rows, KV_HEADS * DIM)).astype(np.float32) for _ in range(2))
    before = rng.integers(-127, 128, (2, 1, KV_HEADS, CAPACITY, DIM)).astype(np.int8)
    cache = before.copy()
    binding = session.io_binding()
    feeds = {
        "query": query,
        "key": key,
        "value": value,
        "past_key.0": cache[0],
        "past_value.0": cache[1],
        "last_row": np.array([past + rows - 1], np.int32),
        "total": np.array(past + rows, np.int32),
        "past_length": np.array([past], np.int64),
    }
    output = np.empty_like(query)
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for name, array in (("output", output), ("present_key.0", cache[0]), ("present_value.0", cache[1])):
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)

    expected = before.copy()
    for which, (new, scale) in enumerate(((key, scales.keys), (value, scales.values))):
        # As the graph divides: times the inverse, so that rounding falls alike.
        codes = np.rint(new * (1 / scale)).clip(-128, 127).astype(np.int8)
        expected[which, 0, :, past : past + rows] = by_head(codes)
    assert np.array_equal(cache, expected)  # in place, and nothing else was touched
    keys, values = (
        cache[which, 0, :, : past + rows] * scale.reshape(KV_HEADS, 1, DIM).astype(np.float64)
        for which, scale in enumerate((scales.keys, scales.values))
    )
    found = output.reshape(rows, HEADS, DIM)
    np.testing.assert_allclose(found, reference(query.reshape(rows, HEADS, DIM), keys, values, past), atol=2e-5)


# --- whole bundles -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[AskedVideo]:
    folder, made = tmp_path_factory.mktemp("videos"), []
    for index in range(4):
        sample = world.make_video("validation", 10_000 + index)
        write_video(folder / f"{index}.mp4", sample.frames, fps=4)
        questions = tuple(Question(question.text, question.answer) for question in sample.questions[:4])
        made.append(AskedVideo(folder / f"{index}.mp4", questions))
    return made


@pytest.fixture(scope="module")
def both(
    demo_bundle: Path, videos: list[AskedVideo], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Bundle]:
    """The demo by cpu-int4, with a KV cache in float and in int8."""
    folder = tmp_path_factory.mktemp("kv")
    made = [
        calibrate(demo_bundle, videos, folder / kv, Settings("cpu-int4", min_agreement=0.5, kv_cache=kv)).bundle
        for kv in ("float", "int8")
    ]
    return made[0], made[1]


def test_the_bundle_says_what_its_cache_is(both: tuple[Bundle, Bundle]) -> None:
    in_float, in_int8 = (bundle.manifest for bundle in both)
    assert (in_float.cache.dtype, in_int8.cache.dtype) == ("float32", "int8")
    assert (in_float.least_onnxruntime, in_int8.least_onnxruntime) == (None, "1.27")
    for name, graph in in_int8.graphs.items():
        session = cpu_session(str(both[1].file(graph.file)))
        types = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
        for tensor in (*graph.inputs, *graph.outputs):
            is_cache = tensor.name.startswith(("past_key", "past_value", "present_"))
            assert (types[tensor.name] == "tensor(int8)") == (tensor.dtype == "int8") == is_cache, (name, tensor.name)


@pytest.mark.parametrize("prune", [True, False])
def test_it_answers_as_with_a_float_cache_in_a_quarter_of_the_memory(both: tuple[Bundle, Bundle], prune: bool) -> None:
    sample = world.make_video("validation", 10_500)
    logits, sizes = [], []
    for bundle in both:
        session = load(bundle).open(sample.frames, prune=prune)
        streams = []
        for question in sample.questions[:3]:
            stream = session.stream(question.text)
            "".join(stream)
            assert stream.first_logits is not None
            streams.append((stream.first_logits, stream.answer))
        logits.append(np.array([first for first, _ in streams]))
        sizes.append([(answer.kv_bytes, answer.kv_bytes_unpruned) for _, answer in streams])
        # The prefix's cache was written once and is not touched by questions.
        again = session.stream(sample.questions[0].text)
        "".join(again)
        assert again.first_logits is not None
        assert np.array_equal(again.first_logits, streams[0][0])
    assert np.array_equal(np.array(sizes[0]), 4 * np.array(sizes[1]))
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()
    assert not np.array_equal(logits[0], logits[1])


def test_blocks_make_no_difference(both: tuple[Bundle, Bundle]) -> None:
    """Rows that come at once, one by one, and in two parts leave the same codes but for rounding."""
    chain = load(both[1]).chain
    embeds = np.asarray(chain.embed(np.arange(1, 25) % 50))
    hidden = []
    for parts in ([24], [9, 15], [1] * 24):
        cache, at, found = chain.new_cache(chain.pre_layers, 32), 0, []
        for count in parts:
            found.append(np.asarray(chain.run_pre(embeds[at : at + count], cache, chain.positions(at, count))[0]))
            at += count
        hidden.append(np.concatenate(found, axis=1))
        assert all(array.dtype == np.int8 for array in cache.past().values())
        assert cache.nbytes * 4 == 24 * 2 * len(chain.pre_layers) * 4 * chain.manifest.model.decoder.kv_heads * (
            chain.manifest.model.decoder.head_dim
        )
    for other in hidden[1:]:
        assert np.abs(other - hidden[0]).max() < 0.05 * np.abs(hidden[0]).max()


def test_scales_cover_what_was_seen_at_any_position(demo_bundle: Path, videos: list[AskedVideo]) -> None:
    bundle = open_bundle(demo_bundle)
    sampling = SamplingConfig(max_new_tokens=2)
    few, more = (scales_of(bundle, "llm_pre", videos[:n], sampling, None, lambda: None) for n in (1, 3))
    dim = bundle.manifest.model.decoder.head_dim
    assert len(few) == bundle.manifest.prune.prune_layer + 1
    for one, three in zip(few, more, strict=True):
        assert (three.keys >= one.keys).all()
        assert (three.values >= one.values).all()
        by_pair = one.keys.reshape(-1, 2, dim // 2)
        assert np.array_equal(by_pair[:, 0], by_pair[:, 1])


def test_fit_counts_codes(both: tuple[Bundle, Bundle]) -> None:
    kv = []
    for bundle in both:
        work = workload(shape_of(bundle), bundle.manifest.prune.prune_layer, 8)
        kv.append(estimate(work, PRECISIONS["fp32"], device_named("orin-nano-8gb")).memory.kv)
    assert kv[0] == 4 * kv[1]


# --- what is refused -----------------------------------------------------------------------------------------


def test_an_older_onnx_runtime_is_refused(both: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    with pytest.raises(PruneVidError, match=r"x needs ONNX Runtime 1\.27 or newer, and 1\.23\.2 is installed"):
        check_onnxruntime("1.27", "x", "1.23.2")
    check_onnxruntime("1.27", "x", "1.27.0")
    check_onnxruntime("1.27", "x", "2.0.1")
    check_onnxruntime(None, "x", "1.22.0")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in both[1].manifest.files:
        (copy / name).symlink_to(both[1].path / name)
    write_manifest(copy, replace(both[1].manifest, least_onnxruntime="99.1"))
    with pytest.raises(PruneVidError, match=r"needs ONNX Runtime 99\.1 or newer"):
        load(Bundle(copy, replace(both[1].manifest, least_onnxruntime="99.1")))


def test_other_dialects_are_refused(
    tiny_bundle: Callable[[str, str], Path], videos: list[AskedVideo], tmp_path: Path
) -> None:
    with pytest.raises(PruneVidError, match="dialect ort"):
        calibrate(tiny_bundle("qwen2", "portable"), videos, tmp_path / "out", Settings("cpu-int8", kv_cache="int8"))
    with pytest.raises(PruneVidError, match="unknown KV cache 'fp8': known are float, int8"):
        calibrate(tiny_bundle("qwen2", "ort"), videos, tmp_path / "out", Settings("cpu-int8", kv_cache="fp8"))
    assert list(tmp_path.iterdir()) == []
