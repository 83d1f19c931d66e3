"""Optimization profiles: every input of every graph has a range, and ONNX Runtime runs at its ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import cpu_session

from prunevid.bundle import Bundle, open_bundle
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.errors import PruneVidError
from prunevid.export.engine.inputs import make_inputs, sizes_at
from prunevid.export.engine.profiles import limits_of, profiles_of, recorded, shapes_of
from prunevid.runtime.sequence import VideoTokens, arrange
from prunevid.text.chat import ChatPrompt

GRAPHS = {"vision_merge": 1, "merge": 1, "llm_pre": 1, "select": 2, "llm_post": 1}
CORNERS = ("minimum", "optimum", "maximum")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str, str], Path]) -> Bundle:
    return open_bundle(tiny_bundle("qwen2", "portable"), verify=False)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("frames", "text"), [(None, 1024), (1, 32), (7, 100)])
def test_every_input_has_a_range(bundle: Bundle, graph: str, frames: int | None, text: int) -> None:
    limits = limits_of(bundle.manifest, frames, text)
    profiles = profiles_of(bundle.manifest, graph, limits)
    assert len(profiles) == GRAPHS[graph]
    for profile in profiles:
        ranges = shapes_of(bundle.manifest, graph, profile)
        assert list(ranges) == [spec.name for spec in bundle.manifest.graphs[graph].inputs]
        for at in ranges.values():
            corners = zip(at.minimum, at.optimum, at.maximum, strict=True)
            assert all(least <= usual <= most for least, usual, most in corners)
        for value in profile.values.values():
            assert value.minimum <= value.optimum <= value.maximum
    assert limits.rows <= bundle.manifest.prompt.max_positions


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnx_runtime_runs_at_the_corners(bundle: Bundle, graph: str) -> None:
    manifest = bundle.manifest
    session = cpu_session(str(bundle.file(manifest.graphs[graph].file)))
    # Few frames, so that the tests stay short; all else as a build has it.
    for profile in profiles_of(manifest, graph, limits_of(manifest, 6, 64)):
        for place, corner in enumerate(CORNERS):
            sizes = sizes_at(profile, corner)
            values = {name: value[place] for name, value in profile.values.items()}
            feeds = make_inputs(manifest, graph, sizes, values)
            shapes = {name: getattr(at, corner) for name, at in shapes_of(manifest, graph, profile).items()}
            assert {name: array.shape for name, array in feeds.items()} == shapes
            outputs = session.run(None, feeds)
            for spec, found in zip(manifest.graphs[graph].outputs, outputs, strict=True):
                assert str(found.dtype) == spec.dtype
                known = [sizes.get(dim) if isinstance(dim, str) else dim for dim in spec.shape]
                assert all(a == b for a, b in zip(known, found.shape, strict=True) if a is not None), spec.name


def test_no_engine_takes_zero_new_frames(bundle: Bundle) -> None:
    limits = limits_of(bundle.manifest)
    (encode,) = profiles_of(bundle.manifest, "vision_merge", limits)
    (merge,) = profiles_of(bundle.manifest, "merge", limits)
    size = bundle.manifest.preprocessing.size
    ranges = shapes_of(bundle.manifest, "vision_merge", encode)
    assert ranges["pixel_values"].minimum == (1, 3, size, size)
    assert (ranges["past_features"].minimum[0], ranges["past_features"].maximum[0]) == (0, bundle.manifest.frames - 1)
    features = shapes_of(bundle.manifest, "merge", merge)["features"]
    assert (features.minimum[0], features.maximum[0]) == (1, bundle.manifest.frames)


def test_the_limits_hold_a_question_of_the_whole_video(bundle: Bundle) -> None:
    limits = limits_of(bundle.manifest, frames=8, text=200)
    tokens = 8 * bundle.manifest.token_layout.tokens_per_frame
    assert (limits.visual, limits.rows) == (tokens, tokens + 200)
    for select in profiles_of(bundle.manifest, "select", limits):
        assert select.sizes["visual"].maximum == tokens
        assert select.sizes["total"].maximum == tokens + 200


@pytest.mark.parametrize("frames", [1, 8, 60])
@pytest.mark.parametrize("selection", ["group", "global"])
def test_the_limits_hold_what_stands_among_frames_too(bundle: Bundle, frames: int, selection: str) -> None:
    pieces = tuple(Piece(text=text) for text in ("<{seconds:.1f} seconds>", "\N{SNOWFLAKE} at {seconds:.0f} s"))
    tokens = bundle.manifest.token_layout.tokens_per_frame
    layout = TokenLayout(tokens, None, before_frame=pieces[:1], after_frame=pieces[1:])
    manifest = dataclasses.replace(bundle.manifest, token_layout=layout)
    limits = limits_of(manifest, frames)
    several, one = profiles_of(manifest, "select", limits)
    # The most rows, and the most groups: nothing is merged. A byte is a token.
    index = np.arange(frames * tokens)
    patches, zeros = index.reshape(frames, tokens), np.zeros(frames, np.int64)
    video = VideoTokens(index[:, None], index // tokens, patches, zeros, 9999.96 + zeros)
    prefix = arrange(video, ChatPrompt.of(bundle), layout)
    contest = prefix.contest(dataclasses.replace(manifest.prune, selection=selection), tokens)
    sizes = (one if selection == "global" else several).sizes
    assert prefix.marks.sum() == (frames - 1) * len("<10000.0 seconds>\N{SNOWFLAKE} at 10000 s".encode())
    assert len(contest.group) <= sizes["visual"].maximum
    assert max(len(contest.quota), sizes["groups"].minimum) <= sizes["groups"].maximum
    assert len(prefix) <= sizes["total"].maximum


@pytest.mark.parametrize(
    ("frames", "text", "sentence"),
    [
        (0, 1024, "frames must be 1 or more"),
        (4, 8, "text must be 32 or more"),
        (4000, 1024, "100000 visual tokens, the model has 4096 positions"),
    ],
)
def test_limits_that_make_no_sense(bundle: Bundle, frames: int, text: int, sentence: str) -> None:
    with pytest.raises(PruneVidError, match=sentence):
        limits_of(bundle.manifest, frames, text)


def test_values_are_recorded_for_the_inputs_that_make_shapes(bundle: Bundle) -> None:
    select, _ = profiles_of(bundle.manifest, "select", limits_of(bundle.manifest))
    found = recorded(bundle.manifest, "select", select, ["video_start"])
    assert found.values["video_start"].minimum == (0,)
    assert found.shapes["video_start"].maximum == (1,)
    with pytest.raises(PruneVidError, match="computes shapes of select from its input quota"):
        recorded(bundle.manifest, "select", select, ["quota"])


def test_one_group_of_all_tokens_keeps_as_many_as_tensorrt_sorts(bundle: Bundle) -> None:
    limits = limits_of(bundle.manifest, frames=160)
    assert limits.visual == 4000
    several, one = profiles_of(bundle.manifest, "select", limits)
    assert (several.sizes["groups"].minimum, several.values["kept_count"].maximum) == (2, 4000)
    assert (one.sizes["groups"], one.values["kept_count"].maximum) == ((1, 1, 1), 3839)


def test_a_longer_text_than_the_model_takes_is_cut(bundle: Bundle) -> None:
    prompt = dataclasses.replace(bundle.manifest.prompt, max_positions=300)
    limits = limits_of(dataclasses.replace(bundle.manifest, prompt=prompt), frames=8)
    assert (limits.visual, limits.rows) == (200, 300)
