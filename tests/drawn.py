"""Videos and settings that Hypothesis draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from prunevid import PruneConfig

seeds = st.integers(0, 2**32 - 1)


@st.composite
def videos(draw: st.DrawFn) -> npt.NDArray[np.float64]:
    """Videos of a few scenes in which some positions hold still; half are of small integers, full of ties."""
    rng = np.random.default_rng(draw(seeds))
    frames, tokens, channels = draw(st.integers(1, 12)), draw(st.integers(1, 24)), draw(st.integers(1, 6))
    scene_of = np.sort(rng.integers(0, draw(st.integers(1, 3)), size=frames))
    video = rng.normal(size=(3, tokens, channels))[scene_of]
    moving = rng.random(tokens) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    video[:, moving] += rng.normal(size=(frames, int(moving.sum()), channels))
    video += draw(st.sampled_from([0.0, 0.05])) * rng.normal(size=video.shape)
    return np.round(2 * video) if draw(st.booleans()) else video


@st.composite
def configs(draw: st.DrawFn) -> PruneConfig:
    return PruneConfig(
        segment_ratio=draw(st.sampled_from([0.1, 0.25, 0.5, 1.0])),
        static_threshold=draw(st.sampled_from([-1.0, 0.5, 0.8, 0.95, 2.0])),
        cluster_ratio=draw(st.floats(0.05, 1.0)),
        keep_ratio=draw(st.floats(0.05, 1.0)),
        neighbours=draw(st.integers(1, 9)),
        min_cluster_tokens=draw(st.integers(0, 16)),
        selection=draw(st.sampled_from(["group", "global"])),
    )
