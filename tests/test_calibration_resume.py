"""A calibration that is killed goes on where it was, and makes what a run that nothing interrupts makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from asked import asked_videos

from prunevid.bundle import open_bundle
from prunevid.calibration.quantize.calibrate import Calibrated, Settings, calibrate
from prunevid.calibration.quantize.sensitivity import FloatChoice
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import Silent

SETTINGS = {
    "cpu-int8": Settings("cpu-int8", min_agreement=0, max_new_tokens=3),
    "int8-qdq": Settings("int8-qdq", min_agreement=0, max_new_tokens=3),
    "int4-awq": Settings("int4-awq", min_agreement=0, max_new_tokens=3, float_choice=FloatChoice(count=2)),
}


class Killed(Silent):
    """Ends a run as Ctrl-C does, when a step has advanced so often."""

    def __init__(self, step: str, after: int) -> None:
        self.at, self.left, self.current = step, after, ""
        self.steps: list[str] = []
        self.told: list[str] = []

    def step(self, what: str, total: float = 0, done: float = 0) -> None:
        self.current = what
        self.steps.append(what)

    def advance(self, units: float = 1) -> None:
        self.left -= self.current == self.at
        if self.left < 0:
            raise KeyboardInterrupt

    def tell(self, line: str) -> None:
        self.told.append(line)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[AskedVideo]:
    return asked_videos(tmp_path_factory.mktemp("videos"), 8, "red")


@pytest.fixture(scope="module")
def source(tiny_bundle: Callable[[str, str], Path]) -> Callable[[str], Path]:
    """What a recipe starts from."""
    return lambda recipe: tiny_bundle("qwen2", "ort" if recipe == "cpu-int8" else "portable")


@pytest.fixture(scope="module")
def at_once(
    source: Callable[[str], Path], videos: list[AskedVideo], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Calibrated]:
    """A run of a recipe that nothing interrupts."""

    @cache
    def run(recipe: str) -> Calibrated:
        return calibrate(source(recipe), videos, tmp_path_factory.mktemp("whole") / "out", SETTINGS[recipe])

    return run


@pytest.mark.parametrize(
    ("recipe", "step"),
    [
        ("cpu-int8", "quantizing llm_pre"),
        ("cpu-int8", "writing llm_post"),
        ("cpu-int8", "asking the quantized bundle"),
        ("int8-qdq", "observing what goes into the layers of llm_post"),
        ("int8-qdq", "quantizing llm_post"),
        ("int4-awq", "quantizing llm_post"),
        ("int4-awq", "measuring how sensitive each layer is"),
        ("int4-awq", "asking the quantized bundle"),
    ],
)
def test_a_killed_run_goes_on(
    recipe: str,
    step: str,
    source: Callable[[str], Path],
    videos: list[AskedVideo],
    at_once: Callable[[str], Calibrated],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, output, settings = at_once(recipe), tmp_path / "out", SETTINGS[recipe]
    with pytest.raises(KeyboardInterrupt):
        calibrate(source(recipe), videos, output, settings, Killed(step, 2))
    assert not output.exists()
    workspace = tmp_path / ".out.calibration"
    done = [json.loads(line)["step"] for line in (workspace / "journal.jsonl").read_text().splitlines()[1:]]
    assert done
    # A line that was being written when the power went.
    with (workspace / "journal.jsonl").open("a") as journal:
        journal.write('{"step": "quantize llm_p')
    recorded: list[str] = []
    record = Workspace.record

    def noting(workspace: Workspace, step: str, result: Any) -> Any:
        recorded.append(step)
        return record(workspace, step, result)

    monkeypatch.setattr(Workspace, "record", noting)
    watching = Killed("", 0)
    made = calibrate(source(recipe), videos, output, settings, watching)
    assert "going on" in watching.told[0]
    assert recorded
    assert not set(recorded) & set(done)
    # What every layer's weights are there for is not observed again.
    assert "observing what goes into the layers of llm_pre" not in watching.steps
    assert made.bundle.manifest.files == open_bundle(output).manifest.files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert made.bundle.manifest.files == whole.bundle.manifest.files
    assert made.judgement == whole.judgement


def test_other_work_starts_afresh(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", "a")
    first.record("x", 1)
    assert Workspace(tmp_path / "out", "a")["x"] == 1
    other = Workspace(tmp_path / "out", "b")
    assert not other.resumed
    assert "x" not in other
