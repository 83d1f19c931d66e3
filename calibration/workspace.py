"""Work in progress: a folder beside the output in which finished steps are kept, so that a killed run goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from prunevid.errors import PruneVidError
from prunevid.locks import only_one

_JOURNAL = "journal.jsonl"
_LOCK = "lock"


class Workspace:
    """Results of finished steps by name, kept in a folder.

    The journal's first line says what work this is; results of other work are thrown away. A line is written when its
    step is done: one that was cut off by a crash is not there.
    """

    def __init__(self, output: Path, work: str) -> None:
        """`output`: what will be made, the folder lies beside it; `work`: a digest of all that results depend on.

        Raises PruneVidError where the folder cannot be written.
        """
        self.folder = _folder_of(output)
        self._journal = self.folder / _JOURNAL
        self._results: dict[str, Any] = {}
        try:
            self.resumed = self._resume(work)
            if not self.resumed:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._empty()
                self._append({"work": work})
        except OSError as error:
            raise PruneVidError(f"cannot write to {self.folder}: {error.strerror}") from error

    def __contains__(self, step: str) -> bool:
        return step in self._results

    def __getitem__(self, step: str) -> Any:
        return self._results[step]

    def record(self, step: str, result: Any) -> None:
        """Note that a step is done, with its result (of JSON's types)."""
        self._append({"step": step, "result": result})
        self._results[step] = result

    def remove(self) -> None:
        """Throw everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()

    def _append(self, entry: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _resume(self, work: str) -> bool:
        """Read the journal, and cut off a line that was not finished; False where there is none of this work."""
        if not self._journal.is_file():
            return False
        whole = 0
        first = True
        with self._journal.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if not isinstance(entry, dict) or (first and entry.get("work") != work):
                    break
                if not first:
                    self._results[str(entry["step"])] = entry["result"]
                first = False
                whole += len(line)
        if first:
            return False
        os.truncate(self._journal, whole)
        return True


@contextmanager
def only_here(output: Path) -> Iterator[None]:
    """While the block runs, no other process works in the workspace of `output`.

    Raises PruneVidError where one does, naming it, and where the workspace cannot be written.
    """
    folder = _folder_of(output)
    try:
        with only_one(folder / _LOCK, f"calibrating {output}"):
            yield
    except OSError as error:
        raise PruneVidError(f"cannot write to {error.filename or folder}: {error.strerror or error}") from error
    finally:
        # Empty where it ended before there was anything to keep.
        with suppress(OSError):
            folder.rmdir()


def _folder_of(output: Path) -> Path:
    return output.parent / f".{output.name}.calibration"


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a file that is there only when it is whole."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
