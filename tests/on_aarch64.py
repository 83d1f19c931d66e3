"""Run by tests/test_aarch64.py under emulation: what an aarch64 machine makes of a bundle, as JSON.

Arguments: a bundle, and RGB frames that another machine decoded (.npy). It asks the demo's questions about the clip,
and merges both the frames that it decodes itself and those it was given.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from typing import Any

import av
import numpy as np
import onnxruntime as ort

from prunevid.runtime import load
from prunevid.runtime.demo.asking import CLIP, questions


def decoded() -> tuple[np.ndarray, list[str]]:
    """The clip's frames as RGB, uint8 [T, H, W, 3], and the checksum of each one's luma and chroma as decoded."""
    with av.open(str(CLIP)) as container:
        frames = list(container.decode(video=0))
    planes = [hashlib.sha256(frame.to_ndarray(format="yuv420p").tobytes()).hexdigest() for frame in frames]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), planes


def observed(bundle: str, given: np.ndarray) -> dict[str, Any]:
    """Answers and token counts about the clip, and about the given frames."""
    pipeline = load(bundle, threads=1)
    own, planes = decoded()
    clip, same = pipeline.open(CLIP), pipeline.open(given)
    asked = [entry["question"] for entry in questions()]
    return {
        "machine": platform.machine(),
        "onnxruntime": ort.__version__,
        "planes": planes,
        "largest_difference": int(np.abs(own.astype(int) - given.astype(int)).max()),
        "answers": [clip.ask(question).text for question in asked],
        "merged": clip.ask(asked[0]).token_counts.merged,
        "merged_of_given": same.ask(asked[0]).token_counts.merged,
        "groups_of_given": hashlib.sha256(same.video.patch_to_token.tobytes()).hexdigest(),
    }


if __name__ == "__main__":
    print(json.dumps(observed(sys.argv[1], np.load(sys.argv[2]))))
