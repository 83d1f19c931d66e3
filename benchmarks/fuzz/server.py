"""The process that runs cases: it imports the product once, and forks for each of them.

    python -m benchmarks.fuzz.server light|heavy

reads one order (see job.py) per line of standard input and answers each with a line. A fork begins in the same state
whatever ran before, and its memory is its own. It leaves behind its exit handlers, but not through the interpreter's
end, where libraries wait for threads that a fork has not: cases that are `fresh` do.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any

from prunevid.models import KNOWN

CPU_LIMIT_S = 90
WALL_LIMIT_S = 240
# Above what is allowed (verdict.py), so that the figure is known; below what would harm others on the machine.
MEMORY_LIMIT = 2 << 30
_ADDRESS_LIMIT = 12 << 30
_FILE_LIMIT = 1 << 30
_LOOK_EVERY_S = 0.05

_LIGHT = ("numpy", "onnxruntime", "av", "PIL.Image", "tokenizers", "jinja2.sandbox", "rich.console", "rich.table")
_FAMILIES = sorted({f"transformers.models.{model.family}" for model in KNOWN.values()})
_HEAVY = ("torch", *_FAMILIES, "onnx_ir", "onnxscript", "onnx")


def main() -> None:
    """Serve until standard input ends."""
    preload(heavy=sys.argv[1] == "heavy")
    # Replies go where no case can write to.
    replies = os.fdopen(os.dup(1), "w")
    os.set_inheritable(replies.fileno(), False)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            replies.close()
            os._exit(_end(_child(order)))
        print(json.dumps(_wait(child, order)), file=replies, flush=True)


def preload(heavy: bool) -> None:
    """Import what commands would import, since that takes longer than most of what they do."""
    from prunevid.cli import COMMANDS

    for name in (*_LIGHT, *(_HEAVY if heavy else ())):
        import_module(name)
    for module, _ in COMMANDS.values():
        if heavy or not module.startswith("prunevid.export"):
            import_module(module)
    import_module("prunevid.runtime.pipeline")
    if heavy:
        import_module("prunevid.export.exporter")


def _child(order: dict[str, Any]) -> int:
    """Become the case's process; returns its exit status unless it is replaced by a fresh interpreter."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 5))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_LIMIT, _ADDRESS_LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, _FILE_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _redirect(order)
    os.chdir(order["folder"])
    if order["fresh"]:
        environment = {**os.environ, "PYTHONIOENCODING": order["encoding"]}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        command = [sys.executable, "-m", "prunevid.cli", *order["arguments"]]
        os.execve(sys.executable, [os.fsencode(word) for word in command], environment)
    from prunevid.cli import main as prunevid

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return prunevid(order["arguments"])
    except SystemExit as error:  # argparse's
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and error.__traceback__ and error.__traceback__.tb_next is None:
            return 128 + signal.SIGINT  # it came before the product was called
        traceback.print_exc()
        return 1


def _end(status: int) -> int:
    """Exit handlers, and what is left to be written: where that fails, the interpreter ends with 120."""
    atexit._run_exitfuncs()
    try:
        if sys.stdout and not sys.stdout.closed:
            sys.stdout.flush()
    except (OSError, ValueError):
        traceback.print_exc()
        return 120
    if sys.stderr and not sys.stderr.closed:
        sys.stderr.flush()
    return status


def _redirect(order: dict[str, Any]) -> None:
    """Standard streams to files; `stdout` may be a full disk or nothing at all."""
    files = [os.open("/dev/null", os.O_RDONLY)]
    for name in ("out", "err"):
        full = name == "out" and order["stdout"] == "full"
        path = "/dev/full" if full else f"{order['folder']}.{name}"
        files.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    if order["stdout"] == "closed":
        os.close(1)
    # As the interpreter makes them at its start.
    sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb"), "utf-8")
    sys.stdout = _writer(1, order["encoding"], "strict")
    sys.stderr = _writer(2, order["encoding"], "backslashreplace")


def _writer(file: int, encoding: str, errors: str) -> Any:
    try:
        return io.TextIOWrapper(os.fdopen(file, "wb"), encoding, errors, line_buffering=file == 2)
    except OSError:  # closed
        return None


def _wait(child: int, order: dict[str, Any]) -> dict[str, Any]:
    """Wait for the case's end, or bring it about; what it started is ended, too."""
    begin = time.monotonic()
    killed = None
    interrupt = order["interrupt_s"]
    waiting = os.pidfd_open(child)
    try:
        while not select.select([waiting], [], [], _LOOK_EVERY_S if interrupt is None else 0.005)[0]:
            elapsed = time.monotonic() - begin
            if interrupt is not None and elapsed >= interrupt:
                os.kill(child, signal.SIGINT)
                interrupt = None
            if killed is None and elapsed > WALL_LIMIT_S:
                killed = "time"
            if killed is None and _resident(child) > MEMORY_LIMIT:
                killed = "memory"
            if killed:
                os.kill(child, signal.SIGKILL)
    finally:
        os.close(waiting)
    _, status, usage = os.wait4(child, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if ended_by == signal.SIGXCPU:
        killed = "time"
    return {
        "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": ended_by,
        "killed": killed,
        "seconds": time.monotonic() - begin,
        "peak": usage.ru_maxrss << 10,
    }


def _resident(process: int) -> int:
    with suppress(OSError, IndexError, ValueError), open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return 0


if __name__ == "__main__":
    main()
