"""Threads that share a session, a pipeline or a backend: each gets the answer that it would get alone."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_ort import patch_onnxruntime
from fake_tensorrt import FakeTensorRt, add_engines

from demo import world
from prunevid import PruneVidError
from prunevid.bundle import Bundle, open_bundle
from prunevid.calibration.tuning.trials import stream_each
from prunevid.runtime import SamplingConfig, VideoSession, load
from prunevid.runtime.backends.backend import Backend
from prunevid.runtime.backends.cuda import Cuda
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.backends.ort_gpu import OrtCudaBackend
from prunevid.runtime.backends.tensorrt import TensorRtBackend
from prunevid.runtime.chain import Chain
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.stream import AnswerStream

FRAMES = world.make_video("validation", 10_000).frames[:8]
OTHER = world.make_video("validation", 10_001).frames[:8]
# Of different lengths, so that rows of one are not rows of another.
QUESTIONS = (
    "what colour is the circle ?",
    "how many objects move ?",
    "where is the blue circle ?",
    "what shape is the pink object ? where is the blue circle ? which way does the white triangle move ?",
)
LONG = SamplingConfig(max_new_tokens=8, ignore_eos=True)
THREADS, TIMES = 4, 4
PRUNED = pytest.mark.parametrize("prune", [True, False], ids=["pruned", "unpruned"])


@pytest.fixture(scope="module")
def bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    from prunevid.export import export

    folder = tmp_path_factory.mktemp("bundles")
    portable = export("demo", folder / "portable", dialect="portable")
    shutil.copytree(portable.path, folder / "engines")
    return {
        "ort": open_bundle(demo_bundle),
        "portable": portable,
        "engines": add_engines(folder / "engines", frames=8),
    }


@pytest.fixture(params=["ort", "portable"])
def pipeline(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Pipeline:
    return load(bundles[request.param], threads=1)


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def alone(pipeline: Pipeline, prune: bool, frames: np.ndarray = FRAMES) -> dict[str, tuple[int, ...]]:
    """Every question's answer, from a session of its own."""
    return {q: pipeline.open(frames, frames=8, prune=prune).ask(q, LONG).token_ids for q in QUESTIONS}


