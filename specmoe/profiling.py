"""Profiles a loaded model on sample prompts: how it uses its experts, and how often each kind of draft is right.

The target reads the prompts and decodes some tokens.  Then each emulated draft reads these in one pass over the
target's own KV cache, as a real draft starts from it, and its most likely tokens are compared with the target's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from specmoe.batch import Run, forward
from specmoe.drafting import affinity, calibration
from specmoe.drafting.agreement import Agreement
from specmoe.drafting.calibration import Calibration
from specmoe.drafting.emulation import Emulation, Residents, Rounded, Rounding, hottest
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.pass_state import Pass
from specmoe.offload.store import ExpertStore
from specmoe.speculate import prefill

STEPS = 16
"""Tokens per row that are compared, as many as the longest draft that the automatic setting takes."""
ROWS = 16
"""Most rows whose tokens are compared."""
BITS = (3, 4, 8)
"""Of the low-bit copies whose agreement is measured; every expert is rounded once for each."""
SHARES = (0.125, 0.25, 0.5)
"""Of the experts that draft as residents; the agreement of others is between these."""


def calibrate(
    run: Run, prompts: list[torch.Tensor], store: ExpertStore, rounding: Mapping[int, Rounding]
) -> Calibration:
    """The calibration of the run's model on ``prompts`` (one long [n_i] per row).

    The cache must have room for ``STEPS`` more tokens, an encoder-decoder's for ``TARGET_TOKENS``.  ``rounding`` gives
    by bits the weights that a copy of an expert stands for.
    """
    observer = calibration.Observer(store)
    with run.state.observed_by(observer):
        first = prefill(run, prompts)
        if not isinstance(run.cache, RaggedCache):  # an encoder-decoder's first token says nothing of its decoder
            tokens = continued(run, first, calibration.TARGET_TOKENS - 1)[:ROWS, : STEPS + 1]
        run.cache.select(torch.arange(len(first[:ROWS]), device=first.device))
    if isinstance(run.cache, RaggedCache):
        tokens = continued(run, first[:ROWS], STEPS)
    return observer.result(agreement(run, tokens, observer.counts, store, rounding))


def continued(run: Run, first: torch.Tensor, steps: int) -> torch.Tensor:
    """``first`` (long [B]) and the target's greedy tokens after it, long [B, steps + 1]; the cache stays as it was."""
    tokens = [first]
    with run.cache.provisional():
        for _ in range(steps):
            logits = forward(run, tokens[-1][:, None], _whole(tokens[-1]))
            run.cache.commit(torch.ones_like(first))
            tokens.append(logits[:, -1].argmax(dim=-1))
    return torch.stack(tokens, dim=1)


def agreement(
    run: Run,
    tokens: torch.Tensor,
    counts: Sequence[torch.Tensor],
    store: ExpertStore,
    rounding: Mapping[int, Rounding],
) -> Agreement:
    """How often each kind of draft has the target's ``tokens`` (long [B, steps + 1]) right.

    ``counts`` say which experts are the residents.
    """
    tables = [affinity.load_table(store, layer) for layer in range(len(store.layers))]
    by_share = {share: _share_right(run, tokens, Residents(hottest(counts, share), tables)) for share in SHARES}
    by_bits = {bits: _share_right(run, tokens, Rounded(rounded)) for bits, rounded in rounding.items()}
    return Agreement(by_share, by_bits, calibration.MEASURED)


def _share_right(run: Run, tokens: torch.Tensor, emulation: Emulation) -> float:
    read, expected = tokens[:, :-1], tokens[:, 1:]
    with run.cache.provisional():
        logits = forward(run, read, _whole(read, emulation))  # [B, steps, V]
    return float((logits.argmax(dim=-1) == expected).float().mean())


def _whole(ids: torch.Tensor, emulation: Emulation | None = None) -> Pass:
    """A target pass over all of ``ids``."""
    return Pass("target", torch.ones(ids.numel(), dtype=torch.bool, device=ids.device), emulation=emulation)
