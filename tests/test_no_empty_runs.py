"""Nothing runs a graph over zero frames, whatever is asked of the runtime: ONNX Runtime 1.22 to 1.27 die of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

from demo import world
from prunevid.bundle.sections.blocks import DEFAULT_BLOCKS
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.questions import read_questions
from prunevid.calibration.tuning.budget import Budget
from prunevid.calibration.tuning.search import Grid
from prunevid.calibration.tuning.tune import TuneSettings, tune
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import OrtGraph
from prunevid.runtime.fit import one_run
from prunevid.runtime.profile import profile
from prunevid.runtime.profile.measure import ProfileSettings
from prunevid.runtime.profile.operator_times import measure_operators
from prunevid.runtime.show.maps import observe

QUESTION = "what colour is the circle ?"
SHORT = SamplingConfig(max_new_tokens=2)
FRAMES = world.make_video("validation", 10_000).frames


class Runs:
    """How many frames every run of vision_merge and merge had, and how many there were of each graph."""

    def __init__(self) -> None:
        self.new: list[int] = []
        self.merged: list[int] = []
        self.of: Counter[str] = Counter()

    def note(self, name: str, feeds: Mapping[str, Array]) -> None:
        self.of[name] += 1
        self.new += [len(feeds["pixel_values"])] if "pixel_values" in feeds else []
        self.merged += [len(feeds["features"])] if "features" in feeds else []


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """All runs of all graphs in this process, whoever loaded them."""
    found, run = Runs(), OrtGraph.run

    def noted(self: OrtGraph, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        found.note(self._file.stem, feeds)
        return run(self, feeds, outputs)

    monkeypatch.setattr(OrtGraph, "run", noted)
    return found


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    lines = []
    for index in range(4):
        sample = world.make_video("validation", 10_000 + index)
        write_video(tmp_path / f"{index}.mp4", sample.frames, fps=4)
        lines.append(json.dumps({"video": f"{index}.mp4", "question": sample.questions[0].text}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    return tmp_path / "questions.jsonl"


FRAMES_AT_ONCE = DEFAULT_BLOCKS.frames


@pytest.mark.parametrize("frames", [1, FRAMES_AT_ONCE - 1, FRAMES_AT_ONCE, FRAMES_AT_ONCE + 1, 2 * FRAMES_AT_ONCE])
def test_a_files_last_batch_merges_on_its_way(demo_bundle: Path, runs: Runs, frames: int) -> None:
    pipeline = load(demo_bundle)
    session = pipeline.open(FRAMES[:frames], frames=frames)
    session.ask(QUESTION, SHORT)
    session.ask("how many objects move ?", SHORT)
    batches = -(-frames // FRAMES_AT_ONCE)
    assert runs.of["vision_merge"] == batches
    assert runs.of["merge"] == 0
    assert (sum(runs.new), min(runs.new)) == (frames, (frames - 1) % FRAMES_AT_ONCE + 1)
    apart = pipeline.session(pipeline.features(FRAMES[:frames], frames))
    assert runs.of["vision_merge"] == 2 * batches
    assert runs.merged == [frames]
    for name in ("tokens", "group", "patch_to_token", "frame_segment"):
        np.testing.assert_array_equal(getattr(session.video, name), getattr(apart.video, name))


def test_an_unpruned_run_merges_nothing(demo_bundle: Path, runs: Runs) -> None:
    load(demo_bundle).open(FRAMES[:6], frames=6, prune=False).ask(QUESTION, SHORT)
    assert (runs.new, runs.of["merge"]) == ([4, 2], 0)


def test_what_looks_and_measures_runs_no_empty_batch(
    demo_bundle: Path, runs: Runs, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, clip = load(demo_bundle), questions.parent / "0.mp4"
    observe(pipeline, clip, QUESTION, frames=5)
    observe(pipeline, clip, QUESTION, frames=5, prune=False)
    profile(pipeline, clip, QUESTION, ProfileSettings(frames=(4, 5), runs=1, warmup=0, max_new_tokens=2))
    measure_operators(pipeline.bundle, clip, QUESTION, frames=4, prune=pipeline.bundle.manifest.prune, max_new_tokens=2)
    for pruned in (True, False):
        one_run._run(str(demo_bundle), 5, pruned)
    assert runs.of["merge"] > 0
    assert min(runs.new) >= 1
    assert min(runs.merged) >= 1


def test_what_calibrates_and_tunes_runs_no_empty_batch(
    demo_bundle: Path, runs: Runs, questions: Path, tmp_path: Path
) -> None:
    asked = read_questions(questions)
    made = calibrate(demo_bundle, asked, tmp_path / "int8", Settings("cpu-int8", min_agreement=0.0, kv_cache="int8"))
    budget = TuneSettings(
        Budget(max_tokens=0.9),
        Grid(
            {"segment_ratio": (0.25,), "static_threshold": (0.8,), "cluster_ratio": (0.25,), "keep_ratio": (0.1, 0.4)}
        ),
        least_held_out=0.0,
    )
    tuned = tune([made.bundle.path], asked, tmp_path / "tuned", budget)
    # A graph without weights goes along as it is.
    assert (tuned.bundle.path / "merge.onnx").read_bytes() == (demo_bundle / "merge.onnx").read_bytes()
    assert runs.of["merge"] > 0
    assert min(runs.new) >= 1
    assert min(runs.merged) >= 1
