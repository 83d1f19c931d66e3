"""Density-peak clustering of one group of tokens per program: the operator `DpcKnn`.

A thread owns a token, that is a column of the group's table of distances, and the program reads the table row by row:
neighbouring threads read neighbouring numbers, and what is found for a token (its nearest, its density, its distance
to a denser one, its rank, its centre) stays in registers without a word to other threads. The table must therefore be
symmetric, as distances are. It is read three times; the first time fetches it, the others mostly hit a cache.
Source: PruneVid (arXiv 2412.16117), section 3.2. The oracle is `prunevid.methods.clustering.dpc_knn`.
"""

from __future__ import annotations

import triton
import triton.language as tl

_TILE = 8192

# Stands for "no distance" where a minimum is taken: larger than any squared distance of finite float32 features.
_FAR = tl.constexpr(3.0e38)
# Logarithm of a score of zero: below that of any token that is apart from a denser one.
_NO_SCORE = tl.constexpr(-1.0e38)


def block_sizes(tokens: int) -> dict[str, int]:
    """The kernel's constants for groups of up to so many tokens: the width of a row and the rows of a tile."""
    block = max(16, triton.next_power_of_2(tokens))
    return {"BLOCK": block, "ROWS": min(block, _TILE // block)}


def warps(tokens: int) -> int:
    """Warps of a program for groups of up to so many tokens: a thread per token, or per two where registers run out."""
    return min(16, max(4, triton.next_power_of_2(tokens) // 32))


@triton.jit
def dpc_knn_kernel(
    squared_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    clusters_ptr: tl.tensor,
    tokens: tl.tensor,
    cluster_ptr: tl.tensor,
    NEIGHBOURS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Cluster group `program_id(0)`.

    squared [G, tokens, tokens] floating point and symmetric, valid [G, tokens] any integer or bool, clusters [G]
    integer; writes cluster [G, tokens] integer: the cluster of each token, -1 where invalid.
    """
    group = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < tokens
    squared_ptr += group * tokens * tokens
    valid_ptr += group * tokens
    valid = (tl.load(valid_ptr + token, mask=inside, other=0) != 0).to(tl.int32)
    clusters = tl.load(clusters_ptr + group).to(tl.int32)
    # A group that keeps all its tokens keeps their order.
    cluster = tl.cumsum(valid, 0) - 1
    if clusters < tl.sum(valid, 0):
        mean = _mean_of_nearest(squared_ptr, valid_ptr, valid, tokens, NEIGHBOURS, BLOCK)
        delta = _squared_distance_to_denser(squared_ptr, valid, mean, tokens, BLOCK, ROWS)
        # The logarithm of density times delta: the same order, where float32 exp() would round densities together.
        score = tl.where(delta > 0, 0.5 * tl.log(tl.where(delta > 0, delta, 1.0)) - mean, _NO_SCORE)
        rank = _rank(tl.where(valid != 0, score, -_FAR), tokens, BLOCK, ROWS)
        cluster = _nearest_centre(squared_ptr, valid, rank, clusters, tokens, BLOCK, ROWS)
    tl.store(cluster_ptr + group * tokens + token, tl.where(valid != 0, cluster, -1), mask=inside)


@triton.jit
def _mean_of_nearest(
    squared_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    valid: tl.tensor,
    tokens: tl.tensor,
    NEIGHBOURS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Mean of each token's smallest squared distances [BLOCK], itself included, over as many as there are."""
    token = tl.arange(0, BLOCK)
    nearest = (tl.full([BLOCK], _FAR, tl.float32),) * NEIGHBOURS
    # Unrolled, so that several rows are on their way at a time.
    for other in tl.range(0, tokens, loop_unroll_factor=8):
        pair = (valid & (tl.load(valid_ptr + other) != 0).to(tl.int32)) != 0
        squared = tl.load(squared_ptr + other * tokens + token, mask=pair, other=0.0).to(tl.float32)
        nearest = _inserted(nearest, tl.where(pair, squared, _FAR))
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(NEIGHBOURS):
        total += tl.where(nearest[place] < _FAR, nearest[place], 0.0)
        count += tl.where(nearest[place] < _FAR, 1.0, 0.0)
    return tl.div_rn(total, tl.maximum(count, 1.0))


@triton.jit
def _inserted(nearest: tl.tuple, value: tl.tensor) -> tl.tuple:
    """The smallest values so far, ascending, after one more; the largest drops out."""
    result = ()
    for place in tl.static_range(len(nearest)):
        result = result + (tl.minimum(nearest[place], value),)  # type: ignore[assignment]
        value = tl.maximum(nearest[place], value)
    return result


@triton.jit
def _squared_distance_to_denser(
    squared_ptr: tl.tensor,
    valid: tl.tensor,
    mean: tl.tensor,
    tokens: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Smallest squared distance to a denser token [BLOCK]; the group's largest where none is denser.

    Density is exp(-mean), so the denser token has the smaller mean; of equals, the earlier one counts as denser.
    """
    token = tl.arange(0, BLOCK)
    smallest = tl.full([BLOCK], _FAR, tl.float32)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tokens, ROWS):
        other = start + tl.arange(0, ROWS)
        squared = _rows(squared_ptr, valid, other, tokens, BLOCK)
        denser = _comes_before(tl.gather(mean, other, 0), other, mean, token)
        smallest = tl.minimum(smallest, tl.min(tl.where(denser, squared, _FAR), 0))
        largest = tl.maximum(largest, tl.max(tl.where(squared < _FAR, squared, 0.0), 0))
    return tl.where(smallest < _FAR, smallest, tl.max(largest, 0))


@triton.jit
def _rank(score: tl.tensor, tokens: tl.tensor, BLOCK: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """Place of each token by decreasing score, int32 [BLOCK]; ties go to the lower index."""
    token = tl.arange(0, BLOCK)
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tokens, ROWS):
        other = start + tl.arange(0, ROWS)
        ahead = _comes_before(-tl.gather(score, other, 0), other, -score, token)
        rank += tl.sum(ahead.to(tl.int32), 0)
    return rank


@triton.jit
def _nearest_centre(
    squared_ptr: tl.tensor,
    valid: tl.tensor,
    rank: tl.tensor,
    clusters: tl.tensor,
    tokens: tl.tensor,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Cluster of each token, int32 [BLOCK]: a centre's own, else that of the nearest centre; ties: the lower number."""
    nearest = tl.full([BLOCK], _FAR, tl.float32)
    cluster = tl.full([BLOCK], BLOCK, tl.int32)
    for start in range(0, tokens, ROWS):
        other = start + tl.arange(0, ROWS)
        number = tl.gather(rank, other, 0)[:, None]
        squared = tl.where(number < clusters, _rows(squared_ptr, valid, other, tokens, BLOCK), _FAR)
        least = tl.min(squared, 0)
        candidate = tl.min(tl.where(squared == least[None, :], number, BLOCK), 0)
        candidate = tl.where(least == nearest, tl.minimum(candidate, cluster), candidate)
        cluster = tl.where(least <= nearest, candidate, cluster)
        nearest = tl.minimum(nearest, least)
    return tl.where(rank < clusters, rank, cluster)


@triton.jit
def _rows(
    squared_ptr: tl.tensor, valid: tl.tensor, other: tl.tensor, tokens: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """Distances of the other tokens [ROWS] to all tokens, float32 [ROWS, BLOCK]; far where either is not there."""
    token = tl.arange(0, BLOCK)
    pair = (tl.gather(valid, other, 0)[:, None] & valid[None, :]) != 0
    squared = tl.load(squared_ptr + other[:, None] * tokens + token[None, :], mask=pair, other=0.0)
    return tl.where(pair, squared.to(tl.float32), _FAR)


@triton.jit
def _comes_before(other_key: tl.tensor, other: tl.tensor, key: tl.tensor, token: tl.tensor) -> tl.tensor:
    """Whether the other tokens [ROWS] come before the tokens [BLOCK]: by their keys, ties by index; [ROWS, BLOCK]."""
    earlier = other[:, None] < token[None, :]
    return (other_key[:, None] < key[None, :]) | ((other_key[:, None] == key[None, :]) & earlier)
