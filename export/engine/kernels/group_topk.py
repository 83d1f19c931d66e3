"""Which tokens of every group have the largest scores: the part of `GroupTopK` that needs a kernel.

A token is kept if fewer than its group's quota are ahead of it, which every token can count for itself: any number of
tokens and groups, in any order. The kernel marks the kept tokens.
Source: PruneVid (arXiv 2412.16117), section 3.3. The oracle is `prunevid.methods.selection.group_topk`.
"""

from __future__ import annotations

import triton
import triton.language as tl

WARPS = 4
ROWS = 16
BLOCK = 256


@triton.jit
def group_topk_kernel(
    scores_ptr: tl.tensor,
    group_ptr: tl.tensor,
    quota_ptr: tl.tensor,
    tokens: tl.tensor,
    keep_ptr: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Decide on ROWS tokens from `program_id(0) * ROWS` on.

    scores [tokens] floating point, group [tokens] integer, quota [G] integer; writes keep [tokens], of any type: 1
    for the quota[g] tokens of group g with the largest scores, ties to the lower index, else 0.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < tokens
    own = tl.load(scores_ptr + row, mask=inside, other=0.0).to(tl.float32)
    own_group = tl.load(group_ptr + row, mask=inside, other=0).to(tl.int32)
    ahead = tl.zeros([ROWS], tl.int32)
    for start in range(0, tokens, BLOCK):
        column = start + tl.arange(0, BLOCK)
        score = tl.load(scores_ptr + column, mask=column < tokens, other=0.0).to(tl.float32)
        group = tl.load(group_ptr + column, mask=column < tokens, other=-1).to(tl.int32)
        earlier = column[None, :] < row[:, None]
        better = (score[None, :] > own[:, None]) | ((score[None, :] == own[:, None]) & earlier)
        ahead += tl.sum((better & (group[None, :] == own_group[:, None])).to(tl.int32), 1)
    quota = tl.load(quota_ptr + own_group, mask=inside, other=0).to(tl.int32)
    tl.store(keep_ptr + row, (ahead < quota).to(keep_ptr.dtype.element_ty), mask=inside)
