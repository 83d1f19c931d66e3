"""Cases run side by side: each lane has a server for cases without torch and, when it needs one, another with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.fuzz.job import Job, Outcome

T = TypeVar("T")
_SHOWN = 20_000


class Lane:
    """Runs one case after the other. Not to be shared by threads."""

    def __init__(self) -> None:
        self._servers: dict[str, subprocess.Popen[str]] = {}

    def run(self, job: Job, folder: Path) -> Outcome:
        """Run a job in its folder; what it prints goes to files beside that, which are removed."""
        before = _files(folder)
        reply = self._ask("heavy" if job.heavy and not job.fresh else "light", job.order(str(folder)))
        printed = []
        for suffix in (".out", ".err"):
            path = folder.with_name(folder.name + suffix)
            printed.append(path.read_bytes()[:_SHOWN].decode(job.encoding, "replace") if path.exists() else "")
            path.unlink(missing_ok=True)
        return Outcome(**reply, stdout=printed[0], stderr=printed[1], new_files=tuple(sorted(_files(folder) - before)))

    def close(self) -> None:
        """End the servers."""
        for server in self._servers.values():
            server.communicate()

    def _ask(self, kind: str, order: dict[str, Any]) -> dict[str, Any]:
        if kind not in self._servers:
            self._servers[kind] = _start(kind)
        server = self._servers[kind]
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(order), file=server.stdin, flush=True)
        reply = server.stdout.readline()
        if not reply:
            raise RuntimeError(f"the server of {kind} cases ended with status {server.wait()} at {order}")
        found: dict[str, Any] = json.loads(reply)
        return found


def _start(kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.fuzz.server", kind]
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "HF_HUB_OFFLINE": "1",  # nothing is ever downloaded
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "COLUMNS": "100",
        "HOME": tempfile.gettempdir(),
    }
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    )


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@contextmanager
def lanes(count: int) -> Iterator[list[Lane]]:
    """So many lanes, ended with the block."""
    made = [Lane() for _ in range(count)]
    try:
        yield made
    finally:
        for lane in made:
            lane.close()


def run_all(work: Iterable[T], lanes: list[Lane], do: Callable[[T, Lane, Path], None]) -> None:
    """Do all work, each piece in a new folder that is removed afterwards, on whichever lane is free."""
    left = deque(work)

    def serve(lane: Lane) -> None:
        while left:
            try:
                piece = left.popleft()
            except IndexError:  # another lane took the last
                return
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                case = Path(folder) / "case"
                case.mkdir()
                do(piece, lane, case)

    with ThreadPoolExecutor(len(lanes)) as threads:
        for done in [threads.submit(serve, lane) for lane in lanes]:
            done.result()
