"""Command lines: what people type and scripts make, over every option that a command declares."""

from __future__ import annotations

import argparse
import os
import shutil
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random

from benchmarks.fuzz.bases import Bases
from benchmarks.fuzz.job import Job
from prunevid.cli import COMMANDS

__all__ = ["control", "controls", "make"]

# What works: B the bundle, V the video, Q a question, F the file of questions, K the checkpoint.
_WHOLE = {
    "run": "run B --video V --question Q --frames 4 --max-new-tokens 2 --threads 1 --json",
    "run, as text": "run B --video V --question Q --frames 4 --max-new-tokens 2 --threads 1 --temperature 1 --seed 3",
    "profile": "profile B --video V --question Q --runs 1 --warmup 0 --frames 2 --max-new-tokens 2 --json out.json",
    "profile, swept": "profile B --video V --runs 1 --warmup 0 --frames 2 --max-new-tokens 2 --sweep keep_ratio=0.2,1 "
    "--question Q --html out.html --csv out.csv",
    "show": "show B --video V --question Q --frames 4 --output out.png",
    "show, page": "show B --video V --question Q --frames 4 --output out.html",
    "fit": "fit B --device orin-nano-8gb --frames 4,8 --json -",
    "fit, known": "fit --model llava-ov-0.5b --device orin-nano-8gb --json out.json",
    "calibrate": "calibrate B --output out --recipe cpu-int8 --questions F --max-new-tokens 1 --threads 1 --force",
    "tune": "calibrate B --output out --tune-pruning --questions F --max-tokens 0.9 --max-new-tokens 1 --threads 1 "
    "--search keep_ratio=0.4 --force",
    "build": "build B --device local",
    "export": "export --model llava-ov --checkpoint K --output out --frames 4",
    "export, portable": "export --model llava-ov --checkpoint K --output out --dialect portable --precision fp16",
}
# These work for seconds: fewer of them.
_SLOW = frozenset({"calibrate", "tune", "export", "export, portable"})
_REFUSED = frozenset({"build"})  # without TensorRT
_OUTPUTS = frozenset({"output", "json", "csv", "html", "png", "timing_cache"})
_NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "65",
        "0.5",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "1e-320",
        "9" * 30,
        "9" * 5000,
        str(2**31),
        str(2**63),
    ),
    *("", " ", "1_0", "\u0661", "0x10", "1,2", ",", "1.5", "one", "1e3", "+1", "--", "None", "True"),
)
_TEXTS = (
    *(
        "",
        " ",
        "?",
        "which",
        "a" * 5_000,
        "which " * 3_000,
        "<video>",
        "<|im_end|>",
        "\u00fc\u6f22\U0001f600",
        "a\nb",
        "-",
        "--",
    ),
    *("which colour is the disc?", "\udcff", "{{ 1 }}", "%s", "[bold]", "\u202e", "@file", "=", "-x", "--no-prune"),
)
_INPUTS = (
    *("", " ", ".", "..", "nowhere", "nowhere/at/all", "a" * 300, "a/" * 2_500, "~nobody/x", "~", "-", "\udcff.mp4"),
    *("null", "zero", "/dev/full", "/proc/self/mem", "/proc/self/environ", "/proc", "pipe", "rtsp://127.0.0.1/x"),
    *(
        "http://127.0.0.1:9/x.mp4",
        "file:///etc/passwd",
        "concat:V|V",
        "con",
        "text.txt",
        "empty",
        "V",
        "B",
        "circle",
        "a\nb",
    ),
)
# Nothing that could do harm where it is obeyed.
_TARGETS = (
    *("", " ", ".", "nowhere/at/all", "a" * 300, "a/" * 2_500, "~nobody/x", "/proc/self/x", "/proc/x", "B", "text.txt"),
    *(
        "full",
        "link",
        "circle",
        "out\nname",
        "out\udcff",
        "out.PNG",
        "out.jpg",
        "out",
        "out.",
        "-",
        "V",
        "text.txt/x",
        "pipe",
    ),
)


def controls(bases: Bases) -> list[str]:
    """Whole command lines, which must be answered."""
    return [name for name in _WHOLE if name not in _REFUSED]


def control(name: str, bases: Bases, folder: Path) -> Job:
    """The whole command line `name`."""
    _furnish(bases, folder)
    return _job(_filled(_WHOLE[name].split(" "), bases), "control", name, controls=True)


