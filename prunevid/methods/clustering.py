"""Density-peak clustering of tokens, in NumPy: a building block that merge methods share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunevid.config import PruneConfig
from prunevid.errors import InvalidValueError
from prunevid.methods.arrays import Floats, Integers, real

__all__ = ["cluster_means", "cluster_tokens", "distance_to_denser", "dpc_knn", "squared_distances"]


def squared_distances(tokens: npt.ArrayLike) -> Floats:
    """Compute the squared euclidean distances between tokens, divided by the number of channels.

    Differences are summed directly. The usual shortcut through a Gram matrix loses the small distances
    between large vectors, and with them the order of near ties.

    Args:
        tokens: [N, C] real.

    Returns:
        float64 [N, N], symmetric, zero on the diagonal.

    Raises:
        InvalidValueError: when tokens are not [N, C] without empty sides, not real or not finite.
    """
    points = real("tokens", tokens, rank=2)
    squared = np.zeros((len(points), len(points)))
    # Row by row: all differences of a frame of a large model at once would take gigabytes.
    for index, point in enumerate(points):
        squared[index, index:] = np.mean((points[index:] - point) ** 2, axis=1)
        squared[index:, index] = squared[index, index:]
    return squared


def dpc_knn(squared: npt.ArrayLike, clusters: int, neighbours: int = 7) -> Integers:
    """Cluster one group of tokens by density peaks with k nearest neighbours (arXiv 2412.16117, section 3).

    A token's density is exp(-mean of its k smallest squared distances, its own zero included); its delta is
    its distance to the nearest denser token, and for the densest the largest distance in the group. The
    centres are the tokens with the largest density * delta, and every token joins its nearest centre.

    Ties go to the lower index: of two tokens of one density the first counts as denser, of two candidates of
    one score the first becomes the centre, of two centres as near the one of the lower cluster number is
    joined. A centre always belongs to its own cluster, even if another centre lies at the same place.

    Args:
        squared: [N, N] real and not negative; squared distances divided by the number of channels. Row i
            holds what token i sees.
        clusters: how many clusters to make. With N or more, every token is a cluster, in the order given.
        neighbours: k; of fewer tokens, all are used.

    Returns:
        int64 [N]; the cluster of each token. Clusters are numbered by decreasing density * delta of their
        centre.

    Raises:
        InvalidValueError: when the distances are not [N, N], empty, not finite or negative, or a number is
        below 1.
    """
    table = real("squared distances", squared, rank=2)
    count = len(table)
    if table.shape != (count, count):
        raise InvalidValueError(f"squared distances must be square, not of shape {table.shape}.")
    if table.min() < 0:
        raise InvalidValueError("squared distances must not be negative: clamp those of a Gram matrix at 0.")
    if clusters < 1 or neighbours < 1:
        raise InvalidValueError(f"clusters ({clusters}) and neighbours ({neighbours}) must be 1 or more.")
    if clusters >= count:
        return np.arange(count, dtype=np.int64)

    density = np.exp(-np.sort(table, axis=1)[:, :neighbours].mean(axis=1))
    score = density * distance_to_denser(table, density)
    centres = np.argsort(-score, kind="stable")[:clusters]
    # Squares compare as their roots do, and rounding a root could make a tie where there is none.
    cluster: Integers = np.argmin(table[:, centres], axis=1).astype(np.int64)
    cluster[centres] = np.arange(clusters)
    return cluster


def cluster_tokens(tokens: Floats, config: PruneConfig) -> Integers:
    """Cluster one group's tokens [n, C] -> [n]; a group that keeps all its tokens stays in its order."""
    clusters = int(config.cluster_counts(len(tokens))[-1])
    if clusters >= len(tokens):
        return np.arange(len(tokens), dtype=np.int64)
    return dpc_knn(squared_distances(tokens), clusters, config.neighbours)


def cluster_means(tokens: Floats, cluster: Integers) -> Floats:
    """Average the tokens [n, C] of each cluster -> [K, C]; no cluster is empty, since it has its centre."""
    return np.stack([tokens[cluster == number].mean(axis=0) for number in range(int(cluster.max()) + 1)])


def distance_to_denser(squared: Floats, density: Floats) -> Floats:
    """Return each token's distance to the nearest denser one; for the densest, the largest distance."""
    by_density = np.argsort(-density, kind="stable")
    delta = np.empty(len(density))
    delta[by_density[0]] = squared.max()
    for rank in range(1, len(by_density)):
        token = by_density[rank]
        delta[token] = squared[token, by_density[:rank]].min()
    return np.sqrt(delta)
