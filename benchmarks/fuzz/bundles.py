"""Damaged bundles whose checksums are right, so that whatever is behind the checksums is tried."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.bases import Bases
from benchmarks.fuzz.hostile import TEMPLATES, hostile_graph, tokenizer_hostile
from benchmarks.fuzz.job import Job
from benchmarks.fuzz.json_text import damage_json
from benchmarks.fuzz.protobuf import damage_model
from benchmarks.fuzz.raw import damage_bytes
from benchmarks.fuzz.safetensors_file import sha256

__all__ = ["control", "controls", "make"]

MANIFEST = "manifest.json"
_GRAPHS = ("vision_merge", "llm_pre", "select", "llm_post", "merge")
# Half of the damage goes to what the manifest says, since everything else follows from it.
_COMMANDS = ("run",) * 15 + ("profile", "show", "fit", "fit local", "calibrate", "build")


def controls(bases: Bases) -> list[str]:
    """Whole bundles, which must answer."""
    return list(bases.bundles)


def control(name: str, bases: Bases, folder: Path) -> Job:
    """The whole bundle `name`, asked a question."""
    shutil.copytree(bases.bundles[name], folder / "bundle")
    return _job("run", bases, folder, "control", name)


def make(rng: Random, bases: Bases, folder: Path) -> Job:
    """A damaged bundle in `folder`."""
    name = rng.choice(list(bases.bundles))
    bundle = folder / "bundle"
    shutil.copytree(bases.bundles[name], bundle)
    damages: list[Callable[[Random, Path], str]] = [
        *[_manifest] * 8,
        *[_graph_fields] * 5,
        *[_graph_hostile] * 3,
        *[_tokenizer] * 3,
        *[tokenizer_hostile] * 2,
        _template,
        *[_template_hostile] * 3,
        _graph_bytes,
        _weights,
        _embeddings,
        *[_files] * 2,
        _records,
    ]
    damage = rng.choice(damages)
    detail = damage(rng, bundle)
    if damage not in (_records, _manifest):
        record(bundle)
    command = rng.choice(_COMMANDS)
    return _job(command, bases, folder, damage.__name__.lstrip("_").replace("_", ", "), f"{name}: {detail}")


def _job(command: str, bases: Bases, folder: Path, mutation: str, detail: str) -> Job:
    video = ("--video", str(bases.clips["mp4"]))
    question = ("--question", bases.question)
    few = ("--max-new-tokens", "2", "--threads", "1")
    commands: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "run": (("run", "bundle", *video, *question, "--json", "--frames", "4", *few), ()),
        "profile": (
            ("profile", "bundle", *video, *question, "--runs", "1", "--warmup", "0", "--frames", "4", *few),
            (),
        ),
        "show": (
            ("show", "bundle", *video, *question, "--output", "out.png", "--frames", "4", "--threads", "1"),
            ("out.png",),
        ),
        "fit": (("fit", "bundle", "--device", "orin-nano-8gb"), ()),
        "fit local": (("fit", "bundle", "--device", "local", "--frames", "2"), ()),
        "calibrate": (
            (
                "calibrate",
                "bundle",
                "--output",
                "out",
                "--recipe",
                "cpu-int8",
                "--questions",
                str(bases.questions),
                *few,
            ),
            ("out",),
        ),
        "build": (("build", "bundle"), ()),
    }
    arguments, outputs = commands[command]
    shown = f"{detail}; {command}" if mutation != "control" else detail
    return Job(arguments, mutation, shown, outputs, kept=(".out.calibration",))


def record(bundle: Path) -> None:
    """Write the size and SHA-256 of every file that the manifest names as they are now, where that is still JSON."""
    path = bundle / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        files = manifest["files"]
        known = {name: entry for name, entry in files.items() if isinstance(entry, dict) and (bundle / name).is_file()}
        written = {name: _record_of(bundle / name) for name in known}
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError):
        return  # the manifest itself was damaged beyond that
    if any(
        {"size": entry.get("size"), "sha256": entry.get("sha256")} != written[name] for name, entry in known.items()
    ):
        for name, entry in written.items():
            files[name].update(entry)
        path.write_text(json.dumps(manifest))


def _record_of(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def _manifest(rng: Random, bundle: Path) -> str:
    path = bundle / MANIFEST
    data, done = damage_json(rng, path.read_text())
    path.write_bytes(data)
    return done


def _records(rng: Random, bundle: Path) -> str:
    """A file that was altered, and one record that does not know of it."""
    path = rng.choice([path for path in sorted(bundle.iterdir()) if path.name != MANIFEST])
    data, done = damage_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _graph(rng: Random, bundle: Path) -> Path:
    return rng.choice([path for name in _GRAPHS if (path := bundle / f"{name}.onnx").exists()])


def _graph_fields(rng: Random, bundle: Path) -> str:
    path = _graph(rng, bundle)
    data, done = damage_model(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _graph_hostile(rng: Random, bundle: Path) -> str:
    path = _graph(rng, bundle)
    data, done = hostile_graph(rng, path.read_bytes(), bundle)
    path.write_bytes(data)
    made = {entry.name for entry in bundle.iterdir() if entry.name.startswith("fuzz-")}
    for name in made if rng.random() < 0.5 else ():
        _name_in_manifest(bundle, name)
    return f"{path.name}: {done}"


def _name_in_manifest(bundle: Path, name: str) -> None:
    """List a thing that is no plain file as if it were one."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"][name] = {"size": 600, "sha256": hashlib.sha256(b"secret" * 100).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def _graph_bytes(rng: Random, bundle: Path) -> str:
    path = _graph(rng, bundle)
    data, done = damage_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _weights(rng: Random, bundle: Path) -> str:
    """External weights that are shorter, longer or other numbers than the graph thinks."""
    path = rng.choice(sorted(bundle.glob("*.onnx.data")))
    return _numbers(rng, path)


def _embeddings(rng: Random, bundle: Path) -> str:
    return _numbers(rng, bundle / "embeddings.bin")


def _numbers(rng: Random, path: Path) -> str:
    how = rng.choice(["damage", "damage", "NaN", "zeros", "empty", "half", "one byte less", "twice"])
    data = path.read_bytes()
    made = {
        "NaN": b"\xff" * len(data),
        "zeros": bytes(len(data)),
        "empty": b"",
        "half": data[: len(data) // 2],
        "one byte less": data[:-1],
        "twice": data * 2,
    }
    path.write_bytes(made[how] if how in made else damage_bytes(rng, data)[0])
    return f"{path.name}: {how}"


def _tokenizer(rng: Random, bundle: Path) -> str:
    path = bundle / "tokenizer.json"
    data, done = damage_json(rng, path.read_text())
    path.write_bytes(data)
    return done


def _template(rng: Random, bundle: Path) -> str:
    """The template with a piece of it taken away, doubled, swapped or damaged."""
    path = bundle / "chat_template.jinja"
    text = path.read_text()
    start = rng.randrange(len(text))
    end = min(len(text), start + (1 << rng.randrange(0, 7)))
    how = rng.choice(["without", "doubled", "moved", "braces", "bytes", "names"])
    if how == "bytes":
        path.write_bytes(damage_bytes(rng, text.encode())[0])
        return how
    made = {
        "without": text[:start] + text[end:],
        "doubled": text[:end] + text[start:],
        "moved": text[end:] + text[:end],
        "braces": text.replace(
            rng.choice(["{{", "}}", "{%", "%}", "'", "if", "for"]), rng.choice(["{", "%}", "", "in"]), 1
        ),
        "names": text.replace(
            rng.choice(["message", "content", "role", "text", "video"]), rng.choice(["x", "messages"])
        ),
    }
    path.write_text(made[how])
    return f"{how} {text[start:end]!r}"


def _template_hostile(rng: Random, bundle: Path) -> str:
    path = bundle / "chat_template.jinja"
    name = rng.choice(list(TEMPLATES))
    path.write_text(TEMPLATES[name].replace("@", path.read_text()))
    return name


def _link_outside(bundle: Path, path: Path) -> None:
    (bundle.parent / "secret").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to("../secret")


def _link_inside(bundle: Path, path: Path) -> None:
    path.rename(bundle / "other")
    path.symlink_to("other")


def _circle(bundle: Path, path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(bundle: Path, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(bundle: Path, path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _as_folder(bundle: Path, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _empty(bundle: Path, path: Path) -> None:
    path.write_bytes(b"")


def _noise(bundle: Path, path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 16)


def _beside(bundle: Path, path: Path) -> None:
    (bundle / "unlisted").write_bytes(path.read_bytes())


def _bundle_link(bundle: Path, path: Path) -> None:
    bundle.rename(bundle.with_name("real"))
    bundle.symlink_to("real")


def _other_file(bundle: Path, path: Path) -> None:
    other = min(entry for entry in bundle.iterdir() if entry.is_file() and entry.name not in (path.name, MANIFEST))
    path.write_bytes(other.read_bytes())


_FILE_DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "missing": lambda bundle, path: path.unlink(),
    "empty": _empty,
    "noise": _noise,
    "link outside": _link_outside,
    "link inside": _link_inside,
    "link to itself": _circle,
    "pipe": _pipe,
    "endless device": _device,
    "folder": _as_folder,
    "unlisted file beside": _beside,
    "bundle is a link": _bundle_link,
    "another file's content": _other_file,
}


def _files(rng: Random, bundle: Path) -> str:
    """A file that is missing, or no file."""
    path = rng.choice(sorted(bundle.iterdir()))
    how = rng.choice(list(_FILE_DAMAGES))
    if path.name == MANIFEST and how == "another file's content":
        how = "empty"
    _FILE_DAMAGES[how](bundle, path)
    return f"{path.name}: {how}"
