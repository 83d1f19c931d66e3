"""Merging the visual tokens of a video, in NumPy: the oracle that graphs are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunevid.config import PruneConfig
from prunevid.methods.arrays import Integers, real
from prunevid.methods.catalog import reference_of

__all__ = ["MergedTokens", "merge_tokens"]


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """What is left of a video after merging.

    Attributes:
        tokens: [V, C], float32 for float16 and float32 features, else float64; in the order of the sequence.
        group: int64 [V], non-decreasing; the group of each token. Groups are numbered in the order of the
            sequence, and an empty group keeps its number.
        patch_to_token: int64 [T, N]; the token that each patch of the video went into.
        segments: int64 [T], non-decreasing from 0; the segment of each frame.
    """

    tokens: npt.NDArray[np.floating[Any]]
    group: Integers
    patch_to_token: Integers
    segments: Integers


def merge_tokens(features: npt.ArrayLike, config: PruneConfig) -> MergedTokens:
    """Merge the visual tokens of a video by the method that the settings name.

    Args:
        features: [T, N, C] real; T frames of N tokens of C channels. Computed in float64 whatever the type.
        config: the settings.

    Returns:
        The merged tokens, where they came from, and the segments.

    Raises:
        InvalidValueError: when features are not [T, N, C] without empty sides, not real or not finite.
    """
    given = np.asarray(features)
    merged = reference_of(config.method).merge(real("features", given, rank=3), config)
    return MergedTokens(
        merged.tokens.astype(_output_type(given.dtype)), merged.group, merged.patch_to_token, merged.segments
    )


def _output_type(given: np.dtype[Any]) -> type[np.floating[Any]]:
    """Answer in float32 what came in half or single precision; float64 keeps its precision."""
    return np.float32 if given in (np.dtype(np.float16), np.dtype(np.float32)) else np.float64
