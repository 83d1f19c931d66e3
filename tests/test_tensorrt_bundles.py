"""The graphs of portable bundles in every precision: the lint finds nothing, and TensorRT-RTX's parser takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import needs
import onnx
import pytest
from rtx_parser import Judge, Question, judge

from prunevid.bundle import Bundle, open_bundle
from prunevid.export.engine.profiles import limits_of, profiles_of, ranges_of
from prunevid.export.engine.rewriting import for_parser
from prunevid.export.lint.unsupported import RELEASES, unsupported

needs.package("torch")

RTX = "rtx-1.7.1.116"
PRECISIONS = ("fp32", "fp16", "int8-qdq", "int4-awq", "fp8-qdq")


@pytest.fixture(scope="module")
def real() -> Iterator[Judge]:
    needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")
    with judge() as found:
        yield found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """Exports and quantizes a model, each once: the demo, or one that has 32 frames of 196 tokens."""
    from models import Tiny, build_model, save_checkpoint

    from prunevid.export import export

    folder, made = tmp_path_factory.mktemp("bundles"), dict[tuple[str, str], Bundle]()

    def bundle(name: str, precision: str) -> Bundle:
        key = (name, precision)
        if key not in made and precision in ("fp32", "fp16"):
            checkpoint = None
            if name == "long":
                model = build_model(Tiny(side=27), max_position_embeddings=32768)
                checkpoint = str(save_checkpoint(model, folder / f"checkpoint-{precision}"))
            made[key] = export(
                "demo" if name == "demo" else "llava-ov",
                folder / f"{name}-{precision}",
                checkpoint=checkpoint,
                dialect="portable",
                precision=precision,
            )
        elif key not in made:
            made[key] = _quantized(bundle(name, "fp16"), precision, folder / f"{name}-{precision}")
        return made[key]

    return bundle


def _quantized(bundle: Bundle, recipe: str, folder: Path) -> Bundle:
    """By random activations: what they are changes no node."""
    from benchmarks import quantize_memory
    from prunevid.calibration.quantize.calibrate import Settings, quantize
    from prunevid.calibration.questions import Split
    from prunevid.calibration.workspace import Workspace
    from prunevid.console.progress import PlainLines

    few = patch.object(quantize_memory, "_ROWS", 8)
    with few, patch("prunevid.calibration.quantize.calibrate.observe", quantize_memory.drawn):
        workspace = Workspace(folder, recipe)
        return quantize(bundle, Split((), ()), Settings(recipe), workspace, PlainLines())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["demo", "long"])
def test_every_release_takes_every_graph(
    exported: Callable[[str, str], Bundle], real: Judge, name: str, precision: str
) -> None:
    bundle = exported(name, precision)
    limits = limits_of(bundle.manifest)
    if name == "long":
        assert (limits.frames, limits.visual) == (32, 32 * 196)
    questions = []
    for graph, spec in bundle.manifest.graphs.items():
        file = bundle.file(spec.file)
        model = onnx.load(file, load_external_data=False)
        for release in ("10.3", *RELEASES, RTX):
            for profile in profiles_of(bundle.manifest, graph, limits):
                assert unsupported(model, release, sizes=ranges_of(profile)) == [], (graph, release, profile.name)
        questions.append(Question(for_parser(model, plugins_too=False).SerializeToString(), str(file)))
    assert [verdict.parser for verdict in real.ask(questions)] == [None] * len(questions)


def test_of_the_other_dialect_the_fused_operators_are_refused(demo_bundle: Path, real: Judge) -> None:
    """TensorRT-RTX's parser takes some of them: see STRICTER in export/lint/tensorrt_rtx.py."""
    bundle = open_bundle(demo_bundle, verify=False)
    refused = {}
    for graph, spec in bundle.manifest.graphs.items():
        file = bundle.file(spec.file)
        model = onnx.load(file, load_external_data=False)
        profiles = profiles_of(bundle.manifest, graph, limits_of(bundle.manifest))
        found = [finding for each in profiles for finding in unsupported(model, RTX, sizes=ranges_of(each))]
        refused[graph] = any("of domain com.microsoft" in finding.why for finding in found)
        assert refused[graph] == bool(found)
        (verdict,) = real.ask([Question(for_parser(model, plugins_too=False).SerializeToString(), str(file))])
        assert (verdict.parser is None) == (graph in ("vision_merge", "merge", "select")), graph
    assert refused == {"vision_merge": True, "merge": False, "llm_pre": True, "select": False, "llm_post": True}


def test_real_sizes(real: Judge, tmp_path: Path) -> None:
    """LLaVA-OneVision-0.5B's graphs with three layers instead of 24 and two instead of 26 in the tower."""
    from prunevid.export import exporter
    from prunevid.export.catalog import shipped_config
    from prunevid.models import KnownModel

    def few_layers(model: KnownModel) -> dict[str, object]:
        config = shipped_config(model)
        config["text_config"]["num_hidden_layers"] = 3
        config["vision_config"]["num_hidden_layers"] = 2
        return config

    with patch.object(exporter, "shipped_config", few_layers):
        bundle = exporter.export(
            "llava-ov-0.5b", tmp_path / "bundle", random_weights=True, dialect="portable", precision="fp16"
        )
    test_every_release_takes_every_graph(lambda *_: bundle, real, "long", "fp16")
