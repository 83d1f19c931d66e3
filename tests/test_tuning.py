"""Tuning pruning settings: fronts, the search, what is written, what is refused, what is resumed."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from videos import write_video

from demo import world
from prunevid import PruneConfig, PruneVidError
from prunevid.bundle import open_bundle
from prunevid.calibration.judge import divergence, normal
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.questions import AskedVideo, Question, read_questions, split
from prunevid.calibration.tuning.budget import Budget
from prunevid.calibration.tuning.front_page import draw_page
from prunevid.calibration.tuning.latency import ROUNDS, measure_ttft
from prunevid.calibration.tuning.pareto import clearly_worse, front, interval, layers
from prunevid.calibration.tuning.search import Grid, largest_effort, rounds
from prunevid.calibration.tuning.trials import Candidate, Trials, stream_each
from prunevid.calibration.tuning.tune import Tuned, TuneSettings, tune
from prunevid.calibration.workspace import Workspace
from prunevid.cli import main
from prunevid.console.progress import Silent
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
VIDEOS, PER_VIDEO = 8, 3
GRID = Grid(
    {"segment_ratio": (0.25,), "static_threshold": (0.8, 0.9), "cluster_ratio": (0.25, 0.5), "keep_ratio": (0.1, 0.4)}
)
SHORT = SamplingConfig(max_new_tokens=16)

points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 5)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(drawn: list[tuple[int, int, int]]) -> None:
    quality, cost = [(float(a), float(b)) for a, b, _ in drawn], [float(c) for _, _, c in drawn]

    def beats(a: int, b: int) -> bool:
        return quality[a] >= quality[b] and cost[a] <= cost[b] and (quality[a], cost[a]) != (quality[b], cost[b])

    best = [b for b in range(len(drawn)) if not any(beats(a, b) for a in range(len(drawn)))]
    found = front(quality, cost)
    assert {(quality[i], cost[i]) for i in found} == {(quality[i], cost[i]) for i in best}
    assert len(found) == len({(quality[i], cost[i]) for i in best})
    assert [cost[i] for i in found] == sorted(cost[i] for i in found)
    assert set(found) == {i for i, depth in enumerate(layers(quality, cost)) if depth == 0}


def test_chance_is_told_from_being_worse() -> None:
    same = np.ones((3, 8), bool)
    same[1, :2] = False  # two questions of eight: may be chance
    same[2, :4] = False
    cheap_first = np.array([[1.0], [2.0], [3.0]])
    assert clearly_worse(same, cheap_first).tolist() == [False, False, True]
    assert clearly_worse(same, -cheap_first).tolist() == [False, False, False]
    low, high = interval(1.0, 100)
    assert low == pytest.approx(0.963, abs=1e-3)
    assert high == 1.0


@given(st.integers(1, 40), st.integers(2, 32), st.integers(1, 4))
def test_effort_is_bounded_before_it_begins(count: int, videos: int, fixed: int) -> None:
    asked = [AskedVideo(Path(str(number)), (Question("?"),) * 2) for number in range(videos)]
    upto = rounds(videos)
    assert upto[-1] == videos
    effort = largest_effort(count, fixed, asked)
    assert 2 * count * upto[0] <= effort <= 2 * max(count, fixed) * videos


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions about a few videos of the demo's world."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for index in range(VIDEOS):
        sample = world.make_video("validation", 10_000 + index)
        write_video(folder / f"{index}.mp4", sample.frames, fps=4)
        lines += [
            json.dumps({"video": f"{index}.mp4", "question": question.text, "answer": question.answer})
            for question in sample.questions[:PER_VIDEO]
        ]
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def shallower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with another prune layer."""
    from prunevid.export import export

    output = tmp_path_factory.mktemp("bundles") / "shallower"
    return export("demo", output, prune=lambda layers: replace(PruneConfig(), prune_layer=1)).path


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_one_run_of_llm_pre_serves_all_keep_ratios(tiny_bundle: Callable[[str, str], Path], dialect: str) -> None:
    pipeline = load(tiny_bundle("qwen2", dialect), "ort-cpu")
    frames = world.make_video("validation", 1).frames
    ratios = (0.1, 0.3, 0.5, 1.0)
    prune = pipeline.bundle.manifest.prune
    shared = pipeline.open(frames, prune=replace(prune, keep_ratio=0.7))
    for question in ("what is it?", "and where does it go then?"):
        for ratio, stream in zip(ratios, stream_each(shared, question, ratios, SHORT), strict=True):
            "".join(stream)
            plain = pipeline.open(frames, prune=replace(prune, keep_ratio=ratio)).stream(question, SHORT)
            "".join(plain)
            assert stream.answer.token_ids == plain.answer.token_ids
            assert stream.answer.token_counts == plain.answer.token_counts
            assert stream.first_logits is not None
            assert plain.first_logits is not None
            assert np.array_equal(stream.first_logits, plain.first_logits)
    with pytest.raises(PruneVidError, match="prunes nothing"):
        next(stream_each(pipeline.open(frames, prune=False), "what?", ratios, SHORT))


