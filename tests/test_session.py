"""Sessions and streams: what a caller may do wrong, and what an answer reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunevid import PruneConfig, PruneVidError
from prunevid.bundle import open_bundle, sha256_of
from prunevid.bundle.sections.blocks import Blocks
from prunevid.runtime import Pipeline, SamplingConfig, load

VIDEO = np.random.default_rng(0).integers(0, 256, (8, 60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Callable[[str, str], Path]) -> Pipeline:
    return load(tiny_bundle("qwen2", "ort"))


def test_pieces_of_a_stream_are_the_answer(pipeline: Pipeline) -> None:
    stream = pipeline.stream(VIDEO, "Why?", max_new_tokens=12)
    with pytest.raises(PruneVidError, match="not finished"):
        _ = stream.answer
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text
    assert len(stream.answer.token_ids) <= 12


def test_an_answer_reports_stages_tokens_and_memory(pipeline: Pipeline) -> None:
    answer = pipeline.ask(VIDEO, "Why?", max_new_tokens=5)
    counts, timings = answer.token_counts, answer.timings
    per_frame = pipeline.bundle.manifest.token_layout.tokens_per_frame
    assert counts.visual == len(VIDEO) * per_frame
    assert counts.visual > counts.merged > counts.kept > 0
    assert list(timings.stages) == [
        "video", "preprocess", "vision", "prefix", "question", "select", "llm_post",
    ]  # fmt: skip
    assert all(seconds > 0 for seconds in timings.stages.values())
    assert timings.first_token == pytest.approx(sum(timings.stages.values()))
    assert len(timings.decode) == len(answer.token_ids) - 1
    shape = pipeline.bundle.manifest.model.decoder
    row = 2 * shape.layers * shape.kv_heads * shape.head_dim * 4
    assert answer.kv_bytes == row * (counts.kept + counts.text)
    assert answer.kv_bytes_unpruned == row * (counts.visual + counts.text)


def test_merging_apart_is_a_stage_of_its_own_and_changes_nothing(pipeline: Pipeline) -> None:
    whole, apart = pipeline.open(VIDEO).ask("Why?"), pipeline.session(pipeline.features(VIDEO)).ask("Why?")
    assert list(apart.timings.stages)[:5] == ["video", "preprocess", "vision", "merge", "prefix"]
    assert (apart.token_ids, apart.token_counts) == (whole.token_ids, whole.token_counts)


def test_only_the_first_question_pays_for_the_video(pipeline: Pipeline) -> None:
    session = pipeline.open(VIDEO)
    first, second = session.ask("Why?"), session.ask("Who was it?")
    assert "vision" in first.timings.stages
    assert list(second.timings.stages) == ["question", "select", "llm_post"]


def test_a_newer_question_ends_an_unfinished_answer(pipeline: Pipeline) -> None:
    session = pipeline.open(VIDEO)
    stream = iter(session.stream("Why?", SamplingConfig(temperature=1.0, max_new_tokens=30)))
    next(stream)
    session.ask("Who?")
    with pytest.raises(PruneVidError, match="newer question"):
        list(stream)


def test_a_question_longer_than_the_room_behind_the_video_is_answered_all_the_same(pipeline: Pipeline) -> None:
    long = "and then " * 60
    session = pipeline.open(VIDEO)
    session.ask("Why?")
    assert session.ask(long).token_ids == pipeline.ask(VIDEO, long).token_ids


def test_global_selection_keeps_its_share_of_all_tokens(pipeline: Pipeline) -> None:
    config = replace(pipeline.bundle.manifest.prune, selection="global")
    counts = pipeline.ask(VIDEO, "Why?", prune=config, max_new_tokens=2).token_counts
    assert counts.kept == int(counts.merged * config.keep_ratio)


def test_settings_can_be_changed_at_run_time(pipeline: Pipeline) -> None:
    config = replace(pipeline.bundle.manifest.prune, keep_ratio=1.0)
    counts = pipeline.ask(VIDEO, "Why?", prune=config, max_new_tokens=2).token_counts
    assert counts.kept == counts.merged < counts.visual


def test_keeping_everything_changes_nothing(pipeline: Pipeline) -> None:
    exported = pipeline.bundle.manifest.prune
    identity = replace(exported, static_threshold=1.5, cluster_ratio=1.0, keep_ratio=0.999999)
    almost = pipeline.open(VIDEO, prune=identity)
    plain = pipeline.open(VIDEO, prune=False)
    np.testing.assert_array_equal(almost.video.tokens, plain.video.tokens)
    everything = replace(identity, keep_ratio=1.0)
    assert everything.is_disabled
    assert pipeline.ask(VIDEO, "Why?", prune=everything).token_ids == plain.ask("Why?").token_ids


def test_what_the_graphs_fix_cannot_be_changed(pipeline: Pipeline) -> None:
    other = PruneConfig(prune_layer=pipeline.bundle.manifest.prune.prune_layer + 1)
    with pytest.raises(PruneVidError, match="prune_layer is fixed at export"):
        pipeline.open(VIDEO, prune=other)


def test_sampling_with_a_seed_repeats_itself(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 4, "max_new_tokens": 10}
    first, second = (pipeline.ask(VIDEO, "Why?", **options) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert pipeline.ask(VIDEO, "Why?", **{**options, "seed": 5}).token_ids != first.token_ids


def test_a_stop_string_ends_the_answer_before_it(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 1, "max_new_tokens": 30}
    whole = pipeline.ask(VIDEO, "Why?", **options).text
    stop = whole[3:5]
    assert len(stop) == 2
    answer = pipeline.ask(VIDEO, "Why?", stop=(stop,), **options)
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_a_video_that_does_not_fit_is_refused(pipeline: Pipeline) -> None:
    limit = pipeline.bundle.manifest.prompt.max_positions
    with pytest.raises(PruneVidError, match=f"the model has {limit}"):
        pipeline.ask(VIDEO, "Why?", max_new_tokens=limit)


@pytest.mark.parametrize("question", ["", "   ", "what <|im_end|> now?", "a" * 5000])
def test_bad_questions_are_refused_before_the_video_is_read(pipeline: Pipeline, question: str) -> None:
    with pytest.raises(PruneVidError, match="question"):
        pipeline.ask("/no/such/video.mp4", question)


def test_unknown_backends_and_options_are_refused(tiny_bundle: Callable[[str, str], Path]) -> None:
    bundle = tiny_bundle("qwen2", "ort")
    with pytest.raises(PruneVidError, match="unknown backend 'cuda'"):
        load(bundle, backend="cuda")
    with pytest.raises(PruneVidError, match="threads"):
        load(bundle, threads=0)


def test_weights_outside_the_bundle_are_not_read(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle("qwen2", "ort"), bundle)
    shutil.copy(bundle / "llm_pre.onnx.data", tmp_path / "outside.data")
    graph = onnx.load(bundle / "llm_pre.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.data"
    onnx.save(graph, bundle / "llm_pre.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    record = manifest["files"]["llm_pre.onnx"]
    record["size"], record["sha256"] = (bundle / "llm_pre.onnx").stat().st_size, sha256_of(bundle / "llm_pre.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PruneVidError, match="cannot load"):
        load(bundle)


def test_a_graph_that_is_no_onnx_is_one_sentence(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle("qwen2", "ort"), bundle)
    (bundle / "select.onnx").write_bytes(b"not a graph")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["select.onnx"] = {"size": 11, "sha256": sha256_of(bundle / "select.onnx")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PruneVidError, match=r"cannot load .*select\.onnx"):
        load(bundle)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_taking_rows_in_blocks_changes_nothing(tiny_bundle: Callable[[str, str], Path], dialect: str) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", dialect))
    pipeline = load(bundle)
    question = "Which of the two shapes moves to the left, and what colour does it have?"
    options: dict[str, Any] = {"temperature": 1.0, "seed": 2, "max_new_tokens": 8}
    whole = [pipeline.ask(VIDEO, question, prune=prune, **options) for prune in (True, False)]
    # Fewer rows than the question has, so that its scores come from several blocks, too.
    pipeline = load(replace(bundle, manifest=replace(bundle.manifest, blocks=Blocks(frames=4, rows=29))))
    blocks = [pipeline.ask(VIDEO, question, prune=prune, **options) for prune in (True, False)]
    assert [answer.token_ids for answer in blocks] == [answer.token_ids for answer in whole]
    assert [answer.token_counts for answer in blocks] == [answer.token_counts for answer in whole]
