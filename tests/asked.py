"""Videos of the demo's world with questions, for calibrating tiny models on."""

from __future__ import annotations

from pathlib import Path

from videos import write_video

from demo import world
from prunevid.calibration.questions import AskedVideo, Question


def asked_videos(folder: Path, count: int, answer: str | None = None) -> list[AskedVideo]:
    """So many videos in `folder`, with one question each that every tokenizer has; `answer`: what is right."""
    made = []
    for index in range(count):
        file = folder / f"{index}.mp4"
        write_video(file, world.make_video("validation", 10_000 + index).frames, fps=4)
        made.append(AskedVideo(file, (Question("what is this", answer),)))
    return made
