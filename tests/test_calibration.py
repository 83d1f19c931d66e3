"""Calibrating bundles from beginning to end: what is written, how it is judged, what is refused, what is resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from videos import write_video

from demo import world
from prunevid import PruneVidError
from prunevid.bundle import open_bundle, sha256_of
from prunevid.calibration.judge import Replies, divergence, judge
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.linears import find_linears, load_graph, read_rows
from prunevid.calibration.quantize.recipes import RECIPES
from prunevid.calibration.quantize.rewrite import TREATMENTS
from prunevid.calibration.quantize.rounding.schemes import ArrayMatrix
from prunevid.calibration.quantize.store import InputScaling
from prunevid.calibration.questions import (
    AskedVideo,
    Question,
    find_videos,
    leave_out_unreadable,
    read_questions,
    split,
)
from prunevid.runtime import load

ROOT = Path(__file__).parents[1]
VIDEOS, PER_VIDEO = 8, 4


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


def prunevid(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prunevid.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


# --- what is written -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cpu-int8", "cpu-int4"])
def quantized(
    request: pytest.FixtureRequest, demo_bundle: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo bundle, quantized by the command line."""
    output = tmp_path_factory.mktemp("quantized") / str(request.param)
    recipe = ("--recipe", request.param, "--questions", str(questions))
    result = prunevid("calibrate", str(demo_bundle), *recipe, "--output", str(output), "--min-agreement", "0.8")
    assert result.returncode == 0, result.stderr
    assert "same answer" in result.stdout
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    return output


def test_the_bundle_is_whole_and_says_what_was_done(quantized: Path, demo_bundle: Path) -> None:
    bundle, original = open_bundle(quantized), open_bundle(demo_bundle)
    recipe = RECIPES[quantized.name]
    said = bundle.manifest.quantization
    assert said is not None
    assert (said.recipe, bundle.manifest.precision) == (recipe.name, recipe.precision)
    assert said.questions == VIDEOS // 2 * PER_VIDEO
    assert said.agreement >= 0.8
    for name, treatment in recipe.dialects["ort"].items():
        linears = find_linears(load_graph(original.file(f"{name}.onnx")))
        assert said.graphs[name].treatment == TREATMENTS[treatment].text
        assert said.graphs[name].quantized == len(linears) > 0
        assert not find_linears(load_graph(bundle.file(f"{name}.onnx")))
    assert bundle.size < 0.5 * original.size
    assert bundle.manifest.graphs == original.manifest.graphs


def test_what_is_no_linear_layer_stays_as_it_was(quantized: Path, demo_bundle: Path) -> None:
    for name in ("select.onnx", "embeddings.bin", "tokenizer.json"):
        assert sha256_of(quantized / name) == sha256_of(demo_bundle / name)
    before, after = (load_graph(bundle / "vision_merge.onnx") for bundle in (demo_bundle, quantized))

    def others(model: ir.Model) -> list[str]:
        chosen = {linear.node for linear in find_linears(model)}
        nodes = [node for node in model.graph if node not in chosen and node.op_type != "DynamicQuantizeMatMul"]
        return [f"{node.domain}.{node.op_type}" for node in nodes]

    assert others(before) == others(after)
    assert others(after).count(".MatMul") == 8  # merging, and counting what is merged
    assert others(after).count("com.microsoft.MultiHeadAttention") == 2


def test_the_weights_are_the_originals_quantized(quantized: Path, demo_bundle: Path) -> None:
    for name, treatment in RECIPES[quantized.name].dialects["ort"].items():
        values = load_graph(quantized / f"{name}.onnx").graph.initializers
        for linear in find_linears(load_graph(demo_bundle / f"{name}.onnx")):
            matrix = read_rows(linear.weight.tensor, 0, int(linear.weight.tensor.shape[0]))
            whole = ArrayMatrix(matrix.T if linear.weight.transposed else matrix)
            expected = TREATMENTS[treatment].quantize(whole, InputScaling())
            for part, array in expected.items():
                written = values[f"{linear.name}.{part}"].const_value
                assert isinstance(written, ir.ExternalTensor)
                assert np.array_equal(written.numpy(), array)


