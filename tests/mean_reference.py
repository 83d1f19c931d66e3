"""A merge method that only tests have: every frame becomes the mean of its tokens, in a group of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunevid.config import PruneConfig
from prunevid.methods.arrays import Floats
from prunevid.methods.merging import MergedTokens


def merge(video: Floats, config: PruneConfig) -> MergedTokens:
    frames, tokens, _ = video.shape
    index = np.arange(frames)
    return MergedTokens(video.mean(1), index, np.repeat(index[:, None], tokens, 1), index)


def merge_flops(channels: int, frames: int, group_sizes: Sequence[int], config: PruneConfig) -> int:
    return channels * sum(group_sizes)


def graph_flops(tokens: int, channels: int, frames: int) -> int:
    return frames * tokens * channels


def graph_bytes(tokens: int, channels: int, frames: int) -> int:
    return 4 * frames * tokens * channels


def usual_share(config: PruneConfig) -> float:
    return 0.1
