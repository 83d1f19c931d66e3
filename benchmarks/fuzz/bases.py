"""The whole inputs that cases damage: videos, bundles and checkpoints, made anew for every run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz import safetensors_file
from benchmarks.fuzz.clips import write_clips
from benchmarks.fuzz.job import Job
from benchmarks.fuzz.pool import Lane

__all__ = ["Bases", "prepare"]

_DEMO = Path(__file__).parents[2] / "export" / "models" / "demo"
_QUESTION = "which way does the white triangle move?"


@dataclass(frozen=True)
class Bases:
    """Folders and files by name; nothing may change them. scratch: for what a case is made of on the way."""

    clips: dict[str, Path]
    bundles: dict[str, Path]
    checkpoints: dict[str, Path]
    questions: Path
    scratch: Path
    question: str = _QUESTION


def prepare(folder: Path, lane: Lane) -> Bases:
    """Make all of them below `folder`. Raises RuntimeError where a command that makes one fails."""
    clips = write_clips(_new(folder / "clips"))
    questions = folder / "questions.jsonl"
    asked = [{"video": str(clips[name]), "question": _QUESTION} for name in ("mp4", "mov", "mkv", "webm", "avi")]
    questions.write_text("".join(json.dumps(entry) + "\n" for entry in asked))
    bundles = _new(folder / "bundles")
    few = ("--questions", str(questions), "--max-new-tokens", "1", "--threads", "1", "--force")
    _run(lane, bundles, "export", "--model", "demo", "--output", "ort")
    _run(
        lane,
        bundles,
        "export",
        "--model",
        "demo",
        "--output",
        "portable",
        "--dialect",
        "portable",
        "--precision",
        "fp16",
    )
    _run(lane, bundles, "calibrate", "ort", "--output", "int8", "--recipe", "cpu-int8", *few)
    _add_engines(bundles / "portable", bundles / "engines")
    checkpoints = _new(folder / "checkpoints")
    for name, change in _CHECKPOINTS.items():
        shutil.copytree(_DEMO, checkpoints / name)
        change(checkpoints / name)
    return Bases(clips, _entries(bundles), _entries(checkpoints), questions, _new(folder / "scratch"))


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _entries(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _run(lane: Lane, folder: Path, *arguments: str) -> None:
    outcome = lane.run(Job(arguments, "preparation", heavy=arguments[0] == "export"), folder)
    if outcome.status != 0:
        raise RuntimeError(f"prunevid {' '.join(arguments)} failed: {outcome.stderr}")


def _add_engines(source: Path, target: Path) -> None:
    """A bundle that says it has engines, of which no byte is one: they are only looked at where there is a GPU."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    sets: list[dict[str, Any]] = [
        {"product": "tensorrt", "release": "10.16.0.72", "capabilities": ["8.7"], "gpu": "Orin", "driver": "13.2"},
        {"product": "tensorrt-rtx", "release": "1.7.1.116", "capabilities": ["8.6", "12.0"]},
    ]
    for built in sets:
        engines = {}
        for name, graph in manifest["graphs"].items():
            file = f"{name}.{built['product']}"
            (target / file).write_bytes(name.encode() * 100)
            manifest["files"][file] = {"size": len(name) * 100, "sha256": safetensors_file.sha256(target / file)}
            shapes = {tensor["name"]: _range(tensor["shape"]) for tensor in graph["inputs"]}
            profile = {"name": "rows", "shapes": shapes, "values": {}}
            engines[name] = {"file": file, "profiles": [profile], "source": "0" * 64}
        built["graphs"] = engines
    manifest["engine_sets"] = sets
    (target / "manifest.json").write_text(json.dumps(manifest))


def _range(shape: list[int | str]) -> dict[str, list[int]]:
    """Shapes that fit what a graph declares, where sizes that it leaves open go from 1 to 64."""
    sides = {"minimum": 1, "optimum": 8, "maximum": 64}
    return {side: [size if isinstance(size, int) else open_size for size in shape] for side, open_size in sides.items()}


# Checkpoints


def _as_it_is(checkpoint: Path) -> None:
    pass


def _without_biases(checkpoint: Path, model_type: str) -> None:
    _configure(checkpoint, model_type=model_type)
    file = checkpoint / "model.safetensors"
    tensors = safetensors_file.read_tensors(file)
    kept = {name: tensor for name, tensor in tensors.items() if not _is_attention_bias(name)}
    safetensors_file.write_tensors(file, kept)


def _is_attention_bias(name: str) -> bool:
    return "language_model" in name and "self_attn" in name and name.endswith(".bias")


def _llama(checkpoint: Path) -> None:
    _without_biases(checkpoint, "llama")


def _mistral(checkpoint: Path) -> None:
    _without_biases(checkpoint, "mistral")


def _qwen3(checkpoint: Path) -> None:
    """Its heads' norms, too, which change nothing."""
    _without_biases(checkpoint, "qwen3")
    file = checkpoint / "model.safetensors"
    tensors = safetensors_file.read_tensors(file)
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    size = text["hidden_size"] // text["num_attention_heads"]
    _configure(checkpoint, head_dim=size)
    ones = ("F16", [size], b"\x00\x3c" * size)
    for layer in range(text["num_hidden_layers"]):
        for norm in ("q_norm", "k_norm"):
            tensors[f"language_model.model.layers.{layer}.self_attn.{norm}.weight"] = ones
    safetensors_file.write_tensors(file, tensors)


def _tied(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    _configure(checkpoint, tie_word_embeddings=True)
    file = checkpoint / "model.safetensors"
    tensors = safetensors_file.read_tensors(file)
    safetensors_file.write_tensors(file, {name: tensors[name] for name in tensors if "lm_head" not in name})


def _configure(checkpoint: Path, **text: Any) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["text_config"].update(text)
    path.write_text(json.dumps(config, indent=1))


_CHECKPOINTS = {
    "demo": _as_it_is,
    "sharded": safetensors_file.shard,
    "tied": _tied,
    "llama": _llama,
    "mistral": _mistral,
    "qwen3": _qwen3,
}
