"""Writes the sample clip of the repository, `clip.mp4`, with its questions in `clip.json`.

The clip is a video of a split of its own ("clip"). Of that split, the first video is taken on which the trained
model answers a question of at least three different kinds right: a demonstration, not a measurement.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from demo import evaluate, world
from demo.model import video_features

HERE = Path(__file__).resolve().parent
SCALE = 2  # rendered larger than the model sees it: the clip is for people too
KINDS = ("direction", "place", "shape", "colour", "mover", "count", "colour at", "shape at")


def write_clip(frames: np.ndarray, path: Path, rate: int = 4) -> None:
    """Writes uint8 frames [T, H, W, 3] as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, rate)
        stream.options = {"crf": "23", "preset": "slow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_clip(path: Path) -> torch.Tensor:
    """Reads a clip back at the model's size, uint8 [T, SIZE, SIZE, 3]."""
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(
        frames.float(), (world.SIZE, world.SIZE), mode="bicubic", antialias=True, align_corners=False
    )
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def main() -> None:
    """Looks for a clip and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE.parent / "export" / "models" / "demo")
    parser.add_argument("--tries", type=int, default=20)
    options = parser.parse_args()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    path = HERE / "clip.mp4"
    for index in range(options.tries):
        sample = world.make_video("clip", index)
        if len(sample.scene.things) < 6 or len(sample.scene.backdrops) > 1:
            continue
        frames, _ = world.render(sample.scene, SCALE)
        write_clip(frames, path)
        with torch.no_grad():
            feature = video_features(model, read_clip(path))
        sample.questions.sort(key=lambda q: KINDS.index(q.kind) if q.kind in KINDS else len(KINDS))
        results = evaluate.compare(model, [sample], [feature], ("all", "merged", "selected"))
        modes = [mode for mode in results if mode != "share"]
        good = [q for q in sample.questions if all(results[mode][q.kind][0] for mode in modes)]
        if len(good) >= 3:
            chosen = [{"question": q.text, "answer": q.answer, "kind": q.kind} for q in good[:3]]
            record = {"split": "clip", "index": index, "frames": len(frames), "questions": chosen}
            (HERE / "clip.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(record, indent=2), path.stat().st_size, "bytes")
            return
    raise SystemExit("no clip on which the model answers three kinds of question")


if __name__ == "__main__":
    main()
