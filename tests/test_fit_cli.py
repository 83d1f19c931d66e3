"""`prunevid fit` as a user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import edit_graph

from prunevid.cli import main

ROOT = Path(__file__).parents[1]


def fit(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Output of a command that succeeds."""
    status = main(["fit", *arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a command that is refused."""
    assert main(["fit", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_the_verdict_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = fit(capsys, "--model", "llava-ov-0.5b", "--device", "orin-nano-8gb").splitlines()
    assert lines[0].startswith("FITS: llava-ov-0.5b on Jetson Orin Nano 8GB")
    assert lines[1] == "An estimate: nothing was measured on this device."
    assert lines[3].startswith("  fp16: fits 8, 16, 32, 64 frames")
    text = " ".join(" ".join(lines).split())
    assert "merging leaves 42.5% of the visual tokens and 17.0% are kept" in text
    assert "Technical Brief" in text


def test_a_model_that_does_not_fit_says_how_much_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    lines = fit(capsys, "--model", "llava-ov-72b", "--device", "orin-nx-16gb", "--frames", "4").splitlines()
    assert lines[0] == "DOES NOT FIT: llava-ov-72b on Jetson Orin NX 16GB"
    assert "GB short at 4 frames" in lines[2]


def test_it_says_which_engines_a_device_takes(capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        name: " ".join(fit(capsys, "--model", "llava-ov-0.5b", "--device", name, "--frames", "8").split())
        for name in ("dgx-spark", "agx-orin-64gb", "raspberry-pi-5-8gb")
    }
    rtx = "Engines: of TensorRT-RTX, built on any machine (`prunevid build --device rtx --capability 12.1`), or of"
    assert f"{rtx} TensorRT, built there; each holds its weights once." in said["dgx-spark"]
    assert "fp16 at least 62.5" in said["dgx-spark"]
    assert "Engines: of TensorRT, built there; each holds its weights once." in said["agx-orin-64gb"]
    assert "at least" not in said["agx-orin-64gb"]
    assert "Engines:" not in said["raspberry-pi-5-8gb"]


def test_the_first_table_fits_into_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = fit(capsys, "--model", "llava-ov-72b", "--device", "raspberry-pi-5-8gb")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_json_on_standard_output_is_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "llava-ov", "--device", "thor-128gb", "--frames", "16,8,8", "--json", "-")
    found = json.loads(fit(capsys, *arguments))
    assert found["kind"] == "estimate"
    assert found["comparisons"] == []
    assert [(made["frames"], made["pruned"]) for made in found["estimates"][:4]] == [
        (8, False),
        (8, True),
        (16, False),
        (16, True),
    ]
    assert found["assumptions"]["kept_share"] == pytest.approx(0.17)


def test_json_goes_to_a_file_beside_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "fit.json"
    shares = ("--merged-share", "0.6")
    out = fit(capsys, "--model", "llava-ov", "--device", "l4", *shares, "--json", str(file))
    assert out.startswith("FITS")
    assert list(tmp_path.iterdir()) == [file]
    found = json.loads(file.read_text())
    # Selection keeps 0.4 of what merging leaves, unless said otherwise.
    assert found["assumptions"]["kept_share"] == pytest.approx(0.24)
    assert found["verdict"] == out.splitlines()[0]


def test_a_bundle_brings_its_own_shapes(capsys: pytest.CaptureFixture[str], demo_bundle: Path) -> None:
    arguments = (str(demo_bundle), "--device", "raspberry-pi-5-8gb", "--frames", "16", "--json", "-")
    found = json.loads(fit(capsys, *arguments))
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    assert found["model"]["decoder"] == manifest["model"]["decoder"]
    assert found["model"]["prune_layer"] == manifest["prune"]["prune_layer"]
    assert found["estimates"][0]["tokens"]["visual"] == 16 * manifest["token_layout"]["tokens_per_frame"]


def figures(comparison: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {figure["name"]: figure for figure in comparison["figures"]}


def test_this_machine_is_measured_and_compared(
    capsys: pytest.CaptureFixture[str], demo_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "local.json"
    out = fit(capsys, str(demo_bundle), "--device", "local", "--frames", "6,3", "--json", str(file))
    assert "An estimate: rates measured here." in out
    assert "Estimate and measurement at 3 frames" in out
    found = json.loads(file.read_text())
    assert found["device"]["is_measured"] is True
    assert {made["precision"] for made in found["estimates"]} == {"fp32"}
    unpruned, pruned = found["comparisons"]
    assert (unpruned["pruned"], pruned["pruned"]) == (False, True)
    tokens = pruned["tokens"]
    assert tokens["visual"] == unpruned["tokens"]["kept"] > tokens["merged"] > tokens["kept"] > 0
    assert set(figures(pruned)) - set(figures(unpruned)) == {"merge_s", "select_s"}
    for comparison in (unpruned, pruned):
        rows = figures(comparison)
        for row in rows.values():
            assert row["measured"] > 0
            assert row["error"] == pytest.approx(row["estimated"] / row["measured"] - 1)
        stages = [row["measured"] for name, row in rows.items() if name in ("vision_s", "merge_s", "llm_pre_s")]
        assert rows["first_token_s"]["measured"] > sum(stages)
        # Weights and arrays are megabytes; what Python had before is not counted.
        assert 5e6 < rows["memory_bytes"]["measured"] < 500e6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "l4"], "give either a BUNDLE or --model NAME"),
        (["some/bundle", "--model", "llava-ov", "--device", "l4"], "give either a BUNDLE or --model NAME"),
        (["--model", "llava-ov", "--device", "tpu"], "unknown device 'tpu': known are orin-nano-8gb, "),
        (["--model", "gpt", "--device", "l4"], "unknown model 'gpt': known are llava-ov, "),
        (["--model", "llava-ov", "--device", "local"], "--device local measures: it needs a BUNDLE"),
        (["no/such/bundle", "--device", "l4"], "there is no bundle at no/such/bundle"),
        (
            ["--model", "llava-ov", "--device", "l4", "--frames", "8,x"],
            "whole numbers of 1 or more, such as 8,16,32,64",
        ),
        (["--model", "llava-ov", "--device", "l4", "--frames", "0"], "whole numbers of 1 or more"),
        (
            ["--model", "llava-ov", "--device", "l4", "--frames", "1000"],
            "give at most 391 frames (166 without pruning)",
        ),
        (["--model", "llava-ov", "--device", "l4", "--merged-share", "0"], "shares must be above 0"),
        (["--model", "llava-ov", "--device", "l4", "--kept-share", "0.9"], "no more kept than merged"),
        (["--model", "llava-ov", "--device", "l4", "--json", "no/folder/fit.json"], "cannot write no/folder/fit.json"),
    ],
)
def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert expected in refused(capsys, *arguments)


def test_a_measurement_that_fails_is_one_sentence(
    capsys: pytest.CaptureFixture[str], demo_bundle: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(demo_bundle, tmp_path / "broken"))
    # A node takes what nobody gives: only loading the graph shows it.
    edit_graph(broken, "select", lambda model: model.graph.node[0].input.append("nothing"))
    sentence = refused(capsys, str(broken), "--device", "local", "--frames", "2")
    assert "measuring" in sentence
    assert "select.onnx" in sentence


def test_it_needs_neither_the_exporter_nor_torch() -> None:
    check = (
        "import sys\n"
        "from prunevid.cli import main\n"
        "assert main(['fit', '--model', 'llava-ov-72b', '--device', 'thor-128gb']) == 0\n"
        "found = {'torch', 'transformers', 'onnx', 'onnxruntime', 'prunevid.export'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_help_loads_nothing_heavy() -> None:
    check = (
        "import sys\nfrom prunevid.cli import main\n"
        "try:\n    main(['fit', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'onnxruntime', 'rich', 'av'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "--merged-share" in result.stdout
