"""`prunevid profile` on the demo bundle: what it measures adds up, and every output says the same."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunevid import PruneConfig, PruneVidError
from prunevid.cli import main
from prunevid.cost import TokenCounts, decode_flops, prefill_cost
from prunevid.runtime import Pipeline, SamplingConfig, load
from prunevid.runtime.profile import ProfileSettings, profile
from prunevid.runtime.profile.measure import _group_sizes
from prunevid.runtime.profile.operator_times import read_ort_profile
from prunevid.runtime.profile.records import ProfileResult
from prunevid.runtime.profile.summary import summarise
from prunevid.runtime.sequence import VideoTokens

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "demo" / "clip.mp4"
TOKENS = 5
STAGES = ["video", "preprocess", "vision", "merge", "llm_pre", "select", "llm_post"]


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return load(demo_bundle, threads=2)


@pytest.fixture(scope="module")
def run(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of the command with all its outputs, as a user starts it."""
    folder = tmp_path_factory.mktemp("profile")
    options = ("--video", str(CLIP), "--frames", "8", "--runs", "3", "--warmup", "1", "--threads", "2")
    outputs = [item for kind in ("json", "csv", "html") for item in (f"--{kind}", str(folder / f"out.{kind}"))]
    command = [sys.executable, "-m", "prunevid.cli", "profile", str(demo_bundle), *options, "--ops", *outputs]
    command += ["--max-new-tokens", str(TOKENS)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


@pytest.fixture(scope="module")
def data(run: tuple[Path, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run[0] / "out.json").read_text())
    return found


def test_the_parts_of_every_run_add_up_to_its_whole(data: dict[str, Any]) -> None:
    assert len(data["runs"]) == 8
    for run in data["runs"]:
        stages, decode = sum(run["stages_s"].values()), sum(run["decode_s"])
        assert run["unattributed_s"] == pytest.approx(run["end_to_end_s"] - stages - decode, abs=1e-9)
        assert 0 <= run["unattributed_s"] < run["end_to_end_s"]
        # The first token is timed on its own: after all stages, before all decode steps.
        assert stages <= run["first_token_s"] <= run["end_to_end_s"] - decode
        assert list(run["stages_s"]) == [s for s in STAGES if run["variant"] == 0 or s not in ("merge", "select")]
    # On a quiet machine it is well below a percent; this one may be interrupted anywhere.
    assert min(run["unattributed_s"] / run["end_to_end_s"] for run in data["runs"]) < 0.05


def test_variants_take_turns_and_turn_around_every_round(data: dict[str, Any]) -> None:
    runs = data["runs"]
    assert [run["variant"] for run in runs] == [0, 1, 1, 0, 0, 1, 1, 0]
    assert [run["round"] for run in runs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [run["is_warmup"] for run in runs] == [True] * 2 + [False] * 6
    for run, following in zip(runs, runs[1:], strict=False):
        assert run["begin_s"] + run["end_to_end_s"] <= following["begin_s"]


def test_statistics_are_those_of_the_measured_runs(data: dict[str, Any]) -> None:
    for index, variant in enumerate(data["variants"]):
        runs = [run for run in data["runs"] if run["variant"] == index and not run["is_warmup"]]
        for stage in variant["stages"]:
            check(stage["time"], [run["stages_s"][stage["name"]] for run in runs])
        check(variant["first_token"], [run["first_token_s"] for run in runs])
        check(variant["end_to_end"], [run["end_to_end_s"] for run in runs])
        check(variant["unattributed"], [run["unattributed_s"] for run in runs])
        check(variant["decode"]["time"], [step for run in runs for step in run["decode_s"]])
        assert len(variant["decode"]["steps"]) == TOKENS - 1
        for number, step in enumerate(variant["decode"]["steps"]):
            check(step, [run["decode_s"][number] for run in runs])
        assert variant["decode"]["tokens_per_s"] == 1 / variant["decode"]["time"]["median_s"]


def check(summary: dict[str, float], times: list[float]) -> None:
    assert summary["n"] == len(times)
    assert summary["median_s"] == pytest.approx(statistics.median(times))
    assert summary["median_s"] <= summary["p90_s"] <= summary["p99_s"] <= max(times)


def test_percentiles_interpolate_between_sorted_times() -> None:
    summary = summarise([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (summary.n, summary.median_s) == (5, 3.0)
    assert summary.p90_s == pytest.approx(4.6)
    assert summary.p99_s == pytest.approx(4.96)


def test_tokens_flow_from_stage_to_stage(data: dict[str, Any]) -> None:
    pruned, unpruned = data["variants"]
    assert (pruned["name"], unpruned["name"]) == ("pruned", "unpruned")
    tokens = pruned["tokens"]
    text = tokens["text_before"] + tokens["text_after"]
    stages = {stage["name"]: (stage["tokens_in"], stage["tokens_out"]) for stage in pruned["stages"]}
    assert list(stages) == STAGES
    assert stages["vision"] == (8 * 256, 8 * 64)
    assert stages["merge"] == (8 * 64, tokens["merged"])
    assert stages["llm_pre"] == (tokens["merged"] + text,) * 2
    assert stages["select"] == (tokens["merged"] + text, tokens["kept"] + text)
    assert stages["llm_post"] == (tokens["kept"] + text, 1)
    assert 0 < tokens["kept"] < tokens["merged"] < tokens["visual"] < tokens["patches"]
    assert tokens["retained"] == tokens["kept"] / tokens["visual"]
    assert unpruned["tokens"]["kept"] == unpruned["tokens"]["merged"] == unpruned["tokens"]["visual"] == 8 * 64
    assert {stage["name"] for stage in unpruned["stages"]} == set(STAGES) - {"merge", "select"}


def test_arithmetic_and_memory_are_those_of_the_cost_model(data: dict[str, Any], pipeline: Pipeline) -> None:
    model, exported = pipeline.bundle.manifest.model, pipeline.bundle.manifest.prune
    features = pipeline.chain.encode(np.zeros((1, 3, 128, 128), np.float32))
    assert features.shape[1] == pipeline.bundle.manifest.token_layout.tokens_per_frame
    for variant in data["variants"]:
        tokens = variant["tokens"]
        counts = TokenCounts(*(tokens[n] for n in ("visual", "merged", "kept", "text_before", "text_after")))
        prune = exported if variant["prune"] else replace(PruneConfig.disabled(), prune_layer=exported.prune_layer)
        cost = prefill_cost(model.decoder, counts, prune, vision=model.vision, frames=8)
        flops = {stage["name"]: stage["flops"] for stage in variant["stages"]}
        assert flops["vision"] == cost.vision + cost.projector
        assert flops["llm_pre"] == cost.llm_pre + cost.select
        assert flops["llm_post"] == cost.llm_post + cost.lm_head
        rows = counts.kept + counts.text
        decoding = sum(decode_flops(model.decoder, rows + step) for step in range(TOKENS - 1))
        assert variant["decode"]["flops"] == decoding
        assert variant["flops"] == sum(filter(None, flops.values())) + decoding
        shape = model.decoder
        assert variant["kv_bytes"] == 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim * rows
        for stage in variant["stages"]:
            if stage["flops"]:
                assert stage["gflops_per_s"] == pytest.approx(stage["flops"] / stage["time"]["median_s"] / 1e9)


def test_static_tokens_are_one_group_of_their_segment() -> None:
    # Two frames, one segment: patches 0 and 1 rest (group 0, merged into one token), the others are dynamic.
    video = VideoTokens(
        tokens=np.zeros((3, 1)),
        group=np.array([0, 1, 2]),
        patch_to_token=np.array([[0, 0, 1, 1, 1], [0, 0, 2, 2, 2]]),
        frame_segment=np.zeros(2, np.int64),
    )
    assert _group_sizes(video) == [2, 3, 3]


def test_ratios_are_unpruned_over_pruned(data: dict[str, Any]) -> None:
    (comparison,) = data["comparisons"]
    pruned, unpruned = data["variants"][comparison["pruned"]], data["variants"][comparison["unpruned"]]
    ratios = comparison["ratios"]
    assert set(ratios) == {
        *(set(STAGES) - {"merge", "select"}),
        *("llm_prefill", "first_token", "end_to_end", "decode", "flops", "kv_bytes", "visual_tokens"),
    }
    for name in ("first_token", "end_to_end", "llm_prefill"):
        assert ratios[name] == unpruned[name]["median_s"] / pruned[name]["median_s"]
    assert ratios["kv_bytes"] == unpruned["kv_bytes"] / pruned["kv_bytes"] > 1
    assert ratios["visual_tokens"] == 1 / pruned["tokens"]["retained"] > 1
    assert ratios["flops"] > 1


def test_memory_is_sampled_while_it_runs(data: dict[str, Any]) -> None:
    memory, timeline = data["memory"], data["timeline"]
    pruned, unpruned = data["variants"]
    assert memory["loaded_bytes"] <= pruned["peak_rss_bytes"] <= unpruned["peak_rss_bytes"] <= memory["peak_bytes"]
    assert len(timeline["rss_bytes"]) == len(timeline["rss_time_s"]) > 2
    # The kernel's own high-water mark and its resident set are counted apart, page by page and in batches.
    assert max(timeline["rss_bytes"]) <= memory["peak_bytes"] + 2**21
    assert max(timeline["rss_bytes"]) > 30e6


def test_operators_of_one_question_are_counted(data: dict[str, Any]) -> None:
    found = {(graph["graph"], graph["variant"]): graph for graph in data["operators"]}
    assert set(found) == {
        *((graph, "pruned") for graph in ("vision_merge", "llm_pre", "select", "llm_post")),
        *((graph, "unpruned") for graph in ("vision_merge", "llm_pre", "llm_post")),
    }
    for graph in found.values():
        seconds = [operator["total_s"] for operator in graph["slowest"]]
        assert len(seconds) == 10
        assert seconds == sorted(seconds, reverse=True)
        assert sum(seconds) <= graph["total_s"] * 1.000001
        for operator in graph["slowest"]:
            assert operator["share"] == pytest.approx(operator["total_s"] / graph["total_s"])
    # One prefill and a step per further token: each operator of the graph ran once in each.
    calls = {operator["calls"] for operator in found["llm_post", "pruned"]["slowest"]}
    assert calls == {TOKENS}


def test_only_the_later_half_of_an_operator_profile_counts() -> None:
    def event(category: str, name: str, ts: int, dur: int, op: str = "") -> dict[str, Any]:
        return {"cat": category, "name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}

    events = [
        event("Session", "session_initialization", 0, 50),
        event("Session", "model_run", 100, 50),
        event("Node", "a_kernel_time", 110, 1_000_000, "MatMul"),
        event("Session", "model_run", 200, 50),
        event("Node", "a_fence_before", 201, 9),
        event("Node", "a_kernel_time", 210, 30, "MatMul"),
        event("Node", "b_kernel_time", 240, 10, "Add"),
    ]
    first, second = read_ort_profile(events)
    assert (first.name, first.type, first.calls, first.total_s, first.share) == ("a", "MatMul", 1, 30e-6, 0.75)
    assert (second.name, second.type) == ("b", "Add")
    assert read_ort_profile(events[:1]) == []


def test_the_table_is_on_stdout_and_progress_on_stderr(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    finished = run[1]
    for word in (*STAGES, "first token", "decode step", "end to end", "in no stage", "peak memory", "GFLOP/s"):
        assert word in finished.stdout
    assert "run 1 of 8: 8 frames, pruned" in finished.stderr.splitlines()
    assert "run 8 of 8: 8 frames, pruned" in finished.stderr.splitlines()
    assert "\x1b" not in finished.stdout + finished.stderr


def test_csv_says_what_json_says(run: tuple[Path, Any], data: dict[str, Any]) -> None:
    with (run[0] / "out.csv").open(newline="") as file:
        rows = {(row["variant"], row["measure"]): row for row in csv.DictReader(file)}
    for variant in data["variants"]:
        for stage in variant["stages"]:
            row = rows[variant["name"], stage["name"]]
            assert float(row["median_s"]) == stage["time"]["median_s"]
            assert float(row["p99_s"]) == stage["time"]["p99_s"]
            assert row["tokens_out"] == ("" if stage["tokens_out"] is None else str(stage["tokens_out"]))
            assert row["frames"] == "8"
        whole = rows[variant["name"], "end_to_end"]
        assert int(whole["kv_bytes"]) == variant["kv_bytes"]
        assert float(rows[variant["name"], "decode_step_2"]["n"]) == 3
    assert rows["pruned", "vision"]["keep_ratio"] == str(data["variants"][0]["prune"]["keep_ratio"])
    assert rows["unpruned", "vision"]["keep_ratio"] == ""
    assert float(rows["pruned", "first_token"]["ratio"]) == data["comparisons"][0]["ratios"]["first_token"]


def test_what_it_was_measured_on_is_told(data: dict[str, Any], pipeline: Pipeline) -> None:
    assert data["schema_version"] == 1
    assert data["model"]["name"] == "demo"
    assert data["backend"] == "ort-cpu"
    assert data["load"]["threads"] == 2
    assert data["load"]["verify_s"] > 0
    assert data["load"]["graphs_s"] > 0
    assert data["model"]["bundle_bytes"] == pipeline.bundle.size
    assert {"processor", "cores", "memory", "system", "packages", "date"} <= set(data["machine"])
    assert "onnxruntime" in data["machine"]["packages"]


def test_every_answer_has_all_its_tokens_even_where_the_model_ends_early(pipeline: Pipeline) -> None:
    question = "how many objects move ?"
    session = pipeline.open(CLIP, frames=4)
    first = session.ask(question, SamplingConfig(max_new_tokens=1)).token_ids[0]
    ends = pipeline.prompt.eos_ids
    try:
        pipeline.prompt.eos_ids = (first,)  # a model that ends at once
        plain = session.ask(question, SamplingConfig(max_new_tokens=6))
        assert (len(plain.token_ids), plain.finish_reason) == (1, "stop")
        whole = session.ask(question, SamplingConfig(max_new_tokens=6, ignore_eos=True))
        assert (len(whole.token_ids), whole.finish_reason) == (6, "length")
        result = profile(pipeline, CLIP, question, ProfileSettings((4,), runs=1, warmup=0, max_new_tokens=6))
    finally:
        pipeline.prompt.eos_ids = ends
    assert [len(run.decode_s) for run in result.runs] == [5, 5]


def test_one_token_has_no_decoding(pipeline: Pipeline) -> None:
    result = profile(pipeline, CLIP, settings=ProfileSettings((4,), runs=1, warmup=0, max_new_tokens=1))
    assert all(variant.decode is None for variant in result.variants)
    assert "decode" not in result.comparisons[0].ratios


def test_more_frames_than_the_video_has_are_noted_once(pipeline: Pipeline) -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    session = pipeline.open(frames, frames=5)
    assert session.video.patch_to_token.shape[0] == 3
    result = profile(pipeline, CLIP, settings=ProfileSettings((17,), runs=1, warmup=0, max_new_tokens=1))
    assert [variant.frames for variant in result.variants] == [16, 16]
    assert len([note for note in result.notes if "16 frames" in note]) == 1


@pytest.fixture(scope="module")
def sweep(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("sweep")
    options = [
        "--frames",
        "2,4",
        "--sweep",
        "keep-ratio=0.2,0.6",
        "--runs",
        "1",
        "--warmup",
        "0",
        "--cluster-ratio",
        "0.8",
    ]
    outputs = ["--json", str(folder / "out.json"), "--html", str(folder / "out.html")]
    command = ["profile", str(demo_bundle), "--video", str(CLIP), "--max-new-tokens", "2", *options, *outputs]
    assert main(command) == 0
    return json.loads((folder / "out.json").read_text()), folder


def test_a_sweep_measures_every_value_beside_one_unpruned_run(sweep: tuple[dict[str, Any], Path]) -> None:
    variants = sweep[0]["variants"]
    assert [(v["name"], v["frames"], (v["prune"] or {}).get("keep_ratio")) for v in variants] == [
        ("pruned", 2, 0.2),
        ("pruned", 2, 0.6),
        ("unpruned", 2, None),
        ("pruned", 4, 0.2),
        ("pruned", 4, 0.6),
        ("unpruned", 4, None),
    ]
    assert all(v["prune"]["cluster_ratio"] == 0.8 for v in variants if v["prune"])
    pairs = [(c["pruned"], c["unpruned"]) for c in sweep[0]["comparisons"]]
    assert pairs == [(0, 2), (1, 2), (3, 5), (4, 5)]
    kept = [variant["tokens"]["kept"] for variant in variants]
    assert kept[0] < kept[1] < kept[2] == 128
    assert kept[3] < kept[4] < kept[5] == 256


def test_a_sweep_is_a_table_of_its_own(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sweep", "selection=group,global", "--frames", "2", "--runs", "1", "--warmup", "0", "--csv", "-"]
    assert main(["profile", str(demo_bundle), "--video", str(CLIP), "--max-new-tokens", "2", *options]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("variant,frames,")  # and the table made way for it
    assert {row["selection"] for row in csv.DictReader(output.out.splitlines())} == {"group", "global", ""}
    for word in ("selection", "group", "global", "unpruned"):
        assert word in output.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sweep", "keep_ratio"], "write SETTING=X,Y"),
        (["--sweep", "alpha=1,2"], "write SETTING=X,Y"),
        (["--sweep", "keep_ratio=0.2,much"], "much"),
        (["--sweep", "keep_ratio=0.2,7"], "keep_ratio must be"),
        (["--sweep", "prune_layer=0,1"], "prune_layer is fixed at export"),
        (["--neighbours", "3"], "neighbours is fixed at export"),
        (["--keep-ratio", "1", "--cluster-ratio", "1", "--static-threshold", "2"], "prune nothing"),
        (["--frames", "4,0"], "frames must be 1 or more, not 0"),
        (["--runs", "0"], "runs must be 1 or more"),
        (["--warmup", "-1"], "warmup must be 0 or more"),
        (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more"),
        (["--question", "  "], "the question is empty"),
        (["--video", "no such file.mp4"], "no such file.mp4"),
        (["--json", "-", "--csv", "-"], "only one output"),
        (["--json", "same", "--csv", "./same"], "same file name"),
        (["--html", "missing/report.html"], "no folder missing"),
        (["--html", "."], "is not a file"),
        (["--json", "/dev/null"], "is not a file"),
    ],
)
def test_mistakes_are_one_sentence(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", str(demo_bundle), "--video", str(CLIP), *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (sentence,) = output.err.splitlines()
    assert expected in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_frames_that_is_none_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["profile", "bundle", "--video", "x.mp4", "--frames", "8,many"])
    assert "--frames: give whole numbers with commas between them, not '8,many'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    from prunevid.files import write_output

    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(PruneVidError, match="cannot write"):
        write_output(str(target), "text")
    assert list(tmp_path.iterdir()) == [target]


def test_what_was_measured_is_shown_even_if_a_file_fails(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: str, text: str) -> None:
        raise PruneVidError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("prunevid.runtime.profile.cli.write_output", full)
    # More frames than the clip has, twice: both are the same 16 frames.
    options = ["--frames", "16,20", "--runs", "1", "--warmup", "0", "--max-new-tokens", "1"]
    assert main(["profile", str(demo_bundle), "--video", str(CLIP), *options, "--html", str(tmp_path / "a.html")]) == 2
    output = capsys.readouterr()
    assert "unpruned" in output.out
    assert "no more than 16 frames where 20 were asked for" in output.out
    assert "No space left on device" in output.err


def test_help_answers_without_the_heavy_modules() -> None:
    check = (
        "import sys\nfrom prunevid.cli import main\n"
        "try:\n    main(['profile', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'onnxruntime', 'rich', 'av', 'jinja2', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for option in ("--sweep", "--frames", "--ops", "--html", "--keep-ratio"):
        assert option in result.stdout


def test_profiling_loads_neither_torch_nor_transformers() -> None:
    check = (
        "import sys\nimport prunevid.runtime.profile.report, prunevid.runtime.profile.operator_times\n"
        "import prunevid.runtime.profile.terminal, prunevid.runtime.profile.serialization\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_portable_dialect_is_measured_alike(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    from videos import write_video

    video = write_video(tmp_path / "clip.mp4", 6)
    pipeline = load(tiny_bundle("qwen2", "portable"))
    result = profile(pipeline, video, "Why?", ProfileSettings((4,), runs=1, warmup=0, max_new_tokens=3))
    assert isinstance(result, ProfileResult)
    assert result.model.dialect == "portable"
    assert [stage.name for stage in result.variants[0].stages] == STAGES
