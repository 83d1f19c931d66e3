"""The command line, as a user meets it: real processes, exit codes, one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from commands import ROOT, prunevid, refused

from prunevid.cli import COMMANDS

HEAVY = ("torch", "transformers", "onnx", "onnxscript")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np
    from videos import write_video

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    rng = np.random.default_rng(3)
    write_video(path, rng.integers(0, 256, (12, 96, 96, 3), dtype=np.uint8))
    return path


def test_help_names_every_command() -> None:
    result = prunevid("--help")
    assert result.returncode == 0
    assert all(f"  {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = prunevid(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: prunevid {command} ")
    assert "BUNDLE" in result.stdout or command in ("demo", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_name_of_its_own(command: str) -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    module, _, function = scripts[f"prunevid-{command}"].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("export", "build")])
def test_help_of_the_runtime_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom prunevid.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass\n"
        f"assert not set({(*HEAVY, 'onnxruntime', 'av')!r}) & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import prunevid.runtime",
        "import prunevid.runtime.pipeline",
        "import prunevid.runtime.cli",
        "from prunevid.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from prunevid.cli import main\ntry:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass",
    ],
)
def test_the_runtime_loads_neither_torch_nor_transformers(code: str) -> None:
    check = f"{code}\nimport sys\nfound = [m for m in {HEAVY} if m in sys.modules]\nassert not found, found"
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_help_does_not_load_numpy_or_onnxruntime() -> None:
    check = (
        "import sys\nfrom prunevid.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'onnxruntime', 'rich', 'av'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_without_a_command_it_says_which_there_are() -> None:
    result = prunevid()
    assert result.returncode == 2
    assert "COMMAND" in result.stderr


def test_an_unknown_model_is_refused_by_name(tmp_path: Path) -> None:
    sentence = refused(prunevid("export", "--model", "gpt", "--output", str(tmp_path / "out")))
    assert "'gpt'" in sentence
    assert "llava-ov" in sentence
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arguments = (
        "export",
        "--model",
        "llava-ov",
        "--checkpoint",
        str(tmp_path / "none"),
        "--output",
        str(tmp_path / "o"),
    )
    assert "there is no checkpoint folder" in refused(prunevid(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    # HF_HUB_OFFLINE is the hub library's own switch for "no network".
    command = [sys.executable, "-m", "prunevid.cli", "export", "--model", "llava-ov", "--output", str(tmp_path / "o")]
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert "check the name and the network" in refused(result)
    assert not (tmp_path / "o").exists()


def test_a_setting_out_of_range_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arguments = ("export", "--model", "demo", "--keep-ratio", "1.5", "--output", str(tmp_path / "o"))
    assert "keep_ratio" in refused(prunevid(*arguments))


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    sentence = refused(prunevid("run", str(tmp_path / "none"), "--video", "x.mp4", "--question", "Why?"))
    assert "there is no bundle" in sentence


def test_run_streams_the_answer_and_reports_to_stderr(demo_bundle: Path, clip: Path) -> None:
    question = ("--question", "what colour is the circle ?")
    result = prunevid("run", str(demo_bundle), "--video", str(clip), *question, "--max-new-tokens", "4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "visual tokens" in result.stderr
    assert "first token after" in result.stderr


def test_json_has_an_object_per_question_and_nothing_else(demo_bundle: Path, clip: Path) -> None:
    questions = ("--question", "what colour is the circle ?", "--question", "how many objects move ?")
    arguments = ("run", str(demo_bundle), "--video", str(clip), *questions, "--json", "--max-new-tokens", "3")
    result = prunevid(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["question"] == "what colour is the circle ?"
    assert first["pruned"] is True
    assert set(first["timings"]["stages_s"]) >= {"video", "preprocess", "vision", "prefix", "select"}
    assert "vision" not in second["timings"]["stages_s"]
    tokens = first["tokens"]
    assert tokens["visual"] > tokens["merged"] > tokens["kept"] > 0
    assert first["kv_bytes"] < first["kv_bytes_unpruned"]


def test_no_prune_keeps_every_token(demo_bundle: Path, clip: Path) -> None:
    question = ("--question", "what colour is the circle ?", "--json", "--no-prune", "--max-new-tokens", "2")
    result = prunevid("run", str(demo_bundle), "--video", str(clip), *question)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["pruned"] is False
    assert answer["tokens"]["kept"] == answer["tokens"]["visual"]
    assert answer["kv_bytes"] == answer["kv_bytes_unpruned"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--question", "  "], "question"),
        (["--question", "what <video> is it ?"], "<video>"),
        (["--question", "what ?", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--question", "what ?", "--prune-layer", "0"], "prune_layer is fixed at export"),
        (["--question", "what ?", "--no-prune", "--keep-ratio", "0.2"], "exclude each other"),
        (["--question", "what ?", "--frames", "0"], "frames"),
        (["--question", "what ?", "--threads", "0"], "threads"),
        (["--question", "what ?", "--backend", "tensorrt"], "has no TensorRT engines"),
    ],
)
def test_mistakes_of_run_are_one_sentence(demo_bundle: Path, clip: Path, arguments: list[str], expected: str) -> None:
    sentence = refused(prunevid("run", str(demo_bundle), "--video", str(clip), *arguments))
    assert expected.replace("_", "-") in sentence.replace("_", "-")


def test_a_file_that_is_no_video_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no video at all")
    sentence = refused(prunevid("run", str(demo_bundle), "--video", str(text), "--question", "what ?"))
    assert "notes.mp4" in sentence
