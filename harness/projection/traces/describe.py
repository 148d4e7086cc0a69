"""Measures skew, locality, correlation and acceptance of a trace."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.projection.traces.trace import Pass, Trace
from workloads.skew import gini, top_share


@dataclass(frozen=True)
class Description:
    """Means over MoE layers of the target passes of the decode phase (for the skew also of the prefill).

    ``repeat_rate``: share of a token's experts that the previous token of its sequence used too.
    ``row_overlap``: share of a row's experts that a random other row of the batch uses at the same index of the same
    pass; NaN for one row.  ``acceptance``: probability that a drafted token is accepted if those before it are; NaN
    without drafts.
    """

    top_10_percent_share: float
    gini: float
    repeat_rate: float
    row_overlap: float
    distinct_per_layer: float
    tokens_per_step: float
    acceptance: float


def describe(trace: Trace) -> Description:
    """Measure a trace; rejected tokens count, since target passes routed them."""
    layers = range(len(trace.geometry.experts))
    verifies = [p for p in trace.passes if p.phase == "verify"]
    counts = [_counts(trace, layer) for layer in layers]
    return Description(
        top_10_percent_share=_mean([top_share(c) for c in counts]),
        gini=_mean([gini(c) for c in counts]),
        repeat_rate=_repeat_rate(trace.target_passes),
        row_overlap=_row_overlap(verifies),
        distinct_per_layer=_mean([float(len(picks[p.valid].unique())) for p in verifies for picks in p.picks]),
        tokens_per_step=trace.tokens_per_step(),
        acceptance=_acceptance(verifies),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _counts(trace: Trace, layer: int) -> torch.Tensor:
    """Number of times that target passes picked each expert, [E]."""
    size = trace.geometry.experts[layer]
    return sum(
        (torch.bincount(p.picks[layer][p.valid].flatten(), minlength=size) for p in trace.target_passes),
        start=torch.zeros(size),
    )


def _shared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Share of the picks ``a`` [..., K] that are also in ``b`` [..., K]: [...]."""
    return (a[..., :, None] == b[..., None, :]).any(-1).float().mean(-1)


def _repeat_rate(passes: list[Pass]) -> float:
    """Over consecutive tokens of a row within a pass; the first token of a pass has no predecessor."""
    total, count = 0.0, 0
    for one in passes:
        both = one.valid[:, 1:] & one.valid[:, :-1]
        for picks in one.picks:
            shared = _shared(picks[:, 1:], picks[:, :-1])[both]
            total, count = total + float(shared.sum()), count + len(shared)
    return total / count if count else float("nan")


def _row_overlap(passes: list[Pass]) -> float:
    """Each row against the next one, which is a random one as rows are in no particular order."""
    total, count = 0.0, 0
    for one in passes:
        if len(one.rows) < 2:
            continue
        both = one.valid & one.valid.roll(1, 0)
        for picks in one.picks:
            shared = _shared(picks, picks.roll(1, 0))[both]
            total, count = total + float(shared.sum()), count + len(shared)
    return total / count if count else float("nan")


def _acceptance(verifies: list[Pass]) -> float:
    """Accepted over verified tokens; the first rejection ends a row's cycle."""
    drafted = [p.valid.sum(1) - 1 for p in verifies]
    accepted = sum(int(p.accepted.sum()) for p in verifies)
    rejected = sum(int((p.accepted < d).sum()) for p, d in zip(verifies, drafted, strict=True))
    return accepted / (accepted + rejected) if accepted + rejected else float("nan")
