"""Chat templates and tokenizers from strangers: they run in a process of their own, within bounds."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile import replace_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import Regex as Pattern

from prunevid.calibration.questions import AskedVideo
from prunevid.errors import PruneVidError
from prunevid.runtime import load
from prunevid.text.chat import ChatPrompt
from prunevid.text.limits import LIMITS
from prunevid.text.process import TextProcess

ROOT = Path(__file__).parents[1]
USER = "{{ messages[-1].content[1].text }}"
TEMPLATE = "<video>" + USER
EXCESS = "takes more than 256 MiB of memory|takes more than 2 s of computing"


def tokenizer_of(**parts: Any) -> Tokenizer:
    """A tokenizer of bytes, with parts of it replaced."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<video>", special=True, normalized=False)])
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer_of().save(str(path))
    return path


def children() -> set[int]:
    """Processes that this one has started and that have not been waited for."""
    return {int(pid) for task in os.listdir("/proc/self/task") for pid in _children_of(task)}


def _children_of(task: str) -> list[str]:
    try:
        return Path(f"/proc/self/task/{task}/children").read_text().split()
    except OSError:
        return []


def peak(pid: int) -> int:
    """The most memory that a process has held, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


# --- templates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ ('a' * 10**5) * 10**5 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** 9) }}",
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x' | indent(10**10) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ ('a' * 10**6) | list | join('b' * 10**5) }}",
        "{{ ('a' * 10**5) | replace('a', 'b' * 10**5) }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ [0] * 10**9 }}",
        "{{ lipsum(n=99999) }}",
        "{% for a in range(99999) %}{{ 'a' * 10**4 }}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_is_refused(template: str, tokenizer_file: Path) -> None:
    with pytest.raises(PruneVidError, match=EXCESS):
        ChatPrompt(tokenizer_file, template + TEMPLATE)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ 'a' * 2000000 }}", "writes more than 1000000 characters"),
        ("{{ range(10**9) | list }}", "cannot be rendered"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "not valid"),
        ("{{ " + "-" * 100_000 + "1 }}", "not valid"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "not valid"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be rendered"),
        ("{{ 9999999999 ** 99999 }}", "template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "template"),
    ],
)
def test_a_template_that_asks_for_what_is_not_allowed_is_refused(
    template: str, match: str, tokenizer_file: Path
) -> None:
    with pytest.raises(PruneVidError, match=match) as error:
        ChatPrompt(tokenizer_file, template + TEMPLATE)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("what", ["{{ 'a' * 10**10 }}", "{% for a in range(99999) %}{{ 'a' * 10**4 }}{% endfor %}"])
def test_a_template_may_wait_for_a_question(what: str, tokenizer_file: Path) -> None:
    prompt = ChatPrompt(
        tokenizer_file, "{% if 'open' in messages[-1].content[1].text %}" + what + "{% endif %}" + TEMPLATE
    )
    expected = prompt.encode("short").suffix.tolist()
    for _ in range(2):
        with pytest.raises(PruneVidError, match=EXCESS):
            prompt.encode("open sesame")
        # It is replaced, and what it said before it says again.
        assert prompt.encode("short").suffix.tolist() == expected


# --- tokenizers ------------------------------------------------------------------------------------------------

DOUBLING = [normalizers.Replace("a", "aa")] * 40


def spoiled(**parts: Any) -> str:
    """A tokenizer.json with parts that the library itself would not write."""
    return json.dumps({**json.loads(tokenizer_of().to_str()), **parts})


HOSTILE: dict[str, Callable[[], str]] = {
    "doubles": lambda: tokenizer_of(normalizer=normalizers.Sequence(DOUBLING)).to_str(),
    "prepends": lambda: tokenizer_of(
        normalizer=normalizers.Sequence([normalizers.Prepend("a" * 2_000_000)] * 200)
    ).to_str(),
    "backtracks": lambda: tokenizer_of(
        normalizer=normalizers.Sequence(
            [normalizers.Replace("a", "a" * 5000), *[normalizers.Replace(Pattern("(a|a|b?a)*c"), "")] * 2000]
        )
    ).to_str(),
    "panics when read": lambda: spoiled(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "panics when asked": lambda: spoiled(normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAAECAwQ="}),
    "is nested": lambda: "[" * 200_000,
    "is no JSON": lambda: "\0" * 100,
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tokenizer_that_takes_too_much_or_fails_is_refused(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_text(HOSTILE[kind](), encoding="utf-8")
    with pytest.raises(PruneVidError, match="tokenizer") as error:
        ChatPrompt(tmp_path / "tokenizer.json", TEMPLATE).encode("a cat")
    assert str(error.value).isprintable()
    # Panics are written by the library itself.
    assert capfd.readouterr() == ("", "")


def test_a_post_processor_that_panics_is_refused(tmp_path: Path) -> None:
    pieces = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    broken = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(spoiled(post_processor=broken), encoding="utf-8")
    with pytest.raises(PruneVidError, match="cannot read this text"):
        ChatPrompt(tmp_path / "tokenizer.json", TEMPLATE, special_tokens={})


@pytest.mark.parametrize("kind", ["doubles", "long"])
def test_a_decoder_that_takes_too_much_is_refused(kind: str, tmp_path: Path) -> None:
    parts = [decoders.Replace("a", "aa")] * 40 if kind == "doubles" else [decoders.Replace("a", "b" * 2_000_000)]
    tokenizer_of(decoder=decoders.Sequence(parts)).save(str(tmp_path / "tokenizer.json"))
    prompt = ChatPrompt(tmp_path / "tokenizer.json", TEMPLATE)
    letter = prompt.tokenizer.token_to_id("a")
    assert letter is not None
    with pytest.raises(PruneVidError, match=f"{EXCESS}|writes more than 1000000 characters"):
        prompt.tokenizer.decode([letter])
    assert prompt.tokenizer.decode([prompt.tokenizer.token_to_id("c") or 0]) == "c"


def test_an_honest_tokenizer_of_many_tokens_is_read(tmp_path: Path) -> None:
    """As many as published ones have: bounds grow with the file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in alphabet for b in alphabet]
    vocabulary = {token: n for n, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    for pair, letter in zip(pairs, alphabet * 300, strict=False):
        vocabulary.setdefault("".join(pair) + letter, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<video>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(vocabulary) > 120_000
    encoded = ChatPrompt(tmp_path / "tokenizer.json", TEMPLATE).encode("what is this?")
    assert encoded.suffix.tolist() == tokenizer.encode("what is this?", add_special_tokens=False).ids


# --- the worker ------------------------------------------------------------------------------------------------


def test_the_worker_holds_no_more_than_it_may(tokenizer_file: Path) -> None:
    template = "{% for n in (100, 180, 230, 300, 400) %}{% set x = 'a' * (10**6 * n) %}{% endfor %}"
    process = TextProcess(tokenizer_file, template)
    before = children()
    process.get_added_tokens_decoder()
    held = {pid: peak(pid) for pid in children() if pid in before}
    with pytest.raises(PruneVidError, match="256 MiB"):
        process.render({})
    assert all(peak(pid) - held[pid] < 280 for pid in held if pid in children())


def test_the_worker_ends_with_what_asks_it(tokenizer_file: Path) -> None:
    before = children()
    prompt = ChatPrompt(tokenizer_file, TEMPLATE)
    assert len(children() - before) == 1
    del prompt
    assert children() == before


def test_a_worker_that_was_killed_is_replaced(tokenizer_file: Path) -> None:
    before = children()
    prompt = ChatPrompt(tokenizer_file, TEMPLATE)
    expected = prompt.encode("what?").suffix.tolist()
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(PruneVidError):
        prompt.encode("what?")
    assert prompt.encode("what?").suffix.tolist() == expected


def test_threads_share_a_worker(tokenizer_file: Path) -> None:
    prompt = ChatPrompt(tokenizer_file, TEMPLATE)
    questions = [f"what is number {number}?" for number in range(200)]
    expected = [prompt.encode(question).suffix.tolist() for question in questions]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: prompt.encode(question).suffix.tolist(), questions))
    assert found == expected


