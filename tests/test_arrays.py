"""NumPy arrays are read as what they are, however they lie in memory; what a graph does not take is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_ort import patch_onnxruntime
from fake_tensorrt import FakeTensorRt, add_engines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import structured_features

from prunevid import PruneVidError
from prunevid.bundle import Bundle, open_bundle
from prunevid.bundle.sections.layout import Piece
from prunevid.runtime import SamplingConfig, VideoSession
from prunevid.runtime.backends.arrays import HostMemory, Slot
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.device_memory import DeviceMemory
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.backends.ort_gpu import OrtCudaBackend
from prunevid.runtime.backends.tensorrt import TensorRtBackend
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.sequence import Prefix, VideoTokens

Array = np.ndarray
FRAMES = 6
SHORT = SamplingConfig(max_new_tokens=3)


def unaligned(array: Array) -> Array:
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype) if array.itemsize == 1 else np.frombuffer(raw, array.dtype, array.size, 1)
    view = view.reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array: Array) -> Array:
    made: Array = array[::-1].copy()[::-1]
    made.flags.writeable = False
    return made


# The same values, lying in memory in every way that NumPy has.
FORMS: dict[str, Callable[[Array], Array]] = {
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "middle axes swapped": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "sliced along the first axis": lambda a: np.repeat(a, 2, axis=0)[::2],
    "sliced along the last axis": lambda a: np.repeat(a, 3, axis=-1)[..., 1::3],
    "cut out of a wider one": lambda a: np.concatenate([a, a], axis=-1)[..., : a.shape[-1]],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "backwards along every axis": lambda a: np.flip(np.flip(a).copy()),
    "Fortran order": np.asfortranarray,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "other byte order, transposed": lambda a: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("S")).T).T,
    "unaligned": unaligned,
    "read-only, backwards": read_only,
    "a list of its parts, stacked": lambda a: np.stack(list(a), axis=-1).transpose(a.ndim - 1, *range(a.ndim - 1)),
}


def on(kind: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Chain:
    if kind == "ort-cpu":
        return Chain(bundle, OrtCpuBackend(threads=1))
    gpu = FakeCuda()
    if kind == "ort-cuda":
        patch_onnxruntime(monkeypatch, gpu)
        return Chain(bundle, OrtCudaBackend(bundle, threads=1, cuda=Cuda(gpu)))
    return Chain(bundle, TensorRtBackend(bundle, cuda=Cuda(gpu), trt=FakeTensorRt(gpu, bundle.manifest)))


@pytest.fixture(scope="module")
def engines(tiny_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    import shutil

    folder = tmp_path_factory.mktemp("bundles") / "engines"
    shutil.copytree(tiny_bundle("qwen2", "portable"), folder)
    return add_engines(folder, frames=8)


@pytest.fixture(params=["ort-cpu", "ort-cuda", "tensorrt"])
def chain(request: pytest.FixtureRequest, engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """The same bundle on every backend, those of a GPU on stand-ins for it."""
    return on(request.param, engines, monkeypatch)


def features_of(chain: Chain) -> Array:
    manifest = chain.manifest
    shape = FRAMES, manifest.token_layout.tokens_per_frame, manifest.model.decoder.hidden_size
    return structured_features(*shape, seed=3, cuts=(3,)).astype(chain.dtype)


def pixels_of(chain: Chain) -> Array:
    size = chain.manifest.preprocessing.size
    return np.random.default_rng(5).uniform(-1, 1, (FRAMES, 3, size, size)).astype(np.float32)


def as_arrays(chain: Chain, video: VideoTokens) -> list[Array]:
    return [chain.memory.download(video.tokens), video.group, video.patch_to_token, video.frame_segment]


def answer(chain: Chain, engines: Bundle, video: VideoTokens, **options: Any) -> tuple[int, ...]:
    prompt = Pipeline(engines, chain).prompt
    session = VideoSession(chain, prompt, chain.arrange(video, prompt), options.get("prune"))
    return session.ask("how many objects move ?", SHORT).token_ids


def test_every_way_to_lie_in_memory_gives_the_same(chain: Chain, engines: Bundle) -> None:
    features, pixels, prune = features_of(chain), pixels_of(chain), chain.manifest.prune
    merged = as_arrays(chain, chain.merge(features, prune))
    encoded = chain.memory.download(chain.encode(pixels))
    both = as_arrays(chain, chain.encode_and_merge(pixels, prune))
    plain = answer(chain, engines, chain.unmerged(features))
    assert len(merged[0]) < 0.9 * FRAMES * features.shape[1]
    for name, form in FORMS.items():
        given = form(features)
        np.testing.assert_array_equal(given, features)
        for found, expected in zip(as_arrays(chain, chain.merge(given, prune)), merged, strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=name)
        np.testing.assert_array_equal(chain.memory.download(chain.encode(form(pixels))), encoded, err_msg=name)
        for found, expected in zip(as_arrays(chain, chain.encode_and_merge(form(pixels), prune)), both, strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=name)
        assert answer(chain, engines, chain.unmerged(given)) == plain, name


def test_what_the_language_model_reads_may_lie_in_every_way_too(chain: Chain, engines: Bundle) -> None:
    video = chain.merge(features_of(chain), chain.manifest.prune)
    embeds = np.random.default_rng(6).standard_normal((9 + len(video.group), 64)).astype(chain.dtype)
    places = chain.positions(0, len(embeds))
    ids = np.concatenate([np.zeros(4, np.int64), np.full(len(video.group), -1), np.zeros(5, np.int64)])

    def run(form: Callable[[Array], Array]) -> list[Array]:
        cache = chain.new_cache(chain.pre_layers, len(embeds) + 1)
        hidden, scores = chain.run_pre(form(embeds), cache, places, scored=True)
        assert scores is not None
        there, scored = chain.memory.download(hidden), chain.memory.download(scores)
        given = Prefix(replace(video, group=form(video.group)), ids, places)
        kept = chain.run_select(form(scored), given, places, form(there), cache, chain.manifest.prune, 0)
        behind = chain.new_cache(chain.post_layers, len(embeds) + 1)
        logits = chain.run_post(form(there), behind, form(places))
        return [there, scored, chain.memory.download(kept.kept), chain.memory.download(kept.hidden), logits]

    expected = run(np.asarray)
    for name in ("transposed", "sliced along the last axis", "backwards", "other byte order", "unaligned"):
        for found, right in zip(run(FORMS[name]), expected, strict=True):
            np.testing.assert_array_equal(found, right, err_msg=name)


@pytest.mark.parametrize("selection", ["group", "global"])
def test_rows_among_a_videos_tokens_are_kept_wherever_the_graphs_run(
    chain: Chain, engines: Bundle, selection: str
) -> None:
    row = Piece(row=5)
    layout = replace(chain.manifest.token_layout, before_frame=(row,), after_frame=(row,))
    prune = replace(chain.manifest.prune, selection=selection)
    found = []
    for each in (chain, Chain(engines, OrtCpuBackend(threads=1))):
        each.manifest = replace(each.manifest, token_layout=layout)
        pipeline = Pipeline(engines, each)
        session = VideoSession(
            each, pipeline.prompt, each.arrange(each.merge(features_of(each), prune), pipeline.prompt), prune
        )
        answer = session.ask("how many objects move ?", SHORT)
        counts = answer.token_counts
        assert counts.text_before == len(pipeline.prompt.prefix) + 2 * FRAMES - 1
        assert counts.kept < counts.merged
        kept = session.attend("how many objects move ?")[1]
        assert len(kept) == counts.kept
        found.append((answer.token_ids, counts, kept.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.astype(np.float64), r"features of .* must be float32, not float64$"),
        (lambda a: a.astype(np.float16), r"features of .* must be float32, not float16$"),
        (lambda a: a.astype(np.int64), r"features of .* must be float32, not int64$"),
        (lambda a: a.astype(complex), r"features of .* must be float32, not complex128$"),
        (lambda a: a.astype(object), r"features of .* must be float32, not object$"),
        (lambda a: a[..., :-1], r"features of .* must have shape \[frames, 25, 64\], not \[6, 25, 63\]$"),
        (lambda a: a.swapaxes(1, 2), r"features of .* must have shape \[frames, 25, 64\], not \[6, 64, 25\]$"),
        (lambda a: a[0], r"features of .* must have shape \[frames, 25, 64\], not \[25, 64\]$"),
        (lambda a: a[None], r"features of .* must have shape"),
        (lambda a: a[:0], "there are no frames"),
        (lambda a: np.array(a[0, 0, 0]), r"features of .* must have shape \[frames, 25, 64\], not \[\]$"),
        (lambda a: a.tolist(), "features of .* must be an array, not a list$"),
    ],
)
def test_features_that_the_graph_does_not_take_are_refused_by_name(
    chain: Chain, change: Callable[[Array], Array], sentence: str
) -> None:
    given = change(features_of(chain))
    runs: list[Callable[[], object]] = [
        lambda: chain.merge(given, chain.manifest.prune),
        lambda: chain.unmerged(given),
    ]
    for run in runs:
        with pytest.raises(PruneVidError, match=sentence) as error:
            run()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.astype(np.float64), r"pixel_values of .* must be float32, not float64$"),
        (lambda a: (a * 100).astype(np.uint8), r"pixel_values of .* must be float32, not uint8$"),
        (lambda a: np.moveaxis(a, 1, -1), r"pixel_values of .* must have shape"),
        (lambda a: a[:, :, 1:], r"pixel_values of .* must have shape"),
        (lambda a: a[:0], "there are no frames"),
    ],
)
def test_pixels_that_the_graph_does_not_take_are_refused_by_name(
    chain: Chain, change: Callable[[Array], Array], sentence: str
) -> None:
    given = change(pixels_of(chain))
    for run in (lambda: chain.encode(given), lambda: chain.encode_and_merge(given, chain.manifest.prune)):
        with pytest.raises(PruneVidError, match=sentence):
            run()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": np.zeros((3, 64))}, "tokens of a video must be float32, not float64"),
        ({"tokens": np.zeros((3, 63), np.float32)}, r"tokens of a video must have shape \[visual, 64\], not \[3, 63\]"),
        ({"group": [0, 0, 1]}, "group of a video must be an array, not a list"),
        ({"group": np.zeros(3)}, "group of a video must be int64, not float64"),
    ],
)
def test_visual_tokens_made_by_hand_are_checked_too(
    chain: Chain, engines: Bundle, changes: dict[str, Any], sentence: str
) -> None:
    plain = chain.unmerged(np.ascontiguousarray(features_of(chain)[:1]))
    prune = chain.manifest.prune
    video = replace(plain, **changes)
    with pytest.raises(PruneVidError, match=sentence):
        answer(chain, engines, video, prune=prune)


def test_rows_of_another_shape_or_type_are_refused_by_name(chain: Chain) -> None:
    cache = chain.new_cache(chain.pre_layers, 8)
    for wrong in (np.zeros((2, 63), np.float32), np.zeros((2, 64)), np.zeros((1, 2, 64), np.float32)):
        with pytest.raises(PruneVidError, match="embeds of a prompt must"):
            chain.run_pre(wrong, cache, chain.positions(0, 2))
        with pytest.raises(PruneVidError, match="hidden of a prompt must"):
            chain.run_post(wrong[..., :63], chain.new_cache(chain.post_layers, 8), np.arange(2)[None])
    with pytest.raises(PruneVidError, match="position_ids of .* must be int64, not int32"):
        chain.run_post(
            np.zeros((1, 2, 64), np.float32), chain.new_cache(chain.post_layers, 8), np.arange(2, dtype=np.int32)[None]
        )


@pytest.mark.parametrize("ids", [[-1], [10**6], [1.5], ["a"]])
def test_ids_that_the_table_does_not_have_are_refused(chain: Chain, ids: list[Any]) -> None:
    with pytest.raises(PruneVidError, match="token ids must be whole numbers from 0 to"):
        chain.embed(ids)
    assert chain.embed([]).shape == (0, 64)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=4),
    st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=3),
    st.sampled_from(["f4", "f2", "i8", "i1"]),
)
def test_what_a_graph_reads_is_what_numpy_reads(shape: list[int], forms: list[str], dtype: str) -> None:
    values = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    given = values
    for name in forms:
        if shape and not (name == "unaligned" and dtype == "i1") and not (len(shape) < 2 and "middle" in name):
            given = FORMS[name](given)
    slot = Slot("a graph", "values", np.dtype(dtype), tuple(shape))
    read = slot.readable(given)
    assert isinstance(read, np.ndarray)
    assert read.flags.c_contiguous
    assert read.flags.aligned
    assert read.dtype.isnative
    assert read.tobytes() == values.tobytes()
    assert slot.readable(values) is values


def test_a_place_to_write_to_is_never_a_copy() -> None:
    slot, values = Slot("a graph", "values", np.dtype(np.float32), (4, 6)), np.zeros((4, 6), np.float32)
    assert slot.writable(values) is values
    for name in ("transposed", "backwards", "unaligned", "read-only, backwards"):
        with pytest.raises(PruneVidError, match="cannot be written into"):
            slot.writable(FORMS[name](values))
    with pytest.raises(PruneVidError, match="must be float32, not >f4|must be float32, not float32"):
        slot.writable(values.astype(">f4"))


@pytest.mark.parametrize("place", ["host", "device"])
def test_copies_neither_convert_nor_repeat(place: str) -> None:
    memory = HostMemory() if place == "host" else DeviceMemory(Cuda(FakeCuda()))
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    target = memory.empty((3, 4), np.dtype(np.float32))
    for name, form in FORMS.items():
        memory.copy(np.zeros((3, 4), np.float32), target)
        memory.copy(form(values), target)
        np.testing.assert_array_equal(memory.download(target), values, err_msg=name)
    for wrong in (values.astype(np.float64), values[:1], values.astype(np.int32), values.T.copy()):
        with pytest.raises(ValueError, match="cannot copy"):
            memory.copy(wrong, target)


def test_non_contiguous_features_answer_the_demos_questions(demo_bundle: Path) -> None:
    bundle = open_bundle(demo_bundle)
    chain = Chain(bundle, OrtCpuBackend())
    features = features_of(chain)
    given = np.ascontiguousarray(features.transpose(2, 0, 1)).transpose(1, 2, 0)
    found, right = (chain.merge(each, bundle.manifest.prune) for each in (given, features))
    np.testing.assert_array_equal(found.tokens, right.tokens)
    assert answer(chain, bundle, found, prune=bundle.manifest.prune) == answer(
        chain, bundle, right, prune=bundle.manifest.prune
    )
