"""A merge method that only tests have: every frame becomes the mean of its tokens, in a group of its own."""

from __future__ import annotations

import numpy as np

from prunevid.config import PruneConfig
from prunevid.methods.arrays import Floats
from prunevid.methods.merging import MergedTokens


def merge(video: Floats, config: PruneConfig) -> MergedTokens:
    frames, tokens, _ = video.shape
    index = np.arange(frames)
    return MergedTokens(video.mean(1), index, np.repeat(index[:, None], tokens, 1), index)
