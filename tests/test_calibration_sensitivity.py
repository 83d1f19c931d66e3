"""Which layers stay in float: how they are measured and chosen, and that the bundle then has them as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunevid import PruneVidError
from prunevid.calibration.judge import ask, divergence
from prunevid.calibration.quantize import calibrate as calibration
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.quantize.linears import find_linears, load_graph
from prunevid.calibration.quantize.sensitivity import FloatChoice, measure_sensitivity
from prunevid.calibration.questions import AskedVideo, split
from prunevid.console.progress import Silent
from prunevid.runtime import SamplingConfig, load

MEASURED = {"a": 0.1, "b": 0.4, "c": 0.0, "d": 0.4, "e": 0.01}


def test_the_most_sensitive_layers_stay_in_float() -> None:
    assert FloatChoice().choose(MEASURED) == frozenset()
    assert FloatChoice(count=1).choose(MEASURED) == {"b"}
    assert FloatChoice(count=3).choose(MEASURED) == {"b", "d", "a"}
    assert FloatChoice(count=99).choose(MEASURED) == MEASURED.keys()


def test_as_few_layers_stay_in_float_as_the_divergence_allows() -> None:
    assert FloatChoice(max_kl=1.0).choose(MEASURED) == frozenset()
    assert FloatChoice(max_kl=0.6).choose(MEASURED) == {"b"}
    assert FloatChoice(max_kl=0.05).choose(MEASURED) == {"b", "d", "a"}
    assert FloatChoice(max_kl=0.0).choose(MEASURED) == {"b", "d", "a", "e"}
    assert not FloatChoice(count=0).needs_ranking
    assert FloatChoice(max_kl=0.0).needs_ranking


@pytest.mark.parametrize("wrong", [{"count": -1}, {"max_kl": -0.5}, {"max_kl": float("nan")}])
def test_choices_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PruneVidError, match="must be 0 or more"):
        FloatChoice(**wrong)  # type: ignore[arg-type]


class Listening(Silent):
    """Remembers what was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, line: str) -> None:
        self.told.append(line)


@pytest.mark.parametrize(
    ("dialect", "recipe"),
    [("ort", "cpu-int4"), ("portable", "int8-qdq"), ("portable", "fp8-qdq"), ("portable", "int4-awq")],
)
def test_sensitive_layers_are_found_by_measuring_and_stay_as_they_were(
    dialect: str,
    recipe: str,
    tiny_bundle: Callable[[str, str], Path],
    videos: list[AskedVideo],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tiny_bundle("qwen2", dialect)
    measured: dict[str, float] = {}

    def remember(*arguments: Any) -> dict[str, float]:
        measured.update(measure_sensitivity(*arguments))
        return measured

    monkeypatch.setattr(calibration, "measure_sensitivity", remember)
    listening, choice = Listening(), FloatChoice(count=5)
    settings = Settings(recipe, min_agreement=0, max_new_tokens=2, float_choice=choice)
    said = calibrate(source, videos, tmp_path / "five", settings, listening).bundle.manifest.quantization
    assert said is not None
    assert sum("stays in float" in line for line in listening.told) == 5
    stay = {f"{name}/{layer}" for name, graph in said.graphs.items() for layer in graph.float_layers}
    assert stay == choice.choose(measured)
    for name in said.graphs:
        left = {f"{name}/{linear.name}" for linear in find_linears(load_graph(tmp_path / "five" / f"{name}.onnx"))}
        assert left == {layer for layer in stay if layer.startswith(f"{name}/")}

    # Those that the others' sensitivities allow to be quantized, and as few as that takes.
    monkeypatch.setattr(calibration, "measure_sensitivity", lambda *_: measured)
    rest = sum(sorted(measured.values())[:-2])
    settings = replace(settings, float_choice=FloatChoice(max_kl=rest * 1.0001))
    said = calibrate(source, videos, tmp_path / "two", settings).bundle.manifest.quantization
    assert said is not None
    stay = {f"{name}/{layer}" for name, graph in said.graphs.items() for layer in graph.float_layers}
    assert stay == FloatChoice(count=2).choose(measured)

    # Measured in memory, or written down and loaded: a bundle with just one layer quantized is the same bundle.
    layer = max((name for name in measured if name.startswith("llm_post/")), key=measured.__getitem__)
    monkeypatch.setattr(calibration, "measure_sensitivity", lambda *_: dict.fromkeys(measured, 1.0) | {layer: 0.0})
    settings = replace(settings, float_choice=FloatChoice(count=len(measured) - 1))
    one = calibrate(source, videos, tmp_path / "one", settings).bundle
    before, after = (_first_tokens(bundle, videos) for bundle in (source, one.path))
    assert measured[layer] > 0
    assert measured[layer] == pytest.approx(float(divergence(before, after).mean()), rel=1e-3)


def _first_tokens(bundle: Path, videos: list[AskedVideo]) -> np.ndarray:
    """Logits of the first answer to every question on the videos that are calibrated on."""
    pipeline = load(bundle, verify=False)
    sampling = SamplingConfig(max_new_tokens=1)
    return np.concatenate([ask(pipeline, video, sampling).logits for video in split(videos).calibration])
