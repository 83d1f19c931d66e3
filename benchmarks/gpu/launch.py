"""The kernels on torch tensors: for GPU tests and benchmarks. The runtime needs none of this."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton

from prunevid.errors import InvalidValueError
from prunevid.export.engine.kernels import MAX_FRAMES, MAX_TOKENS
from prunevid.export.engine.kernels import dpc_knn as clustering
from prunevid.export.engine.kernels import group_topk as selection
from prunevid.export.engine.kernels import refine_segments as segments

if TYPE_CHECKING:
    from torch import Tensor


def dpc_knn(squared_distances: Tensor, valid: Tensor, clusters: Tensor, neighbours: int = 7) -> Tensor:
    """Cluster padded groups, each on its own.

    squared_distances [G, N, N] float16, bfloat16 or float32 with N up to 1024 (divided by the channel count, zero
    diagonal); valid bool [G, N]; clusters int64 [G], at least 1 where a group has tokens. Returns cluster int64
    [G, N], -1 where invalid; clusters are numbered by decreasing density times delta. Raises InvalidValueError for
    other shapes. Source: PruneVid (arXiv 2412.16117), section 3.2.
    """
    import torch

    groups, tokens = valid.shape
    if squared_distances.shape != (groups, tokens, tokens) or clusters.shape != (groups,):
        raise InvalidValueError(
            f"squared_distances {tuple(squared_distances.shape)}, valid {tuple(valid.shape)} and clusters "
            f"{tuple(clusters.shape)} must be [G, N, N], [G, N] and [G]."
        )
    if tokens > MAX_TOKENS:
        raise InvalidValueError(f"a group can have up to {MAX_TOKENS} tokens, not {tokens}.")
    cluster = torch.empty((groups, tokens), dtype=torch.int64, device=valid.device)
    if cluster.numel():
        clustering.dpc_knn_kernel[(groups,)](
            squared_distances.contiguous(),
            valid.contiguous(),
            clusters.contiguous(),
            tokens,
            cluster,
            NEIGHBOURS=neighbours,
            **clustering.block_sizes(tokens),
            num_warps=clustering.warps(tokens),
            enable_fp_fusion=False,
        )
    return cluster


def refine_segments(labels: Tensor) -> Tensor:
    """Make contiguous segments of the clusters that the frames fell into.

    labels int64 [T], T up to 256. Returns segment int64 [T], non-decreasing from 0. Raises InvalidValueError for
    other shapes. Source: PruneVid (arXiv 2412.16117), section 3.2.
    """
    import torch

    if labels.ndim != 1 or not 1 <= len(labels) <= MAX_FRAMES:
        raise InvalidValueError(f"labels must be [T] with T from 1 to {MAX_FRAMES}: {tuple(labels.shape)}.")
    segment = torch.empty_like(labels, dtype=torch.int64)
    segments.refine_segments_kernel[(1,)](
        labels.contiguous(),
        len(labels),
        segment,
        BLOCK=MAX_FRAMES,
        num_warps=segments.WARPS,
        enable_fp_fusion=False,
    )
    return segment


def mark_topk(scores: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """Mark the tokens of the highest score in each group.

    scores [V] float16, bfloat16 or float32; group int64 [V] below G; quota int64 [G]. Returns bool [V]; of equal scores
    the lower index is kept. Raises InvalidValueError for other shapes. Source: PruneVid, section 3.3.
    """
    import torch

    if scores.ndim != 1 or scores.shape != group.shape or quota.ndim != 1:
        raise InvalidValueError(
            f"scores {tuple(scores.shape)}, group {tuple(group.shape)} and quota {tuple(quota.shape)} must be "
            "[V], [V] and [G]."
        )
    keep = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    if keep.numel():
        selection.group_topk_kernel[(triton.cdiv(len(keep), selection.ROWS),)](
            scores.contiguous(),
            group.contiguous(),
            quota.contiguous(),
            len(keep),
            keep,
            BLOCK=selection.BLOCK,
            ROWS=selection.ROWS,
            num_warps=selection.WARPS,
            enable_fp_fusion=False,
        )
    return keep


def group_topk(scores: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """Keep the tokens of the highest score in each group: the indices of what `mark_topk` marks, int64 [R], ascending.

    Listing them waits for the GPU.
    """
    return mark_topk(scores, group, quota).nonzero().squeeze(1)
