"""Measures what passes cost on this machine now, for the split of the expert budget: a fraction of a second at load.

Nothing is kept for later loads: a measurement beside other work would decide for as long as it was kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from specmoe.batch import Run, forward
from specmoe.compute.expert import ExpertTraits
from specmoe.compute.gate import recognise
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.packed_layer import PackedKernels
from specmoe.compute.routed import Routed
from specmoe.compute.table import KernelTable
from specmoe.compute.widening import Widening
from specmoe.control.split import Cost, Rates
from specmoe.drafting import low_bit
from specmoe.model.checkpoint import expert_modules
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.pass_state import Pass
from specmoe.offload.link import Link
from specmoe.offload.residency import Weights
from specmoe.recorder import Mode, NoRecorder

SLOTS = 16
"""Most experts that are loaded."""
PART = 4
"""Experts whose loads are timed together."""
POSITIONS = 64
"""Most tokens of a timed pass."""
EXPERT_TOKENS = 16
"""Tokens of an expert that is timed with more than one."""
RUNS = 2
"""Timed runs, of which the shortest counts."""
FOOTPRINT_BYTES = 128_000_000
"""Weights that are read in turn for one token each: fewer would come from the processor's cache, as they seldom do."""
MANY = 32
"""Most experts that are timed with ``EXPERT_TOKENS`` tokens, where reading weights counts less."""


@dataclass(frozen=True)
class Probed:
    """The rates, and ``picks``: how many experts a token picks, by MoE layer; 0 outside of the decoder."""

    rates: Rates
    picks: list[float]


class _Picks(NoRecorder):
    """Counts the experts that a token picks in each layer."""

    def __init__(self, experts: list[int]) -> None:
        self._experts = experts
        self.of_layer = [0.0] * len(experts)

    def routed(self, layer: int, mode: Mode, index: torch.Tensor, valid: torch.Tensor) -> None:
        self.of_layer[layer] = float((index < self._experts[layer]).float().sum(dim=1).mean())


def probe(
    run: Run,
    ids: torch.Tensor,
    link: Link,
    experts: list[int],
    kernels: KernelTable,
    copied: Sequence[int],
    budget_bytes: int,
) -> Probed:
    """Time the run's model, whose rows hold no tokens yet, on ``ids`` (long [B, Q], Q at least 2).

    The engine must not draft; it loads at most ``SLOTS`` experts of one layer.  ``experts``: number by MoE layer;
    ``copied``: bits of the low-bit copies to time.  At most ``budget_bytes`` are taken for each kind of weights.
    """
    run.recorder = picks = _Picks(experts)
    outside = _outside(run, ids)
    layer = max(range(len(experts)), key=lambda i: picks.of_layer[i])
    loaded, link_bytes_s = _load(run, link, layer, experts[layer])
    module = list(expert_modules(run.model).values())[layer]
    traits = ExpertTraits.of(module)
    gate = recognise(traits, module)
    in_call = max(1, round(len(ids) * picks.of_layer[layer]))
    spare_bytes = min(FOOTPRINT_BYTES, budget_bytes) - len(loaded) * _nbytes(loaded[0])
    timed = _Experts(ExpertKernels(traits, gate, kernels, Widening()), run, ids, in_call)
    full = timed.cost(loaded + _repeated(loaded[0], spare_bytes))
    draft = _Experts(PackedKernels(traits, gate, kernels, {}), run, ids, in_call)
    packed = {}
    for bits in copied:
        one = low_bit.copy_of(loaded[0], bits, traits.is_transposed)
        one = {name: t.to(ids.device) for name, t in one.items()}
        packed[bits] = draft.cost([one, *_repeated(one, spare_bytes)])
    return Probed(Rates(link_bytes_s, outside, full, packed), picks.of_layer)


def _nbytes(weights: Weights) -> int:
    return sum(t.nbytes for t in weights.values())


def _repeated(weights: Weights, nbytes: int) -> list[Weights]:
    """Copies of an expert's weights in other memory, at most ``nbytes`` in all."""
    return [{name: t.clone() for name, t in weights.items()} for _ in range(max(0, nbytes // _nbytes(weights)))]


def _outside(run: Run, ids: torch.Tensor) -> Cost:
    """A pass outside the experts: no token is valid, so none is asked for."""
    rows, queries = ids.shape
    if not isinstance(run.cache, RaggedCache):
        nothing = Pass("target", torch.zeros_like(run.cache.source.ids, dtype=torch.bool).flatten())
        with run.state.running(nothing, NoRecorder()):
            run.cache.encoded = run.cache.source.encode(run.model)
    seconds = []
    for width in (1, queries):
        nothing = Pass("target", torch.zeros(rows * width, dtype=torch.bool, device=ids.device))
        seconds.append(_shortest_s(partial(forward, run, ids[:, :width], nothing), ids.device))
    more_s = max(0.0, seconds[1] - seconds[0]) / (rows * (queries - 1))
    return Cost(max(0.0, seconds[0] - (rows - 1) * more_s), more_s)


def _load(run: Run, link: Link, layer: int, experts: int) -> tuple[list[Weights], float]:
    """Weights of some experts of a layer, on the device, and the link's bytes per second.

    They are loaded twice: the first load also allocates the pages of their slots.  The fastest part counts, since other
    work on the machine slows some.
    """
    residency = run.state.residency
    wanted = torch.linspace(0, experts - 1, min(residency.slots.total, SLOTS, experts)).long().tolist()
    for _ in residency.stream(layer, wanted):
        pass
    residency.reset()
    rates = []
    for start in range(0, len(wanted), PART):
        before = link.snapshot()
        for _ in residency.stream(layer, wanted[start : start + PART]):
            pass
        moved = link.since(before)
        rates.append(moved.moved_bytes / max(moved.busy_s, 1e-9))
    return [residency.weights(layer, expert) for expert in residency.ready(layer)], max(rates)


class _Experts:
    """Times experts on tokens of the model's width, at most ``in_call`` of them in one call, as many as a layer has."""

    def __init__(self, kernels: ExpertKernels | PackedKernels, run: Run, ids: torch.Tensor, in_call: int) -> None:
        self._kernels, self._device, self._dtype, self._in_call = kernels, ids.device, run.model.config.dtype, in_call
        self._width = int(run.model.get_input_embeddings().weight.shape[1])

    def cost(self, experts: list[Weights]) -> Cost:
        """Seconds of one of them, by its tokens."""
        first_s = self._seconds(experts, 1) / len(experts)
        many_s = self._seconds(experts[:MANY], EXPERT_TOKENS) / len(experts[:MANY])
        return Cost(first_s, max(0.0, many_s - first_s) / (EXPERT_TOKENS - 1))

    def _seconds(self, experts: list[Weights], tokens: int) -> float:
        order = np.arange(len(experts) * tokens, dtype=np.int64)
        bounds = {i: (i * tokens, (i + 1) * tokens) for i in range(len(experts))}
        hidden = torch.ones(len(order), self._width, dtype=self._dtype, device=self._device)
        out = torch.empty_like(hidden)
        numbered = list(enumerate(experts))
        calls = [numbered[start : start + self._in_call] for start in range(0, len(experts), self._in_call)]

        def compute() -> None:
            for call in calls:
                self._kernels.compute(call, Routed(hidden, order, bounds, 1), out)

        return _shortest_s(compute, self._device)


def _shortest_s(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the shortest of ``RUNS`` runs after one that is not timed."""
    seconds = []
    for _ in range(1 + RUNS):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
