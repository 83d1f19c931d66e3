"""How a video's tokens lie: what a manifest may say of it, and what the runtime makes of that."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import edit_manifest, replace_file
from numpy_backend import RecordingBackend

from prunevid import PruneVidError
from prunevid.bundle import Bundle, open_bundle
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.errors import InvalidValueError
from prunevid.runtime import Pipeline, SamplingConfig, load
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import OrtGraph
from prunevid.runtime.chain import Chain
from prunevid.runtime.session import VideoSession


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"position_axes": 3}, "3 position axes"),
        ({"encoding": "clip"}, "an encoder of whole clips"),
        ({"question_dependent": True}, "visual tokens that depend on the question"),
        ({"features": (729, 1152)}, "features of another shape than its tokens"),
    ],
)
def test_a_layout_that_the_runtime_cannot_follow_is_refused_by_name(
    tiny_bundle: Callable[[str, str], Path], change: dict[str, Any], named: str
) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", "ort"))
    layout = replace(bundle.manifest.token_layout, **change)
    declared = replace(bundle, manifest=replace(bundle.manifest, token_layout=layout))
    with pytest.raises(PruneVidError, match=f"the model llava-ov has {named}, which this release of prunevid cannot"):
        load(declared)


def test_a_second_tokenizer_is_declared_and_refused_by_name(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "ort"), tmp_path / "copy"))
    replace_file(folder, "bert.json", b"{}")
    edit_manifest(folder, lambda data: data["prompt"].update(question_tokenizer="bert.json"))
    assert open_bundle(folder).manifest.prompt.question_tokenizer == "bert.json"
    with pytest.raises(PruneVidError, match="has a second tokenizer for questions, which this release"):
        load(folder)


def test_rows_are_named_once_and_in_order() -> None:
    layout = TokenLayout(
        4,
        (2, 2),
        "video",
        (Piece(row=9), Piece(text="at {seconds:.1f}")),
        (Piece(row=3), Piece(row=9)),
        (Piece(row=7),),
    )
    assert layout.rows == (3, 7, 9)
    assert layout.visual(5) == 20


TEXTS = ["<{seconds:.1f} seconds>", "{{{seconds:.0f}}}", "no {{seconds", "{seconds:.2f}{seconds:.6f}"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_with_the_time_of_a_frame(text: str) -> None:
    assert Piece(text=text).is_timed == ("{seconds:" in text)
    with pytest.raises(InvalidValueError, match="only field is"):
        Piece(text=text + "{frame}")


class ThreeAxes(RecordingBackend):
    """Graphs of one axis as a model's of three: its decoder reads the first, and what it was given is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, list[np.ndarray]] = {"llm_pre": [], "llm_post": []}

    def load(self, bundle: Bundle, name: str) -> OrtGraph:
        """Load a graph of the bundle."""
        graph = super().load(bundle, name)
        if name in self.places:
            run = graph.run

            def first_axis(feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
                self.places[name].append(np.array(feeds["position_ids"]))
                return run({**feeds, "position_ids": feeds["position_ids"][:1]}, outputs)

            graph.run = first_axis  # type: ignore[method-assign]
        return graph


FRAMES = np.random.default_rng(0).integers(0, 256, (6, 60, 80, 3), dtype=np.uint8)
SAMPLING = SamplingConfig(max_new_tokens=4, ignore_eos=True)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("prune", [True, False])
def test_three_axes_go_through_select_and_the_session(
    tiny_bundle: Callable[[str, str], Path], dialect: str, prune: bool
) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", dialect))
    layout = replace(bundle.manifest.token_layout, position_axes=3)
    backend = ThreeAxes()
    bundle = replace(bundle, manifest=replace(bundle.manifest, token_layout=layout))
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    chain, prompt = pipeline.chain, pipeline.prompt
    settings = bundle.manifest.prune if prune else None
    features = pipeline.features(FRAMES).features
    video = chain.merge(features, settings) if settings else chain.unmerged(features)
    plain = chain.arrange(video, prompt)
    assert plain.positions.shape == (3, len(plain))
    # The first axis goes on as if there were no other, the second has the largest number of all.
    places = plain.positions + np.random.default_rng(1).integers(0, 50, plain.positions.shape)
    places[0], places[1, 7] = plain.positions[0], 900
    session = VideoSession(chain, prompt, replace(plain, positions=places), settings)
    question = prompt.encode("Why?").suffix
    rows, asked = len(plain), len(question)
    answer = session.ask("Why?", SAMPLING)

    everything = np.concatenate([places, np.tile(901 + np.arange(asked), (3, 1))], axis=1)
    np.testing.assert_array_equal(np.concatenate(backend.places["llm_pre"], axis=1)[:, : rows + asked], everything)
    kept = np.arange(rows + asked)
    if prune:
        (chosen,) = [run for run in backend.runs if run[0] == "select"]
        np.testing.assert_array_equal(chosen[1]["position_ids"], everything)
        gone = np.setdiff1d(np.arange(len(video.group)), chosen[2]["kept"])
        assert len(gone) > 0
        kept = np.delete(kept, plain.start + gone)
        np.testing.assert_array_equal(chosen[2]["kept_position_ids"], everything[:, kept])
    behind = np.concatenate(backend.places["llm_post"], axis=1)
    np.testing.assert_array_equal(behind[:, : len(kept)], everything[:, kept])
    steps = np.tile(901 + asked + np.arange(3), (3, 1))
    np.testing.assert_array_equal(behind[:, len(kept) :], steps)
    np.testing.assert_array_equal(np.concatenate(backend.places["llm_pre"], axis=1)[:, rows + asked :], steps)
    assert len(answer.token_ids) == 4

    # Alike on all axes, they are one axis.
    alike = VideoSession(chain, prompt, plain, settings).ask("Why?", SAMPLING)
    one_axis = load(tiny_bundle("qwen2", dialect)).open(FRAMES, prune=prune).ask("Why?", SAMPLING)
    assert alike.token_ids == one_axis.token_ids
