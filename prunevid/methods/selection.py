"""Selection, in NumPy: which merged tokens the language model keeps. It is the same behind every merge method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunevid.config import PruneConfig
from prunevid.errors import InvalidValueError
from prunevid.methods.arrays import Floats, Integers, integers, real

__all__ = ["group_topk", "select_tokens"]


def select_tokens(scores: npt.ArrayLike, group: npt.ArrayLike, config: PruneConfig) -> Integers:
    """Choose the merged tokens that the question attends to most (arXiv 2412.16117, section 3).

    With selection "group", every group of n tokens keeps its best int(n * keep_ratio); with "global", so many
    of all tokens are kept, wherever they are. Groups of few tokens may keep none.

    Args:
        scores: [V] real; a token's largest attention probability over heads and question tokens, at layer M.
        group: [V] integers of 0 or more; the group of each token, as `MergedTokens.group`.
        config: the settings.

    Returns:
        int64 [R]; indices of the kept tokens, ascending.

    Raises:
        InvalidValueError: when scores or groups are malformed, or scores are not finite.
    """
    values, groups = _scores_and_groups(scores, group)
    if config.selection == "global":
        groups = np.zeros_like(groups)
    sizes = np.bincount(groups)
    quota = config.keep_counts(len(values))[sizes]
    return group_topk(values, groups, quota)


def group_topk(scores: npt.ArrayLike, group: npt.ArrayLike, quota: npt.ArrayLike) -> Integers:
    """Keep the tokens of the highest score in each group.

    Args:
        scores: [V] real.
        group: [V] integers below G; tokens of one group need not be neighbours.
        quota: [G] integers of 0 or more; how many tokens to keep of each group. A group that has fewer keeps
            them all.

    Returns:
        int64 [R]; indices of the kept tokens, ascending. Of equal scores, the token of the lower index is
        kept.

    Raises:
        InvalidValueError: when an argument is malformed, scores are not finite, or a group has no quota.
    """
    values, groups = _scores_and_groups(scores, group)
    quotas = integers("quota", quota)
    if quotas.min() < 0:
        raise InvalidValueError("quota must not be negative.")
    if groups.max() >= len(quotas):
        raise InvalidValueError(f"group {groups.max()} has no quota: there are {len(quotas)}.")
    kept: list[int] = []
    for number, limit in enumerate(quotas):
        members = np.flatnonzero(groups == number)
        best_first = np.argsort(-values[members], kind="stable")
        kept.extend(members[best_first[:limit]].tolist())
    return np.array(sorted(kept), dtype=np.int64)


def _scores_and_groups(scores: npt.ArrayLike, group: npt.ArrayLike) -> tuple[Floats, Integers]:
    """Check scores [V] and their groups [V]."""
    values = real("scores", scores, rank=1)
    groups = integers("group", group)
    if len(values) != len(groups):
        raise InvalidValueError(f"scores ({len(values)}) and group ({len(groups)}) must be of one length.")
    if groups.min() < 0:
        raise InvalidValueError("group must not be negative.")
    return values, groups