@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_have_workers_of_their_own(tokenizer_file: Path, method: str, daemon: bool) -> None:
    prompt = ChatPrompt(tokenizer_file, TEMPLATE)
    expected = prompt.encode("what?").suffix.tolist()
    context = multiprocessing.get_context(method)
    found = context.SimpleQueue()
    arguments = (prompt, found) if method == "fork" else (tokenizer_file, found)
    child = context.Process(target=_ask_elsewhere, args=arguments, daemon=daemon)  # type: ignore[attr-defined]
    child.start()
    assert found.get() == expected
    child.join()
    assert child.exitcode == 0
    assert prompt.encode("what?").suffix.tolist() == expected


def _ask_elsewhere(prompt: ChatPrompt | Path, found: Any) -> None:
    asked = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt(prompt, TEMPLATE)
    found.put(asked.encode("what?").suffix.tolist())


@pytest.mark.usefixtures("ordinary_signals")
def test_an_interrupt_leaves_nothing_that_answers_the_wrong_question(tokenizer_file: Path) -> None:
    program = f"""
import signal, sys, threading, os, time
from prunevid.text.chat import ChatPrompt
slow = "{{% if 'slow' in messages[-1].content[1].text %}}{{% for a in range(6000) %}}{{% for b in range(6000) %}}{{% endfor %}}{{% endfor %}}{{% endif %}}"
prompt = ChatPrompt(sys.argv[1], slow + {TEMPLATE!r})
expected = prompt.encode("quick").suffix.tolist()
threading.Timer(0.3, lambda: os.killpg(0, signal.SIGINT)).start()
try: prompt.encode("slow")
except KeyboardInterrupt: print("interrupted")
print(prompt.encode("quick").suffix.tolist() == expected)
"""  # noqa: E501
    command = [sys.executable, "-c", program, str(tokenizer_file)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, start_new_session=True
    )
    assert (result.stdout.split(), result.stderr) == (["interrupted", "True"], "")


