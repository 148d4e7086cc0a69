"""Routers from clusters of what the experts will read: the inputs of a dense feed-forward block on real text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 20


def cluster(inputs: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Unit centroids [clusters, H] of the directions of ``inputs`` [T, H] (spherical k-means).

    A router has no bias: the nearest centroid by angle is the largest of its logits, so the router built from the
    centroids assigns exactly as the clustering did.  An emptied cluster restarts at the input that fits worst.

    Raises:
        ValueError: fewer inputs than clusters.
    """
    if len(inputs) < clusters:
        raise ValueError(f"{len(inputs)} inputs cannot form {clusters} clusters: give more text")
    directions = F.normalize(inputs.float(), dim=1)
    centres = spread_out(directions, clusters, generator)
    for _ in range(ITERATIONS):
        fit, nearest = (directions @ centres.T).max(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, directions)
        empty = torch.bincount(nearest, minlength=clusters) == 0
        sums[empty] = directions[fit.argsort()[: int(empty.sum())]]
        centres = F.normalize(sums, dim=1)
    return centres


def spread_out(directions: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Rows of unit ``directions`` to begin k-means with (k-means++): each next drawn by its squared distance."""
    first = int(torch.randint(len(directions), (1,), generator=generator))
    chosen = [first]
    distance = 1 - directions @ directions[first]
    for _ in range(clusters - 1):
        chosen.append(int(torch.multinomial(distance.clamp_min(1e-9), 1, generator=generator)))
        distance = torch.minimum(distance, 1 - directions @ directions[chosen[-1]])
    return directions[chosen].clone()


def from_centroids(centroids: Tensor, inputs: Tensor, margin: float) -> Tensor:
    """Scale centroids to router weights [clusters, H]: the median gap of the two best logits becomes ``margin``."""
    best_two = (inputs.float() @ centroids.T).topk(2, dim=1).values
    gap = (best_two[:, 0] - best_two[:, 1]).median()
    return centroids * (margin / gap.clamp_min(1e-6))


def with_shards(router: Tensor, inputs: Tensor, strengths: Tensor, spread: float) -> Tensor:
    """Rows for each shard of each cluster, [clusters * shards, H]: the cluster's row plus what the shard answers to.

    ``strengths`` [T, shards] is how much each shard of the dense block puts out on ``inputs`` [T, H].  A ridge
    regression finds the directions of the inputs that tell the shards apart; they are scaled so that the logits of
    one cluster's shards differ by ``spread`` (standard deviation).
    """
    clusters, width = router.shape
    shards = strengths.shape[1]
    if shards == 1:
        return router.clone()
    x = inputs.float()
    target = strengths.float().clamp_min(1e-9).log()
    target = target - target.mean(dim=1, keepdim=True)
    gram = x.T @ x
    ridge = 1e-2 * gram.diagonal().mean() * torch.eye(width)
    answer = torch.linalg.solve(gram + ridge, x.T @ target).T  # [shards, H]
    answer = answer * (spread / (x @ answer.T).std().clamp_min(1e-9))
    rows: Tensor = router[:, None, :] + answer[None]
    return rows.reshape(clusters * shards, width)