def together(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """What `work` gives for every number of a thread, all begun at one moment."""
    gate = Barrier(threads)

    def begin(number: int) -> Any:
        gate.wait(60)
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return [future.result(120) for future in [pool.submit(begin, number) for number in range(threads)]]


def finish(stream: AnswerStream) -> tuple[int, ...]:
    pieces = list(stream)
    assert stream.answer.text.endswith("".join(pieces))
    return stream.answer.token_ids


class Person:
    """A thread of its own, which does one thing after the other as it is told: no test hangs on luck."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(work, *arguments).result(60)


@PRUNED
def test_one_session_answers_several_threads_as_it_answers_one(pipeline: Pipeline, prune: bool) -> None:
    expected, session = alone(pipeline, prune), pipeline.open(FRAMES, frames=8, prune=prune)
    assert len(set(expected.values())) > 2

    def ask(number: int) -> None:
        for turn in range(TIMES):
            question = QUESTIONS[(number + turn) % len(QUESTIONS)]
            answer = session.ask(question, LONG)
            assert answer.token_ids == expected[question]
            assert len(answer.timings.decode) == len(answer.token_ids) - 1

    together(ask)


@PRUNED
def test_streams_of_several_threads_go_on_side_by_side(pipeline: Pipeline, prune: bool) -> None:
    expected, session = alone(pipeline, prune), pipeline.open(FRAMES, frames=8, prune=prune)
    people = [Person() for _ in QUESTIONS]
    streams = [person(session.stream, q, LONG) for person, q in zip(people, QUESTIONS, strict=True)]
    readers = [iter(stream) for stream in streams]
    pieces: list[list[str]] = [[] for _ in streams]
    left = list(range(len(streams)))
    while left:
        # One piece each, and another order every time.
        for index in list(left):
            piece = people[index](next, readers[index], None)
            if piece is None:
                left.remove(index)
            else:
                pieces[index].append(piece)
        left = left[1:] + left[:1]
    for stream, question, read in zip(streams, QUESTIONS, pieces, strict=True):
        assert len(read) > 2
        assert stream.answer.token_ids == expected[question]
        assert stream.answer.text == "".join(read)


@PRUNED
def test_a_stream_that_is_left_half_read_holds_up_nobody(pipeline: Pipeline, prune: bool) -> None:
    expected, session = alone(pipeline, prune), pipeline.open(FRAMES, frames=8, prune=prune)
    first, second, third = Person(), Person(), Person()
    kept = first(session.stream, QUESTIONS[3], LONG)
    reader = iter(kept)
    begun = [first(next, reader)]
    dropped = second(session.stream, QUESTIONS[1], LONG)
    second(next, iter(dropped))
    closed = iter(third(session.stream, QUESTIONS[2], LONG))
    third(next, closed)
    third(closed.close)
    del dropped
    gc.collect()
    for question in QUESTIONS:
        assert session.ask(question, LONG).token_ids == expected[question]
    # The one that somebody still has goes on where it was.
    begun += first(list, reader)
    assert kept.answer.token_ids == expected[QUESTIONS[3]]
    assert kept.answer.text == "".join(begun)


@PRUNED
def test_a_threads_next_question_ends_its_own_answer_alone(pipeline: Pipeline, prune: bool) -> None:
    expected, session = alone(pipeline, prune), pipeline.open(FRAMES, frames=8, prune=prune)
    other = Person()
    theirs = other(session.stream, QUESTIONS[0], LONG)
    reader = iter(theirs)
    read = [other(next, reader)]
    mine, unread = session.stream(QUESTIONS[1], LONG), None
    mine_reader = iter(mine)
    next(mine_reader)
    unread = session.stream(QUESTIONS[2], LONG)
    newest = session.stream(QUESTIONS[3], LONG)
    newest_reader = iter(newest)
    next(newest_reader)
    for ended in (mine_reader, iter(unread)):
        with pytest.raises(PruneVidError, match="newer question"):
            list(ended)
    list(newest_reader)
    assert newest.answer.token_ids == expected[QUESTIONS[3]]
    read += other(list, reader)
    assert theirs.answer.token_ids == expected[QUESTIONS[0]]
    with pytest.raises(PruneVidError, match="not finished"):
        _ = unread.answer


def test_answers_at_several_keep_ratios_stand_questions_of_others_in_between(pipeline: Pipeline) -> None:
    ratios, other = (0.1, 0.4, 1.0), Person()
    plain = pipeline.open(FRAMES, frames=8)
    expected = [finish(stream) for stream in stream_each(plain, QUESTIONS[0], ratios, LONG)]
    session = pipeline.open(FRAMES, frames=8)
    found = []
    for stream in stream_each(session, QUESTIONS[0], ratios, LONG):
        other(session.ask, QUESTIONS[3], LONG)
        reader = iter(stream)
        next(reader)
        other(session.ask, QUESTIONS[1], LONG)
        list(reader)
        found.append(stream.answer.token_ids)
    assert found == expected
    # All at once, too, from several threads.
    assert together(lambda _: [finish(s) for s in stream_each(session, QUESTIONS[0], ratios, LONG)]) == [expected] * 4


def test_a_threads_next_question_ends_what_is_left_of_several_keep_ratios(pipeline: Pipeline) -> None:
    session = pipeline.open(FRAMES, frames=8)
    first, second = stream_each(session, QUESTIONS[0], (0.1, 0.4), LONG)
    expected = alone(pipeline, True)
    finish(first)
    assert session.ask(QUESTIONS[3], LONG).token_ids == expected[QUESTIONS[3]]
    with pytest.raises(PruneVidError, match="newer question"):
        finish(second)


@PRUNED
def test_what_threads_attend_to_is_what_one_would(pipeline: Pipeline, prune: bool) -> None:
    plain = pipeline.open(FRAMES, frames=8, prune=prune)
    expected = {question: plain.attend(question) for question in QUESTIONS}
    answers, session = alone(pipeline, prune), pipeline.open(FRAMES, frames=8, prune=prune)

    def look(number: int) -> None:
        for turn in range(TIMES):
            question = QUESTIONS[(number + turn) % len(QUESTIONS)]
            if number % 2:
                assert session.ask(question, LONG).token_ids == answers[question]
            scores, kept = session.attend(question)
            np.testing.assert_array_equal(scores, expected[question][0])
            np.testing.assert_array_equal(kept, expected[question][1])

    together(look)


def test_sessions_of_one_pipeline_run_side_by_side(pipeline: Pipeline) -> None:
    kinds = [(frames, prune) for frames in (FRAMES, OTHER) for prune in (True, False)]
    expected = [alone(pipeline, prune, frames) for frames, prune in kinds]

    def ask(number: int) -> None:
        frames, prune = kinds[number]
        session = pipeline.open(frames, frames=8, prune=prune)
        for question in QUESTIONS:
            assert session.ask(question, LONG).token_ids == expected[number][question]
            assert pipeline.ask(frames, question, frames=8, prune=prune).token_ids[:1] == expected[number][question][:1]

    together(ask)


def test_a_bundle_is_loaded_in_several_threads_at_once(bundles: dict[str, Bundle]) -> None:
    expected = alone(load(bundles["ort"], threads=1), True)[QUESTIONS[0]]
    found = together(lambda _: load(bundles["ort"], threads=1).open(FRAMES, frames=8).ask(QUESTIONS[0], LONG).token_ids)
    assert found == [expected] * THREADS


@PRUNED
@pytest.mark.parametrize("kind", ["ort-cuda", "tensorrt"])
def test_backends_of_a_gpu_put_one_threads_run_after_the_others(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, kind: str, prune: bool
) -> None:
    """On stand-ins: they share staging memory, contexts and one stream, as the real ones do."""
    expected = alone(Pipeline(bundles["portable"], Chain(bundles["portable"], OrtCpuBackend(1))), prune)
    gpu, bundle = FakeCuda(), bundles["engines"]
    backend: Backend
    if kind == "ort-cuda":
        patch_onnxruntime(monkeypatch, gpu)
        backend = OrtCudaBackend(bundle, threads=1, cuda=Cuda(gpu))
    else:
        backend = TensorRtBackend(bundle, cuda=Cuda(gpu), trt=FakeTensorRt(gpu, bundle.manifest))
    pipeline = Pipeline(bundle, Chain(bundle, backend))
    shared = pipeline.open(FRAMES, frames=8, prune=prune)

    def ask(number: int) -> None:
        session: VideoSession = shared if number % 2 else pipeline.open(FRAMES, frames=8, prune=prune)
        for turn in range(2):
            question = QUESTIONS[(number + turn) % len(QUESTIONS)]
            assert session.ask(question, LONG).token_ids == expected[question]

    together(ask)


def test_a_prefill_that_failed_on_its_way_leaves_the_session_usable(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, session = alone(pipeline, False), pipeline.open(FRAMES, frames=8, prune=False)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.chain._llm_post, "run", _fail)
        with pytest.raises(PruneVidError, match="no room") as held:
            session.ask(QUESTIONS[0], LONG)
    assert session.ask(QUESTIONS[1], LONG).token_ids == expected[QUESTIONS[1]]
    assert held.value.__traceback__ is not None


def _fail(*_: Any) -> Any:
    raise PruneVidError("there is no room")
