"""`prunevid demo` and the bundle it asks, as they ship: no test here needs torch, transformers or onnx."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from prunevid.bundle import open_bundle
from prunevid.runtime import load
from prunevid.runtime.demo.asking import BUNDLE, CLIP, questions
from prunevid.runtime.session import VideoSession


@pytest.fixture(scope="module", params=[True, False], ids=["pruned", "unpruned"])
def session(request: pytest.FixtureRequest) -> VideoSession:
    return load(BUNDLE).open(CLIP, prune=request.param)


def test_demo_answers_three_questions_of_three_without_torch(tmp_path: Path) -> None:
    # The installed command's own code, in a folder that has nothing to do with the project.
    code = (
        "import sys\nfrom prunevid.cli import main\nstatus = main(['demo', '--threads', '1'])\n"
        "loaded = {'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "assert not loaded, loaded\nsys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for entry in questions():
        (row,) = (line for line in result.stdout.splitlines() if entry["question"] in line)
        assert row.count(entry["answer"]) == 3, row
    assert "1024" in result.stdout
    assert "KV cache" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_says_by_its_status_that_an_answer_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from prunevid.runtime.demo import asking

    wrong = [{**entry, "answer": "elephant"} for entry in questions()]
    monkeypatch.setattr(asking, "questions", lambda: wrong)
    assert asking.ask(load(BUNDLE), Console(quiet=True)) == 1


def test_the_shipped_bundle_is_whole_and_small() -> None:
    bundle = open_bundle(BUNDLE)
    assert bundle.manifest.model.name == "demo"
    assert bundle.manifest.precision == "fp16"
    assert {path.name for path in BUNDLE.iterdir()} == {*bundle.manifest.files, "manifest.json"}
    assert sum(path.stat().st_size for path in (*BUNDLE.iterdir(), CLIP)) < 3_500_000


def test_every_question_is_answered_right(session: VideoSession) -> None:
    assert [session.ask(entry["question"]).text for entry in questions()] == [entry["answer"] for entry in questions()]


def test_a_follow_up_costs_the_question_alone(session: VideoSession) -> None:
    first, second = (session.ask(entry["question"]) for entry in questions()[:2])
    assert "vision" not in second.timings.stages
    assert first.token_counts.visual == second.token_counts.visual == 1024
    assert first.token_counts.kept == second.token_counts.kept <= first.token_counts.merged <= 1024


def test_an_array_is_answered_as_the_file_that_it_was_read_from() -> None:
    with av.open(str(CLIP)) as container:
        images = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    pipeline, question = load(BUNDLE), questions()[0]["question"]
    assert pipeline.ask(images, question).token_ids == pipeline.ask(CLIP, question).token_ids


def test_run_gives_the_same_answer_as_the_demo() -> None:
    entry = questions()[2]
    arguments = ("run", str(BUNDLE), "--video", str(CLIP), "--question", entry["question"], "--json")
    command = [sys.executable, "-m", "prunevid.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"] == entry["answer"]
