"""Routers from clusters of a dense feed-forward block's inputs on real text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 20


def cluster(inputs: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Unit centroids [clusters, H] of the directions of ``inputs`` [T, H] (spherical k-means).

    A router has no bias, so its largest logit is that of the nearest centroid by angle: a router built from the
    centroids assigns inputs exactly as the clustering does.  An empty cluster restarts at the input with the worst fit.

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
    """Initial centroids for k-means among the rows of unit ``directions`` (k-means++, drawn by squared distance)."""
    first = int(torch.randint(len(directions), (1,), generator=generator))
    chosen = [first]
    distance = 1 - directions @ directions[first]
    for _ in range(clusters - 1):
        chosen.append(int(torch.multinomial(distance.clamp_min(1e-9), 1, generator=generator)))
        distance = torch.minimum(distance, 1 - directions @ directions[chosen[-1]])
    return directions[chosen].clone()


def from_centroids(centroids: Tensor, inputs: Tensor, margin: float) -> Tensor:
    """Scale centroids to router weights [clusters, H], so that the two best logits differ by ``margin`` (median)."""
    best_two = (inputs.float() @ centroids.T).topk(2, dim=1).values
    gap = (best_two[:, 0] - best_two[:, 1]).median()
    return centroids * (margin / gap.clamp_min(1e-6))


def with_shards(router: Tensor, inputs: Tensor, strengths: Tensor, spread: float) -> Tensor:
    """Router rows of each shard of each cluster, [clusters * shards, H]: the cluster's row plus a direction per shard.

    ``strengths`` [T, shards] is the output norm of each shard of the dense block on ``inputs`` [T, H].  A ridge
    regression finds the input directions that predict it; they are scaled so that the logits of a cluster's shards
    differ by ``spread`` (standard deviation).
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