def make(rng: Random, bases: Bases, folder: Path) -> Job:
    """A command line with one to three mistakes, or on streams that cannot take what is printed."""
    _furnish(bases, folder)
    name = rng.choice([name for name in _WHOLE if name not in _SLOW or rng.random() < 0.15])
    words = _filled(_WHOLE[name].split(" "), bases)
    chance = rng.random()
    if chance < 0.1:
        return _streams(rng, words, name)
    if chance < 0.13:
        words = rng.choice(
            [[], ["-h"], ["--version"], ["--help", *words], [*words, "-h"], words[:1], ["nothing"], [""], ["--"]]
        )
        return _job(words, "no command, or help", name)
    done = [_mistake(rng, words, bases) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return _job(words, f"{words[0]}: {done[0].partition(' ')[0]}", "; ".join(done), fresh=rng.random() < 0.05)


def _furnish(bases: Bases, folder: Path) -> None:
    """What a command line may name: B, V, and things that are neither."""
    shutil.copytree(bases.bundles["ort"], folder / "B")
    shutil.copyfile(bases.clips["mp4"], folder / "V")
    (folder / "text.txt").write_text("This is no video.\n")
    (folder / "empty").touch()
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("in the way")
    (folder / "circle").symlink_to("circle")
    (folder / "link").symlink_to("full")
    (folder / "null").symlink_to("/dev/null")
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")


def _filled(words: list[str], bases: Bases) -> list[str]:
    places = {"Q": bases.question, "F": str(bases.questions), "K": str(bases.checkpoints["demo"])}
    return [places.get(word, word) for word in words]


def _job(words: list[str], mutation: str, detail: str, *, controls: bool = False, fresh: bool = False) -> Job:
    outputs = [word for word in words if word.startswith("out")]
    for option, value in zip(words, words[1:], strict=False):
        if option.lstrip("-").replace("-", "_") in _OUTPUTS:
            outputs.append(value)
    outputs += [word.partition("=")[2] for word in words if word.startswith("--") and "=" in word]
    tops = {Path(name).parts[0] for name in outputs if name and Path(name).parts}
    shown = f"{detail}: {' '.join(word[:60] for word in words)!r}" if not controls else detail
    heavy = bool(words) and words[0] == "export"
    kept = tuple(f".{Path(name).name}.calibration" for name in tops) if "calibrate" in words[:1] else ()
    return Job(tuple(words), mutation, shown, tuple(sorted(tops)), kept, heavy=heavy, fresh=fresh)


def _streams(rng: Random, words: list[str], name: str) -> Job:
    """Standard output that is full, closed or of another encoding, or an interrupt in the middle."""
    how = rng.choice(["full", "closed", "ascii", "cp1252", "interrupt"])
    # What comes before a fresh interpreter has read the first line of the product is nobody's to handle.
    job = _job(words, f"streams: {how}", name, fresh=how != "interrupt" and rng.random() < 0.5)
    change: dict[str, object] = {"stdout": how} if how in ("full", "closed") else {"encoding": how}
    if how == "interrupt":
        change = {"interrupt_s": 0.3 * rng.random()}
    return Job(**{**job.__dict__, **change})


def _mistake(rng: Random, words: list[str], bases: Bases) -> str:
    """Change the words in one place; returns what was done."""
    how = rng.choice(
        ["value", "value", "value", "option", "option", "drop", "repeat", "abbreviate", "join", "stray", "swap"]
    )
    if how == "value" and len(words) > 1:
        at = rng.randrange(1, len(words))
        option = words[at - 1].lstrip("-").replace("-", "_") if words[at - 1].startswith("--") else ""
        if not words[at].startswith("--"):
            words[at] = _value(rng, option, _action(words[0], option))
        return f"value of {option or 'an argument'}"
    if how == "option":
        option = rng.choice(_options(words[0]) or ["--nothing"])
        action = _action(words[0], option.lstrip("-").replace("-", "_"))
        takes_none = action is not None and action.nargs == 0
        words[len(words) :] = (
            [option] if takes_none else [option, _value(rng, option.strip("-").replace("-", "_"), action)]
        )
        return f"option {option}"
    at = rng.randrange(1, len(words)) if len(words) > 1 and rng.random() < 0.9 else 0
    if how == "drop" and len(words) > 1:
        del words[at]
    elif how == "repeat":
        words.insert(rng.randrange(1, len(words) + 1), words[at])
    elif how == "abbreviate":
        long = [index for index, word in enumerate(words) if word.startswith("--") and len(word) > 4]
        if long:
            at = rng.choice(long)
            words[at] = words[at][: rng.randrange(3, len(words[at]))]
    elif how == "join" and at + 1 < len(words) and words[at].startswith("--"):
        words[at : at + 2] = [f"{words[at]}={words[at + 1]}"]
    elif how == "swap":
        other = rng.randrange(len(words))
        words[at], words[other] = words[other], words[at]
    else:
        words.insert(rng.randrange(1, len(words) + 1), rng.choice([*_TEXTS, *_INPUTS, "--unknown", "-v", "--Video"]))
    return f"{how} {at}"


def _value(rng: Random, option: str, action: argparse.Action | None) -> str:
    if option in _OUTPUTS:
        return rng.choice(_TARGETS)
    if action is not None and action.choices and rng.random() < 0.6:
        return str(rng.choice(list(action.choices)))
    if action is not None and (action.type in (int, float) or action.metavar in ("N", "X", "N,N,...", "N[,N...]")):
        return rng.choice(_NUMBERS)
    if action is not None and action.metavar == "TEXT":
        return rng.choice(_TEXTS)
    if action is not None and str(action.metavar).startswith("SETTING"):
        return rng.choice(
            ["keep_ratio=0.5", "keep_ratio=", "=", "nothing=1", "keep_ratio=nan,2", "frames=1", "keep-ratio=1,1"]
        )
    return rng.choice([rng.choice(_INPUTS), rng.choice(_INPUTS), rng.choice(_NUMBERS), rng.choice(_TEXTS)])


@cache
def _declared(command: str) -> tuple[argparse.Action, ...]:
    if command not in COMMANDS:
        return ()
    parser = argparse.ArgumentParser()
    import_module(COMMANDS[command][0]).add_arguments(parser)
    return tuple(parser._actions)


def _options(command: str) -> list[str]:
    return [option for action in _declared(command) for option in action.option_strings]


def _action(command: str, name: str) -> argparse.Action | None:
    return next(
        (action for action in _declared(command) if f"--{name.replace('_', '-')}" in action.option_strings), None
    )
