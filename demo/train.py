"""Trains the demo checkpoint from scratch: `python -m demo.train --output export/models/demo`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo import evaluate, world
from demo.alignment import align
from demo.language import Stage, load_data, read_data, save_data, train_language
from demo.model import build_model, save_checkpoint
from demo.tower import condition_projector, render_range, train_tower

TOKEN_SIZE = 0.3  # root mean square of a visual token: see `condition_projector`

WHOLE = world.FRAMES * world.GRID**2
STAGES: list[Stage] = [
    # Every other frame with most of its backdrop left out: short sequences to learn what the questions mean.
    {"steps": 1600, "batch": 16, "tokens": (96,), "stride": 2, "crowded": True},
    # All frames, a random 22 or 37 % of the tokens.
    {"steps": 1000, "batch": 16, "tokens": (224, 384), "stride": 1, "crowded": False},
    # And whole videos.
    {"steps": 500, "batch": 16, "tokens": (384, WHOLE), "stride": 1, "crowded": False},
]


def main() -> None:
    """Runs both stages, measures on validation videos and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--work", type=Path, help="keep the tower and its tokens here, and go on from them")
    parser.add_argument("--tower-videos", type=int, default=1500)
    parser.add_argument("--tower-steps", type=int, default=980)
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(10)
    started = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    model = build_model()
    work = options.work
    if work is not None and (work / "tower.safetensors").exists():
        model.load_state_dict(load_file(work / "tower.safetensors"), strict=False)
    else:
        train_tower(model, options.tower_videos, options.tower_steps, log)
        images = torch.cat([torch.from_numpy(s.frames[::4]) for s in render_range("train", range(300))])
        condition_projector(model, images, TOKEN_SIZE)
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            vision = {k: v for k, v in model.state_dict().items() if "vision_tower" in k or "projector" in k}
            save_file({k: v.contiguous() for k, v in vision.items()}, work / "tower.safetensors")
    if work is not None and (work / "counts.npy").exists():
        data = read_data(work)
    else:
        data = load_data(model, "train", options.videos, 3, log)
        if work is not None:
            save_data(data, work)
    align(model)
    samples, features = evaluate.validation(model, 40)

    def check(step: int) -> None:
        few = evaluate.compare(model, samples[:12], features[:12], ("all", "selected"))
        log(f"validation after {step} steps\n" + evaluate.table(few))
        save_checkpoint(model, options.output)

    train_language(model, data, STAGES, log, text_length=112, check=check)
    log("validation\n" + evaluate.table(evaluate.compare(model, samples, features)))
    save_checkpoint(model, options.output)


if __name__ == "__main__":
    main()
