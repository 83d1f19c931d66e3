"""The videos and questions a bundle is calibrated and judged on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunevid.bundle import Bundle
from prunevid.console.progress import Progress
from prunevid.errors import PruneVidError
from prunevid.runtime.video.pixel_values import resizer
from prunevid.runtime.video.sources import read_frames
from prunevid.text.chat import ChatPrompt

# Asked about every video of a folder that comes without questions.
GENERAL_QUESTIONS = (
    "What happens in this video?",
    "What objects can be seen?",
    "What changes between the beginning and the end?",
)
# Fewer cannot be split into videos to calibrate on and videos to judge by.
FEWEST_VIDEOS = 4
_MOST_TO_CALIBRATE = 32
_MOST_UNREADABLE = 0.1
_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg"})
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Question:
    """A question, its right answer where it is known, and the file and line where it stands."""

    text: str
    answer: str | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class AskedVideo:
    """A video, by its file or folder of images, and the questions about it."""

    path: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Split:
    """Videos to calibrate on and videos to judge by; none is in both."""

    calibration: tuple[AskedVideo, ...]
    held_out: tuple[AskedVideo, ...]


def read_questions(file: Path) -> list[AskedVideo]:
    """Read JSON lines `{"video": path, "question": text, "answer": text}`; the answer may be missing.

    Paths are relative to the file. Raises PruneVidError, naming the line, where one is no such object, and where the
    file cannot be read or has no line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PruneVidError(f"{file} cannot be read as a file of questions: {error}") from error
    by_video: dict[Path, list[Question]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            video, question = _parse(line, f"{file}, line {number}")
            by_video.setdefault(file.parent / video, []).append(question)
    if not by_video:
        raise PruneVidError(f'{file} has no questions: give lines such as {{"video": "a.mp4", "question": "..."}}')
    return [AskedVideo(path, tuple(questions)) for path, questions in by_video.items()]


def find_videos(folder: Path) -> list[AskedVideo]:
    """The video files in a folder, each with a few general questions. Raises PruneVidError where there are none."""
    if not folder.is_dir():
        raise PruneVidError(f"{folder} is not a folder of videos")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise PruneVidError(f"{folder} holds no video files ({', '.join(sorted(_SUFFIXES))})")
    questions = tuple(Question(text) for text in GENERAL_QUESTIONS)
    return [AskedVideo(path, questions) for path in files]


def leave_out_unreadable(
    videos: Sequence[AskedVideo], read: Callable[[Path], object], tell: Callable[[str], None]
) -> list[AskedVideo]:
    """The videos that `read` does not raise PruneVidError for; `tell` is given a line about each other one.

    Raises PruneVidError where more than a tenth cannot be read, or too few are left.
    """
    readable: list[AskedVideo] = []
    for video in videos:
        try:
            read(video.path)
        except PruneVidError as error:
            tell(f"skipped: {error}")
        else:
            readable.append(video)
    unreadable = len(videos) - len(readable)
    if unreadable > _MOST_UNREADABLE * len(videos):
        raise PruneVidError(
            f"{unreadable} of {len(videos)} videos cannot be read, more than {_MOST_UNREADABLE:.0%}: repair or "
            "remove them"
        )
    if len(readable) < FEWEST_VIDEOS:
        raise PruneVidError(
            f"{len(readable)} videos are too few to calibrate on some and judge by others: give {FEWEST_VIDEOS} or more"
        )
    return readable


def split(videos: Sequence[AskedVideo]) -> Split:
    """Half of the videos, 32 at most, to calibrate on; the others to judge by. The same videos split the same way."""
    shuffled = list(videos)
    random.Random(_SPLIT_SEED).shuffle(shuffled)
    count = min(len(shuffled) // 2, _MOST_TO_CALIBRATE)
    return Split(tuple(shuffled[:count]), tuple(shuffled[count:]))


def _parse(line: str, where: str) -> tuple[str, Question]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PruneVidError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(entry, dict):
        raise PruneVidError(f"{where}: not a JSON object")
    for name in ("video", "question"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise PruneVidError(f"{where}: {name!r} must be a text that is not empty")
    answer = entry.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise PruneVidError(f"{where}: 'answer' must be a text, or missing")
    return entry["video"], Question(entry["question"], answer, where)


def check_questions(bundle: Bundle, videos: Sequence[AskedVideo]) -> None:
    """Raise PruneVidError for a question that cannot be asked, before the long work begins."""
    prompt = ChatPrompt.of(bundle)
    for video in videos:
        for question in video.questions:
            try:
                prompt.encode(question.text)
            except PruneVidError as error:
                if not question.where:
                    raise
                raise PruneVidError(f"{question.where}: {error}") from error


def readable(bundle: Bundle, videos: Sequence[AskedVideo], progress: Progress) -> list[AskedVideo]:
    """The videos that can be read; the others are told of. Raises PruneVidError where they are too many."""
    progress.step("reading the videos", len(videos))

    shrink = resizer(bundle.manifest.preprocessing)

    def read(path: Path) -> None:
        progress.advance()
        read_frames(path, bundle.manifest.frames, shrink)

    return leave_out_unreadable(videos, read, progress.tell)
