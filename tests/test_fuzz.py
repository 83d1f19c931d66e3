"""The fuzz suite in short: cases of fixed seeds, and that the suite itself can tell good from bad.

The long run of the same cases is `python -m benchmarks.fuzz`; `--case video:17` shows one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from benchmarks.fuzz.bases import Bases, prepare
from benchmarks.fuzz.clips import CLIPS, write_clips
from benchmarks.fuzz.job import Job, Outcome
from benchmarks.fuzz.json_text import damage_json
from benchmarks.fuzz.pool import Lane, lanes
from benchmarks.fuzz.protobuf import damage_model, read_model, write_message
from benchmarks.fuzz.suite import KINDS, controls_of, job_of, plain_answer, run_cases
from benchmarks.fuzz.trees import FORMATS, damage_tree
from benchmarks.fuzz.verdict import MEMORY_ALLOWED, judge, sentence

# Cases of each kind, and how many must be answered and refused, in how many different sentences: a suite in which all
# of them end at the same check tries nothing.
COUNTS = {
    "video": (45, 12, 5, 5),
    "bundle": (45, 6, 14, 10),
    "checkpoint": (8, 2, 2, 2),
    "command": (300, 40, 100, 50),
}
SEED = 0

JOB = Job(("run",), "test", outputs=("out",))
REFUSAL = Outcome(2, None, None, 0.1, 1 << 20, "", "usage: prunevid run\nprunevid run: error: it is damaged: copy it\n")
ANSWER = Outcome(0, None, None, 0.1, 1 << 20, "left\n", "  visual tokens 64\n", ("out", "out/manifest.json"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_clips(tmp_path_factory.mktemp("clips"))


def test_an_answer_and_a_sentence_are_what_they_are() -> None:
    assert judge(JOB, ANSWER) == ("answered", [])
    assert judge(JOB, REFUSAL) == ("refused", [])
    resumable = replace(REFUSAL, new_files=(".out.calibration", ".out.calibration/work.json"))
    assert judge(replace(JOB, kept=(".out.calibration",)), resumable) == ("refused", [])
    interrupted = replace(REFUSAL, status=130, stderr="prunevid run: interrupted\n")
    assert judge(replace(JOB, interrupt_s=0.1), interrupted) == ("interrupted", [])


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (replace(REFUSAL, status=1), "exit status 1"),
        (replace(REFUSAL, status=120), "exit status 120"),
        (replace(REFUSAL, status=130), "without an interrupt"),
        (replace(REFUSAL, status=None, signal=11), "SIGSEGV"),
        (replace(REFUSAL, status=None, signal=9, killed="time"), "killed for its time"),
        (replace(REFUSAL, peak=MEMORY_ALLOWED + 1), "memory: 1024 MiB"),
        (replace(REFUSAL, stderr="Traceback (most recent call last):\nValueError: no\n"), "noise"),
        (replace(REFUSAL, stderr=f"[mov,mp4 @ 0x55d0] moov atom not found\n{REFUSAL.stderr}"), "noise"),
        (replace(REFUSAL, stderr=f"thread 'x' panicked at src/lib.rs:1:1:\n{REFUSAL.stderr}"), "noise"),
        (replace(REFUSAL, stderr=f"2026 [E:onnxruntime:, x.cc:1] no\n{REFUSAL.stderr}"), "noise"),
        (replace(REFUSAL, stderr=f"{REFUSAL.stderr}and more\n"), "more than one line"),
        (replace(REFUSAL, stderr="something went wrong\n"), "0 lines of error"),
        (replace(REFUSAL, stdout="le"), "output before the error"),
        (replace(REFUSAL, new_files=("out", "out/graph.onnx")), "left behind: out"),
        (replace(ANSWER, new_files=("out", ".out.partial-1")), "left behind: .out.partial-1"),
        (replace(ANSWER, stderr="Exception ignored in: <function>\n"), "noise"),
    ],
)
def test_anything_else_is_told_from_them(outcome: Outcome, reason: str) -> None:
    verdict, reasons = judge(JOB, outcome)
    assert verdict == "else"
    assert reason in "; ".join(reasons)


def test_frames_that_are_missing_without_a_word_are_seen() -> None:
    shown = '{"tokens": {"visual": 1280}, "skipped_frames": 0}\n'  # 20 frames of the demo model
    assert judge(replace(JOB, frames=20), replace(ANSWER, stdout=shown)) == ("answered", [])
    assert judge(replace(JOB, frames=21), replace(ANSWER, stdout=shown))[0] == "else"
    assert judge(replace(JOB, fewer_than=21), replace(ANSWER, stdout=shown)) == ("answered", [])
    assert judge(replace(JOB, fewer_than=20), replace(ANSWER, stdout=shown))[0] == "else"
    skipped = shown.replace('"skipped_frames": 0', '"skipped_frames": 1')
    assert judge(replace(JOB, fewer_than=20), replace(ANSWER, stdout=skipped)) == ("answered", [])


def test_sentences_are_counted_whatever_they_name() -> None:
    first = sentence("prunevid run: error: /tmp/a/x.mp4 has 12 bytes where 'b' has 1e3: copy it\n")
    assert first == sentence("prunevid run: error: /tmp/c/y.mkv has 7 bytes where 'dd' has 9: copy it\n")
    assert first != sentence("prunevid run: error: /tmp/a/x.mp4 is empty\n")


@pytest.mark.parametrize("name", [name for name, clip in CLIPS.items() if clip.tree])
def test_parts_are_read_and_written_as_they_are(name: str, clips: dict[str, Path]) -> None:
    data, tree = clips[name].read_bytes(), str(CLIPS[name].tree)
    parts = FORMATS[tree].read(data)
    assert len(parts) > 1 or isinstance(parts[0].body, list)
    assert FORMATS[tree].write(parts) == data
    damaged = {damage_tree(Random(seed), data, tree)[0] for seed in range(40)}
    assert len(damaged - {data}) > 20


def test_graphs_are_read_and_written_as_they_are(demo_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    data = (demo_bundle / "llm_pre.onnx").read_bytes()
    assert write_message(read_model(data)) == data
    readable = 0
    for seed in range(40):
        damaged, done = damage_model(Random(seed), data)
        assert damage_model(Random(seed), data) == (damaged, done)
        try:
            readable += onnx.ModelProto.FromString(damaged) is not None
        except Exception:  # what protobuf raises differs by its implementation
            continue
    # Most get past the parser, to whatever is behind it.
    assert readable > 20


def test_damaged_json_is_mostly_json() -> None:
    import json

    text = json.dumps({"a": {"b": [1, 2, {"c": "x"}]}, "d": 0.5, "e": None, "f": "g"})
    readable = 0
    for seed in range(200):
        damaged, done = damage_json(Random(seed), text)
        assert damage_json(Random(seed), text) == (damaged, done)
        assert done
        try:
            readable += json.loads(damaged) is not None
        except (ValueError, RecursionError):
            continue
    assert 100 < readable < 200


@pytest.fixture(scope="module")
def ready() -> Iterator[list[Lane]]:
    with lanes(2) as made:
        yield made


@pytest.fixture(scope="module")
def bases(ready: list[Lane], tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return prepare(tmp_path_factory.mktemp("fuzz") / "bases", ready[0])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_inputs_are_answered(kind: str, bases: Bases, ready: list[Lane]) -> None:
    tally = run_cases(controls_of(kind, bases), SEED, bases, ready)
    assert [result.to_dict() for result in tally.elses] == []
    assert len(tally.results) > 3


@pytest.mark.parametrize("case", ["video:mkv", "bundle:portable", "checkpoint:sharded"])
def test_a_case_is_answered_as_by_a_fresh_interpreter(
    case: str, bases: Bases, ready: list[Lane], tmp_path: Path
) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        folder.mkdir()
    forked, fresh = plain_answer(case, bases, ready[0], folders)
    assert forked
    assert forked == fresh


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_made_the_same_every_time(kind: str, bases: Bases, tmp_path: Path) -> None:
    for number in range(12):
        made = []
        for name in ("a", "b"):
            folder = tmp_path / f"{name}{number}" / "case"
            folder.mkdir(parents=True)
            job = job_of(kind, SEED, str(number), bases, folder)
            files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            made.append((job, files))
        assert made[0] == made[1]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_answered_or_refused_in_one_sentence(kind: str, bases: Bases, ready: list[Lane]) -> None:
    count, answered, refused, sentences = COUNTS[kind]
    tally = run_cases([f"{kind}:{number}" for number in range(count)], SEED, bases, ready)
    # `python -m benchmarks.fuzz --case KIND:NUMBER` shows one of them.
    assert [result.to_dict() for result in tally.elses] == []
    found = tally.to_dict()
    assert found["cases"] == count
    assert found["answered"] >= answered
    assert found["refused"] >= refused
    assert found["different sentences"] >= sentences