def test_run_and_profile_take_it(quantized: Path) -> None:
    clip = ("--video", str(ROOT / "demo" / "clip.mp4"), "--question", "what shape is the pink object?")
    result = prunevid("run", str(quantized), *clip, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    asked = json.loads((ROOT / "demo" / "clip.json").read_text())["questions"]
    assert answer["text"] in world.SHAPES
    assert answer["pruned"]
    assert asked
    result = prunevid("profile", str(quantized), *clip, "--runs", "1", "--warmup", "0", "--max-new-tokens", "2")
    assert result.returncode == 0, result.stderr


def test_prefill_in_blocks_and_unpruned_runs_work(quantized: Path) -> None:
    pipeline = load(quantized)
    sample = world.make_video("validation", 10_500)
    for prune in (True, False):
        session = pipeline.open(sample.frames, prune=prune)
        stream = session.stream(sample.questions[0].text)
        "".join(stream)
        assert stream.first_logits is not None
        assert np.isfinite(stream.first_logits).all()


# --- how it is judged ----------------------------------------------------------------------------------------


def test_the_judgement_counts_answers_and_measures_divergence() -> None:
    video = AskedVideo(Path("a"), (Question("?", "Red."), Question("?", "blue"), Question("?")))
    before = Replies(("red", "green", "x"), np.array([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    after = Replies(("Red", "blue", "y"), np.array([[5.0, 5.0], [2.0, 0.0], [1.0, 1.0]]))
    found = judge([video], [before], [after])
    assert found.questions == 3
    assert found.agreement == pytest.approx(1 / 3)
    assert (found.answered, found.accuracy_before, found.accuracy_after) == (2, 0.5, 1.0)
    # Two tokens with probabilities p and 1 - p, swapped.
    p = 1 / (1 + np.exp(-2.0))
    assert found.largest_divergence == pytest.approx(p * 2.0 - (1 - p) * 2.0)
    assert found.divergence == pytest.approx(found.largest_divergence / 3)
    assert divergence(before.logits, before.logits + 3).max() == pytest.approx(0, abs=1e-12)


def test_a_bundle_that_agrees_too_little_is_not_written(
    tiny_bundle: Callable[[str, str], Path], questions: Path, tmp_path: Path
) -> None:
    """Random weights: what follows from a first token is chaos, and so are the answers of a quantized twin."""
    source, output = tiny_bundle("qwen2", "ort"), tmp_path / "out"
    settings = Settings("cpu-int4", min_agreement=1.0)
    with pytest.raises(PruneVidError, match=r"less than 100\.0%: nothing was written; .* --force"):
        calibrate(source, read_questions(questions), output, settings)
    assert not output.exists()
    made = calibrate(source, read_questions(questions), output, Settings("cpu-int4", min_agreement=1.0, force=True))
    assert made.judgement.agreement < 1
    assert open_bundle(output).manifest.quantization is not None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_videos_to_judge_by_are_never_calibrated_on() -> None:
    videos = [AskedVideo(Path(str(index)), (Question("?"),)) for index in range(101)]
    parts = split(videos)
    assert len(parts.calibration) == 32
    assert {*parts.calibration, *parts.held_out} == set(videos)
    assert not {*parts.calibration} & {*parts.held_out}
    assert split(videos) == parts


# --- what is refused -----------------------------------------------------------------------------------------


def test_unreadable_videos_are_skipped_and_counted(questions: Path, tmp_path: Path) -> None:
    videos = [AskedVideo(Path(str(index)), (Question("?"),)) for index in range(20)]

    def read(broken: int) -> Callable[[Path], None]:
        def check(path: Path) -> None:
            if int(path.name) < broken:
                raise PruneVidError(f"{path} is broken")

        return check

    told: list[str] = []
    assert leave_out_unreadable(videos, read(2), told.append) == videos[2:]
    assert told == ["skipped: 0 is broken", "skipped: 1 is broken"]
    with pytest.raises(PruneVidError, match="3 of 20 videos cannot be read, more than 10%"):
        leave_out_unreadable(videos, read(3), told.append)
    with pytest.raises(PruneVidError, match="3 videos are too few"):
        leave_out_unreadable(videos[:3], read(0), told.append)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no questions"),
        ('{"video": "a.mp4", "question": "?"}\nnonsense', "line 2: not a line of JSON"),
        ("[1]", "line 1: not a JSON object"),
        ('{"video": "a.mp4"}', "line 1: 'question' must be a text"),
        ('{"video": "a.mp4", "question": "?", "answer": 3}', "line 1: 'answer' must be a text"),
        ("\0\xff", "line 1"),
    ],
)
def test_a_bad_file_of_questions_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PruneVidError, match=said):
        read_questions(file)


def test_a_folder_without_videos_is_refused(questions: Path, tmp_path: Path) -> None:
    with pytest.raises(PruneVidError, match="holds no video files"):
        find_videos(tmp_path)
    with pytest.raises(PruneVidError, match="not a folder"):
        find_videos(tmp_path / "missing")
    assert len(find_videos(questions.parent)) == VIDEOS


def test_the_command_refuses_in_one_sentence(
    tiny_bundle: Callable[[str, str], Path], demo_bundle: Path, questions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    portable, short = str(tiny_bundle("qwen2", "portable")), tmp_path / "short.jsonl"
    short.write_text(json.dumps({"video": str(questions.parent / "0.mp4"), "question": "?"}))
    special = tmp_path / "special.jsonl"
    special.write_text(json.dumps({"video": "0.mp4", "question": "what is <video> for?"}))
    cases = [
        (str(demo_bundle), special, output, "<video>"),
        (portable, questions, output, "is for bundles of the dialect ort"),
        (str(demo_bundle), short, output, "1 videos are too few"),
        (str(demo_bundle), tmp_path / "none.jsonl", output, "cannot be read"),
        (str(demo_bundle), questions, questions.parent, "exists already"),
    ]
    for bundle, file, target, said in cases:
        result = prunevid(
            "calibrate", bundle, "--recipe", "cpu-int8", "--questions", str(file), "--output", str(target)
        )
        assert result.returncode == 2
        assert said in result.stderr
        assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.jsonl", "special.jsonl"]


def test_a_quantized_bundle_is_not_quantized_again(quantized: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(PruneVidError, match="is quantized already"):
        calibrate(quantized, read_questions(questions), tmp_path / "out", Settings("cpu-int8"))
