"""The automatic setting: measures what passes cost, splits the expert budget by it, and says why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from specmoe.control import split
from specmoe.control.split import Demand, Memory, Plan, Split
from specmoe.drafting import low_bit
from specmoe.drafting.agreement import ASSUMED, Agreement
from specmoe.generation import merge, plain_settings
from specmoe.model.assemble import Ground, assemble, drafting_layers, transposed
from specmoe.model.checkpoint import expert_modules
from specmoe.model.experts import detach
from specmoe.offload.device import Device
from specmoe.offload.store import ExpertStore
from specmoe.options import SpecOptions
from specmoe.probe import POSITIONS, SLOTS, Probed, probe
from specmoe.request import Request
from specmoe.stats import GenerationStats


@dataclass(frozen=True)
class Settled:
    """The options with every choice made, and the split behind it, if one was made."""

    options: SpecOptions
    split: Split | None = None

    @property
    def plan(self) -> Plan | None:
        """What the controller may expect of drafts."""
        return self.split.drafting if self.split is not None else None

    @property
    def reason(self) -> str:
        return self.split.reason if self.split is not None else "given by the options"


def settle(
    model: PreTrainedModel,
    store: ExpertStore,
    options: SpecOptions,
    budget_bytes: int,
    device: Device,
    ground: Ground,
    rows: int | None,
) -> Settled:
    """Choose what ``draft_pool="auto"`` leaves open, for ``rows`` rows that decode together (None: unknown).

    With ``controller="auto"`` the budget is split by measured costs, which takes a fraction of a second and loads a few
    experts; the model must be assembled anew afterwards.  Low-bit copies are weighed with the bits that have been made,
    or where none have, with all whose agreement is known.  With a fixed controller the N pinned experts draft (the
    paper).
    """
    if options.draft_pool != "auto":
        return Settled(options)
    if options.controller == "fixed" or not options.drafts_with_experts or options.substitution == "merged":
        return Settled(options.model_copy(update={"draft_pool": "pinned"}))
    rows = rows or split.DEFAULT_ROWS
    calibration = ground.calibration
    agreement = (calibration.agreement if calibration is not None else None) or ASSUMED
    copies_bytes = _copies_bytes(model, store, agreement)
    fitting = [bits for bits, nbytes in copies_bytes.items() if nbytes < budget_bytes]
    probed = _probe(model, store, options, budget_bytes, device, ground, rows, fitting)
    counts = [c.numpy() for c in calibration.counts] if calibration is not None else None
    sizes = [spec.experts for spec in store.layers]
    ahead_bytes = int(options.prefetch_share * budget_bytes) if options.prefetch == "draft" else 0
    found = split.choose(
        Demand(
            split.chances(counts, sizes, probed.picks),
            sum(n > 0 for n in probed.picks),
            rows,
            options.gamma,
            ahead_bytes,
        ),
        Memory(budget_bytes, store.slot_bytes, copies_bytes),
        probed.rates,
        agreement,
    )
    return Settled(options.model_copy(update=_choices(found.chosen)), found)


def _copies_bytes(model: PreTrainedModel, store: ExpertStore, agreement: Agreement) -> dict[int, int]:
    """Memory of copies of all experts that draft, by the bits on offer."""
    modules = expert_modules(model)
    layers = [*zip(store.layers, transposed(modules), drafting_layers(modules), strict=True)]
    offered = low_bit.made(store) or low_bit.BITS
    return {
        bits: sum(low_bit.planned_bytes(spec, bits, turned) for spec, turned, drafts in layers if drafts)
        for bits in offered
        if bits in agreement.by_bits
    }


def _choices(plan: Plan) -> dict[str, object]:
    """The options that a plan decides; residents that draft are those that the cache keeps, with the fewest pins."""
    if plan.draft == "low-bit":
        return {"draft_pool": "low-bit", "draft_bits": plan.bits}
    return {"draft_pool": "resident", "draft_experts": 1}


@torch.inference_mode()
def _probe(
    model: PreTrainedModel,
    store: ExpertStore,
    options: SpecOptions,
    budget_bytes: int,
    device: Device,
    ground: Ground,
    rows: int,
    copied: list[int],
) -> Probed:
    """Assemble the model with a few slots and without drafts, and time it, and copies with the bits ``copied``."""
    plain = SpecOptions.of(gamma=0, seed=options.seed, kernels=options.kernels, substitution=options.substitution)
    parts = assemble(model, store, plain, min(budget_bytes, SLOTS * store.slot_bytes), device, ground)
    ids = torch.zeros(rows, min(16, max(2, POSITIONS // rows)), dtype=torch.long)
    has_encoder = bool(model.config.is_encoder_decoder)
    settings = merge(
        model.generation_config,
        None,
        plain_settings(has_encoder),
        is_encoder_decoder=has_encoder,
        max_new_tokens=ids.shape[1],
    )
    request = Request.of(model, ids[:, :1], torch.ones_like(ids[:, :1]), settings, options.seed)
    run = request.run(model, parts.state, ground.link, 0, GenerationStats())
    sizes = [spec.experts for spec in store.layers]
    found = probe(run, ids.to(model.device), ground.link, sizes, ground.kernels, copied, budget_bytes)
    detach(model)
    return found