def test_a_process_that_is_killed_leaves_no_worker_behind(tokenizer_file: Path) -> None:
    program = (
        "import sys, time; from prunevid.text.chat import ChatPrompt\n"
        f"prompt = ChatPrompt(sys.argv[1], {TEMPLATE!r}); print(prompt.tokenizer._worker._process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tokenizer_file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_no_python_to_start_is_one_sentence(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("", "/no/such/python"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(PruneVidError, match="cannot start a process for the chat template and tokenizer"):
            ChatPrompt(tokenizer_file, TEMPLATE)


def test_a_library_that_is_missing_is_one_sentence(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(PruneVidError, match="are jinja2 and tokenizers installed"):
        ChatPrompt(tokenizer_file, TEMPLATE)


def test_the_runtime_runs_neither_in_its_own_process() -> None:
    program = "import sys; import prunevid.runtime, prunevid.text.chat; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert not {"tokenizers", "jinja2"} & set(result.stdout.split())


def test_bundles_are_asked_within_bounds(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "ort"), tmp_path / "copy"))
    template = (folder / "chat_template.jinja").read_bytes()
    replace_file(folder, "chat_template.jinja", template + b"{{ 'a' * 10**10 }}")
    with pytest.raises(PruneVidError, match="256 MiB"):
        load(folder)
    assert LIMITS.own_memory == 256 << 20


ESCAPE = "\x1b]0;title\x07"


def test_answers_do_nothing_to_a_terminal(tmp_path: Path, demo_bundle: Path, videos: list[AskedVideo]) -> None:
    """A model that answers with control sequences: they go through a pipe as they are, and not to a terminal."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "copy"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["decoder"] = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": ESCAPE}
    replace_file(folder, "tokenizer.json", json.dumps(tokenizer).encode())
    command = [sys.executable, "-m", "prunevid.cli", "run", str(folder), "--video", str(videos[0].path)]
    command += ["--question", "what colour is the circle ?"]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=True)
    assert ESCAPE.encode() in piped.stdout
    master, terminal = os.openpty()
    with subprocess.Popen(command, cwd=ROOT, stdout=terminal, stderr=subprocess.DEVNULL):
        os.close(terminal)
        written = b""
        with contextlib.suppress(OSError):  # what reading says when all others have closed it
            while block := os.read(master, 4096):
                written += block
    os.close(master)
    assert b"\x1b" not in written
    assert b"\\x1b]0;title\\x07" in written