@pytest.fixture(scope="module")
def tuned(demo_bundle: Path, shallower: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A run that nothing interrupts, over two prune layers."""
    output = tmp_path_factory.mktemp("tuned") / "out"
    settings = TuneSettings(Budget(max_tokens=0.1), GRID, least_held_out=0.5)

    def write(found: dict[str, Any]) -> None:
        (output.parent / "a.json").write_text(json.dumps(found))

    made = tune([demo_bundle, shallower], read_questions(questions), output, settings, on_front=write)
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.json", "out"]
    return made


def test_the_written_bundle_does_what_its_manifest_says(tuned: Tuned, questions: Path) -> None:
    bundle = open_bundle(tuned.bundle.path)
    said = bundle.manifest.tuning
    assert said is not None
    assert said.max_tokens == 0.1
    assert tuned.found.tried[tuned.chosen.candidate].kept_share <= 0.1
    assert bundle.manifest.prune == tuned.chosen.candidate.prune
    pipeline, same, kept, divergences, right = load(bundle, "ort-cpu"), [], [], [], []
    for video in split(read_questions(questions)).held_out:
        sessions = [pipeline.open(video.path, prune=prune) for prune in (False, True)]
        for question in video.questions:
            streams = [session.stream(question.text, SHORT) for session in sessions]
            texts = ["".join(stream) for stream in streams]
            same.append(normal(texts[0]) == normal(texts[1]))
            right.append(normal(texts[1]) == question.answer)
            kept.append(streams[1].answer.token_counts.retained)
            first = [stream.first_logits for stream in streams]
            divergences.append(divergence(np.array(first[:1]), np.array(first[1:]))[0])
    assert said.questions == len(same) == VIDEOS // 2 * PER_VIDEO
    assert said.agreement == np.mean(same)
    assert said.kept == pytest.approx(np.mean(kept), abs=1e-12)
    # The unpruned reference is the first bundle's, whose layers are cut elsewhere.
    assert said.divergence == pytest.approx(np.mean(divergences), abs=1e-4)
    assert tuned.chosen.accuracy == np.mean(right)
    assert tuned.unpruned.outcome.agreement == 1


def test_a_quantized_bundle_is_tuned_as_it_is(demo_bundle: Path, questions: Path, tmp_path: Path) -> None:
    """Against itself unpruned, in int8 with its KV cache."""
    videos, settings = read_questions(questions), Settings("cpu-int8", min_agreement=0.5, kv_cache="int8")
    source = calibrate(demo_bundle, videos, tmp_path / "int8", settings).bundle
    budget = TuneSettings(
        Budget(max_tokens=0.1),
        Grid({**GRID.instead, "static_threshold": (0.8,), "cluster_ratio": (0.25,)}),
        least_held_out=0.5,
    )
    made = tune([source.path], videos, tmp_path / "out", budget)
    assert made.bundle.manifest.quantization == source.manifest.quantization
    assert made.bundle.manifest.prune == made.chosen.candidate.prune != source.manifest.prune
    assert made.unpruned.outcome.agreement == 1.0
    assert made.chosen.outcome.kept_share <= 0.1
    stream = load(made.bundle).open(videos[0].path).stream(videos[0].questions[0].text, SHORT)
    assert "".join(stream)
    assert stream.answer.pruned


def test_all_that_was_tried_is_in_the_json(tuned: Tuned) -> None:
    data = json.loads((tuned.bundle.path.parent / "a.json").read_text())
    assert len(data["settings"]) == len(tuned.found.tried)
    assert {entry["prune"]["prune_layer"] for entry in data["settings"]} == {1, 2}
    assert sum(entry["present"] for entry in data["settings"]) == 1
    assert [e["agreement"] for e in data["settings"] if e["unpruned"]] == [1.0]
    for entry in data["settings"]:
        assert entry["interval"][0] <= entry["agreement"] <= entry["interval"][1]
        if entry["on_front_of_tokens"]:
            assert entry["finished"]
            assert entry["ttft_ms"] > 0
    timed = [entry for entry in data["settings"] if entry["ttft_ms"] is not None]
    fastest = min(timed, key=lambda entry: entry["ttft_ms"])
    assert fastest["on_front_of_ttft"]
    for entry in data["settings"]:
        better = [t for t in timed if entry["ttft_ms"] is None or t["ttft_ms"] < entry["ttft_ms"]]
        dominated = any(
            (t["agreement"], -t["divergence"]) >= (entry["agreement"], -entry["divergence"]) for t in better
        )
        assert entry["on_front_of_ttft"] == (entry["ttft_ms"] is not None and not dominated)


def test_times_are_taken_in_two_passes_over_the_bundles(tuned: Tuned, tmp_path: Path) -> None:
    """There and back: a machine that slows down meanwhile slows every bundle down."""
    opened: list[int] = []

    class Counting(Trials):
        def pipeline(self, bundle: int) -> Pipeline:
            opened.append(bundle)
            return super().pipeline(bundle)

    bundles = [tuned.bundle, tuned.bundle]
    trials = Counting(bundles, Workspace(tmp_path / "out", "a"), SamplingConfig(max_new_tokens=1), 1, lambda _: None)
    wanted = [
        Candidate(bundle, replace(tuned.bundle.manifest.prune, keep_ratio=keep))
        for bundle, keep in ((0, 0.2), (1, 0.2), (1, 0.4))
    ]
    clip = AskedVideo(ROOT / "demo" / "clip.mp4", (Question("what shape is the pink object?"),))
    found = measure_ttft(trials, wanted, [clip], Workspace(tmp_path / "out", "a"))
    assert found.keys() == set(wanted)
    assert all(milliseconds > 0 for milliseconds in found.values())
    in_one_pass = ROUNDS // 2 + 1
    assert opened == [0] * in_one_pass + [1] * 2 * in_one_pass + [0] * in_one_pass


def test_the_page_says_what_the_json_says(tuned: Tuned) -> None:
    data = json.loads((tuned.bundle.path.parent / "a.json").read_text())
    page = draw_page(data)
    figures = re.findall(r'<data value="([^"]+)" data-at="/settings/(\d+)/(\w+)">', page)
    assert len(figures) > 10
    for value, number, key in figures:
        assert float(value) == data["settings"][int(number)][key]
    assert 'class="chosen"' in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


class Killed(Silent):
    """Ends the run after some answers."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, units: float = 1) -> None:
        self.left -= int(units)
        if self.left < 0:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_and_finds_the_same(
    tuned: Tuned, demo_bundle: Path, shallower: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, videos, output = [demo_bundle, shallower], read_questions(questions), tmp_path / "out"
    settings = TuneSettings(Budget(max_tokens=0.1), GRID, least_held_out=0.5)
    with pytest.raises(KeyboardInterrupt):
        tune(sources, videos, output, settings, Killed(70))
    assert [path.name for path in tmp_path.iterdir()] == [".out.calibration"]
    with (tmp_path / ".out.calibration" / "journal.jsonl").open("a") as journal:
        journal.write('{"step": "answers 0')
    asked: list[str] = []
    ask = Trials._ask_unpruned

    def noting(trials: Trials, name: str, video: AskedVideo) -> None:
        asked.append(name)
        ask(trials, name, video)

    monkeypatch.setattr(Trials, "_ask_unpruned", noting)
    made = tune(sources, videos, output, settings)
    assert "calibration-0" not in asked
    assert made.chosen.candidate == tuned.chosen.candidate
    assert made.found.finished == tuned.found.finished
    assert (made.found.on_tokens, made.found.on_flops) == (tuned.found.on_tokens, tuned.found.on_flops)
    for candidate, outcome in made.found.tried.items():
        before = tuned.found.tried[candidate]
        assert outcome.texts == before.texts
        assert np.array_equal(outcome.divergences, before.divergences)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def prunevid(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and error of the command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["calibrate", *map(str, arguments)])
        except SystemExit as left:
            status = int(left.code or 0)
    return status, out.getvalue(), err.getvalue()


def test_budgets_that_cannot_be_kept_name_the_nearest(demo_bundle: Path, questions: Path, tmp_path: Path) -> None:
    """Then another budget goes on with the same answers, through the command line."""
    small = [part for name in ("segment_ratio=0.25", "static_threshold=0.8", "cluster_ratio=0.5", "keep_ratio=0.1,0.4")
             for part in ("--search", name)]  # fmt: skip
    common = (demo_bundle, "--tune-pruning", "--questions", questions, "--output", tmp_path / "out", *small)
    status, _, said = prunevid(
        *common, "--max-tokens", "0.001", "--json", tmp_path / "a.json", "--png", tmp_path / "a.png"
    )
    assert status == 2
    assert "the nearest is segment_ratio 0.25" in said
    assert "keep_ratio 0.1" in said
    assert "prune_layer is not searched" in said
    assert not any(entry["chosen"] for entry in json.loads((tmp_path / "a.json").read_text())["settings"])
    assert Image.open(tmp_path / "a.png").size == (2400, 940)
    assert not (tmp_path / "out").exists()
    status, _, said = prunevid(*common, "--max-ttft-ms", "0.01")
    assert status == 2
    assert "no setting that was tried keeps --max-ttft-ms 0.01" in said
    assert re.search(r"the nearest is .*first token after \d", said)
    status, printed, said = prunevid(*common, "--max-ttft-ms", "1e9", "--min-agreement", "0.5")
    assert status == 0, said
    assert "going on" in said
    assert "held-out questions" in printed
    tuning = open_bundle(tmp_path / "out").manifest.tuning
    assert tuning is not None
    assert (tuning.max_ttft_ms, tuning.min_agreement) == (1e9, 0.5)


def test_what_does_too_little_on_held_out_questions_is_written_by_force_alone(
    demo_bundle: Path, questions: Path, tmp_path: Path
) -> None:
    settings = TuneSettings(Budget(max_tokens=0.1), GRID, least_held_out=1.01)  # more than any setting can do
    with pytest.raises(PruneVidError, match="does too little: .* nothing was written"):
        tune([demo_bundle], read_questions(questions), tmp_path / "out", settings)
    assert [path.name for path in tmp_path.iterdir()] == [".out.calibration"]
    made = tune([demo_bundle], read_questions(questions), tmp_path / "out", replace(settings, force=True))
    assert made.bundle.manifest.prune == made.chosen.candidate.prune
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_does_not_go_together_is_refused(
    demo_bundle: Path, tiny_bundle: Callable[[str, str], Path], questions: Path, tmp_path: Path
) -> None:
    tune_it, output = ("--tune-pruning", "--questions", questions), ("--output", tmp_path / "out")
    tokens = ("--max-tokens", "0.1")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((demo_bundle, *tune_it), "needs a budget"),
        ((demo_bundle, *tune_it, "--recipe", "cpu-int8"), "not allowed with"),
        ((demo_bundle, *tune_it, *tokens, "--max-kl", "1"), "--max-kl does not go with --tune-pruning"),
        ((demo_bundle, "--recipe", "cpu-int8", "--questions", questions, *tokens), "--max-tokens does not go with"),
        ((demo_bundle, demo_bundle, "--recipe", "cpu-int8", "--questions", questions), "a recipe is for one BUNDLE"),
        ((demo_bundle, demo_bundle, *tune_it, *tokens), "two bundles have the prune_layer 2"),
        ((demo_bundle, tiny_bundle("qwen2", "ort"), *tune_it, *tokens), "differ in their model"),
        ((demo_bundle, *tune_it, "--max-tokens", "nan"), "--max-tokens: give a number such as 0.5, not 'nan'"),
        ((demo_bundle, *tune_it, "--max-tokens", "2"), "--max-tokens must be a share"),
        ((demo_bundle, *tune_it, *tokens, "--search", "prune_layer=1,2"), "write SETTING=X,Y,..."),
        ((demo_bundle, *tune_it, *tokens, "--search", "keep_ratio=0"), "keep_ratio must be"),
    ]
    for arguments, said in cases:
        status, _, printed = prunevid(*arguments, *output)
        assert status == 2
        assert said in printed
    assert list(tmp_path.iterdir()) == []


def test_a_tampered_record_is_refused(tuned: Tuned, tmp_path: Path) -> None:
    manifest = json.loads((tuned.bundle.path / "manifest.json").read_text())
    for name, value in (("agreement", 1.5), ("kept", float("nan")), ("questions", "many"), ("divergence", -1.0)):
        changed = {**manifest, "tuning": {**manifest["tuning"], name: value}}
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(PruneVidError, match="is damaged"):
            open_bundle(tmp_path)
