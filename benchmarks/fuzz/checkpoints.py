"""Malformed checkpoints, given to `prunevid export`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.bases import Bases
from benchmarks.fuzz.hostile import TEMPLATES, tokenizer_hostile
from benchmarks.fuzz.job import Job
from benchmarks.fuzz.json_text import damage_json, odd_value
from benchmarks.fuzz.raw import damage_bytes
from benchmarks.fuzz.safetensors_file import INDEX, read, write

__all__ = ["control", "controls", "make"]

_JSON = (
    *("config.json",) * 8,
    *("generation_config.json",) * 2,
    *("tokenizer_config.json",) * 2,
    *("tokenizer.json",) * 3,
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
)
_TEMPLATE = "chat_template.jinja"
_DTYPES = ("F64", "F32", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "F4", "X", "", "f16")


def controls(bases: Bases) -> list[str]:
    """Whole checkpoints, which must become bundles."""
    return list(bases.checkpoints)


def control(name: str, bases: Bases, folder: Path) -> Job:
    """The whole checkpoint `name`."""
    shutil.copytree(bases.checkpoints[name], folder / "checkpoint")
    return _job("control", name)


def make(rng: Random, bases: Bases, folder: Path) -> Job:
    """A malformed checkpoint in `folder`."""
    name = rng.choice(list(bases.checkpoints))
    checkpoint = folder / "checkpoint"
    shutil.copytree(bases.checkpoints[name], checkpoint)
    damages = [_json] * 9 + [_header] * 4 + [_template, tokenizer_hostile, _numbers, _weights_bytes, _files]
    if (checkpoint / INDEX).exists():
        damages += [_index] * 6
    damage = rng.choice(damages)
    detail = damage(rng, checkpoint)
    options = rng.choice([(), (), (), ("--precision", "fp16"), ("--dialect", "portable"), ("--frames", "3")])
    return _job(damage.__name__.lstrip("_").replace("_", ", "), f"{name}: {detail}", *options)


def _job(mutation: str, detail: str, *options: str) -> Job:
    arguments = ("export", "--model", "llava-ov", "--checkpoint", "checkpoint", "--output", "out", *options)
    return Job(arguments, mutation, detail, outputs=("out",), heavy=True)


def _weights(rng: Random, checkpoint: Path) -> Path:
    return rng.choice(sorted(checkpoint.glob("*.safetensors")))


def _json(rng: Random, checkpoint: Path) -> str:
    path = checkpoint / rng.choice([name for name in _JSON if (checkpoint / name).exists()])
    data, done = damage_json(rng, path.read_text())
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _index(rng: Random, checkpoint: Path) -> str:
    path = checkpoint / INDEX
    if rng.random() < 0.5:
        data, done = damage_json(rng, path.read_text())
        path.write_bytes(data)
        return done
    index = json.loads(path.read_text())
    name = rng.choice(list(index["weight_map"]))
    file = rng.choice(["../secret", "/etc/passwd", "nowhere", "", ".", "config.json", "/dev/zero", "pipe", "a\0b"])
    if file == "pipe":
        os.mkfifo(checkpoint / "pipe")
    index["weight_map"][name] = file
    path.write_text(json.dumps(index))
    return f"{name} is in {file!r}"


def _header(rng: Random, checkpoint: Path) -> str:
    """Another header of a safetensors file, over the same data."""
    path = _weights(rng, checkpoint)
    header, data = read(path)
    how = rng.choice([*_HEADER_DAMAGES, "JSON", "JSON", "length"])
    if how == "JSON":
        written, done = damage_json(rng, json.dumps(header))
    elif how == "length":
        written, done = json.dumps(header).encode(), "length"
        length = rng.choice([0, 1, len(written) - 1, len(written) + 1, 2**31, 2**40, 2**63, 2**64 - 1])
        path.write_bytes(length.to_bytes(8, "little") + written + data)
        return f"length of the header: {length}"
    else:
        name = rng.choice([name for name in header if name != "__metadata__"])
        _HEADER_DAMAGES[how](rng, header, name)
        written, done = json.dumps(header).encode(), f"{how} of {name}"
    write(path, written, data)
    return done


def _another_shape(rng: Random, header: dict[str, Any], name: str) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = rng.choice([shape[::-1], shape[:-1], [*shape, 1], [-1], [2**40, 2**40], [0], [1.5], "x"])


def _overlapping(rng: Random, header: dict[str, Any], name: str) -> None:
    same = [n for n in header if n != name and header[n].get("shape") == header[name]["shape"]] or [name]
    header[name]["data_offsets"] = header[rng.choice(same)]["data_offsets"]


def _moved(rng: Random, header: dict[str, Any], name: str) -> None:
    by = rng.choice([-(2**40), -4, -1, 1, 2, 4, 2**31, 2**62])
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


def _stranger(rng: Random, header: dict[str, Any], name: str) -> None:
    names = (f"{name}.lora_A.weight", f"{name}_scale", "", "x" * 10_000, "a\nb", "vision_tower.x", "lm_head.bias")
    header[rng.choice(names)] = dict(header[name])


_HEADER_DAMAGES: dict[str, Callable[[Random, dict[str, Any], str], None]] = {
    "absence": lambda rng, header, name: header.pop(name),
    "dtype": lambda rng, header, name: header[name].update(dtype=rng.choice(_DTYPES)),
    "shape": _another_shape,
    "overlap": _overlapping,
    "offsets": _moved,
    "stranger": _stranger,
    "value": lambda rng, header, name: header[name].update({rng.choice(list(header[name])): odd_value(rng)}),
    "name": lambda rng, header, name: header.update({name + "x": header.pop(name)}),
    "metadata": lambda rng, header, name: header.update(__metadata__=odd_value(rng)),
}


def _weights_bytes(rng: Random, checkpoint: Path) -> str:
    path = _weights(rng, checkpoint)
    data, done = damage_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _numbers(rng: Random, checkpoint: Path) -> str:
    """Weights that are no numbers, or none at all."""
    path = _weights(rng, checkpoint)
    header, data = read(path)
    how, filling = rng.choice([("NaN", b"\xff"), ("zeros", b"\0"), ("noise", None)])
    start = rng.randrange(len(data))
    length = min(len(data) - start, 1 << rng.randrange(4, 20))
    damaged = filling * length if filling is not None else rng.randbytes(length)
    write(path, json.dumps(header).encode(), data[:start] + damaged + data[start + length :])
    return f"{length} bytes of {how}"


def _template(rng: Random, checkpoint: Path) -> str:
    path = checkpoint / _TEMPLATE
    name = rng.choice(list(TEMPLATES))
    path.write_text(TEMPLATES[name].replace("@", path.read_text()))
    return name


def _files(rng: Random, checkpoint: Path) -> str:
    """A file that is missing, or no file; or one beside the others that says something else."""
    path = rng.choice(sorted(checkpoint.iterdir()))
    how = rng.choice(
        ["missing", "empty", "folder", "pipe", "link to itself", "endless device", "pickle beside", "both"]
    )
    if how == "pickle beside":
        (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
        return how
    if how == "both":
        (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {}}))
        return "an index beside the weights"
    path.unlink()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link to itself":
        path.symlink_to(path.name)
    elif how == "endless device":
        path.symlink_to("/dev/zero")
    return f"{path.name}: {how}"
