"""Builds the parts of an engine for one loaded model: arena, link, placement, draft set, substitution, hook.

What does not depend on how the budget is used (link, kernels, calibration) is the ground of every assembly: a first one
may measure what passes cost before the budget is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from specmoe.compute import table as kernel_tables
from specmoe.compute.calls import panel_functions, streamed
from specmoe.compute.linear import replace_linears
from specmoe.compute.norm import replace_norms
from specmoe.compute.packed_layer import packed
from specmoe.compute.router import replace_routers
from specmoe.compute.table import KernelTable
from specmoe.compute.threads import available, pool
from specmoe.drafting import affinity, low_bit, merged
from specmoe.drafting import calibration as calibrations
from specmoe.drafting.calibration import Calibration
from specmoe.drafting.selection import DraftSelection
from specmoe.errors import BudgetError, OptionError
from specmoe.model.checkpoint import expert_modules
from specmoe.model.experts import attach
from specmoe.model.fused_attention import fuse_attention
from specmoe.model.fused_layer import fuse_layers
from specmoe.model.narrow import narrow
from specmoe.model.pass_state import PassState
from specmoe.offload.arena import ExpertArena, slots_within
from specmoe.offload.copies import Copies, most_copies
from specmoe.offload.device import Device
from specmoe.offload.link import Link
from specmoe.offload.placement import Placement, make_placement
from specmoe.offload.prefetch import Prefetcher
from specmoe.offload.residency import Residency
from specmoe.offload.slow_tier import SlowTier
from specmoe.offload.sources import Extended, open_source
from specmoe.offload.store import ExpertStore
from specmoe.options import SpecOptions


@dataclass
class Ground:
    """What all assemblies of a model share; ``slices`` as in ``PassState``.

    ``source`` is what the link reads; low-bit copies join it once an assembly drafts with them.
    """

    calibration: Calibration | None
    source: Extended
    slow_tier: SlowTier
    link: Link
    kernels: KernelTable
    slices: list[torch.Tensor] | None = None


@dataclass
class Assembly:
    """The parts an engine uses; ``most_draft_experts`` is the largest N that a controller may pin.

    ``kernels`` names the kernels in use, for the record.
    """

    state: PassState
    arena: ExpertArena
    link: Link
    most_draft_experts: int
    kernels: str


@dataclass(frozen=True)
class Policies:
    """Placement and draft selection, and the largest N that fits."""

    placement: Placement
    selection: DraftSelection | None
    most_draft_experts: int


def lay_ground(
    model: PreTrainedModel,
    store: ExpertStore,
    options: SpecOptions,
    device: Device,
    slow_tier: SlowTier,
) -> Ground:
    """Open the link and prepare the kernels; replaces the linear layers of ``model``.

    Raises:
        OptionError: an option needs a calibration, and the store has none.
        StoreError: the calibration is damaged.
    """
    sizes = [spec.experts for spec in store.layers]
    calibration = calibrations.load(store)
    source = Extended(open_source(store, device, slow_tier), sizes)
    slices = None
    if options.substitution == "merged":
        merged_store, assigned = merged.open_or_build(store, _required(calibration, options), options.merged_experts)
        slices = [a + n for a, n in zip(assigned, sizes, strict=True)]
        source.extend(open_source(merged_store, device, slow_tier))
    kernels = prepare_kernels(model, store.dtype, options, device)
    return Ground(calibration, source, slow_tier, Link(source, store, device, slow_tier.pace()), kernels, slices)


def assemble(
    model: PreTrainedModel, store: ExpertStore, options: SpecOptions, budget_bytes: int, device: Device, ground: Ground
) -> Assembly:
    """Build every part and attach the hook to ``model``, in place of one of an earlier assembly.

    Raises:
        BudgetError: the budget cannot hold the draft experts, merged slices and one expert in transit, or a low-bit
            copy for each layer and two experts in transit.
        OptionError: an option needs a calibration, and the store has none.
    """
    sizes = [spec.experts for spec in store.layers]
    modules = expert_modules(model)
    drafting = drafting_layers(modules)
    link, calibration = ground.link, ground.calibration
    slices = ground.slices if options.substitution == "merged" else None
    copied, room, reserved = None, [0] * len(sizes), 0
    if options.drafts_with_copies:
        copied = low_bit.open_or_build(store, options.draft_bits, transposed(modules))
        room = most_copies(copied, [n * drafts for n, drafts in zip(sizes, drafting, strict=True)], store, budget_bytes)
        reserved = Copies.bytes_of(copied, room)
        ground.source.extend(open_source(copied, device, ground.slow_tier))
    permanent = sum(len(set(s.tolist())) for s in slices or [])
    arena = ExpertArena(device, store.slot_bytes, budget_bytes, sum(sizes) + permanent, reserved)
    chosen = make_policies(sizes, options, arena, calibration, permanent, drafting)
    residency = Residency(store, arena, link, chosen.placement)
    prefetcher = None
    if options.prefetch == "draft" and options.drafts_with_experts:
        prefetcher = Prefetcher(store, residency, link, int(options.prefetch_share * budget_bytes))
    tables = _tables(store, options, calibration)
    copies = None
    if copied is not None:
        copies = Copies(copied, arena.reserved, link, room, low_bit.views)
        if chosen.selection is not None:
            chosen.selection.resize(max(room))
    if options.drafts_with_copies and ground.kernels.streamed_rows("experts", torch.float32):
        packed(options.draft_bits)
        panel_functions()
    state = PassState(options, residency, chosen.placement, chosen.selection, tables, slices, prefetcher, copies)
    attach(model, modules, state, ground.kernels)
    kernels = ground.kernels.describe(model.config.dtype, store.dtype)
    return Assembly(state, arena, link, chosen.most_draft_experts, kernels)


def prepare_kernels(model: PreTrainedModel, stored: torch.dtype, options: SpecOptions, device: Device) -> KernelTable:
    """The kernels of experts (``stored``) and linear layers, ready to run; replaces the linear layers of ``model``."""
    if options.kernels == "torch" or device.torch_device.type != "cpu":
        return kernel_tables.TORCH
    table = kernel_tables.load()
    used = {dtype for dtype in replace_linears(model, table) if table.streamed_rows("linear", dtype)}
    used |= {stored} if table.streamed_rows("experts", model.config.dtype, stored) else set()
    for dtype in used:
        streamed(dtype)
    if used:
        panel_functions()
        pool(torch.get_num_threads())
    if available():
        fuse_attention(model, table)
    replace_norms(model)
    replace_routers(model)
    if available():
        if narrow(model, stored) and table.streamed_rows("linear", torch.float32, stored):
            streamed(stored)
        fuse_layers(model)
    return table


def make_policies(
    sizes: list[int],
    options: SpecOptions,
    arena: ExpertArena,
    calibration: Calibration | None,
    permanent: int = 0,
    drafting: Sequence[bool] | None = None,
) -> Policies:
    """Placement and draft selection for MoE layers of ``sizes`` experts; ``permanent`` slots hold merged slices.

    ``drafting`` says which layers draft; all by default, an encoder's never do.

    Raises:
        BudgetError, OptionError: as ``assemble``.
    """
    draft_sizes = [n if drafts else 0 for n, drafts in zip(sizes, drafting or [True] * len(sizes), strict=True)]
    most, pinned = _pins(draft_sizes, options, arena.slots - permanent)
    _check_slots(arena.slots, arena.slot_bytes, arena.budget_bytes, pinned + permanent, sum(sizes) + permanent, options)
    placement = make_placement(options.placement, sizes, arena.slots - pinned - permanent)
    selection = _selection(draft_sizes, options, calibration) if options.drafts_with_experts else None
    if selection is not None and options.controller == "auto":
        selection.resize(min(options.draft_experts, most))
    return Policies(placement, selection, most)


def check_budget(model: PreTrainedModel, store: ExpertStore, options: SpecOptions, budget_bytes: int) -> None:
    """Check a budget against a store that may not be written yet; merged slices are left to ``assemble``.

    Raises:
        BudgetError: the budget cannot hold the draft experts and one in transit.
    """
    slots = slots_within(budget_bytes, store.slot_bytes, store.total_experts)
    drafting = drafting_layers(expert_modules(model))
    _, pinned = _pins(
        [spec.experts * drafts for spec, drafts in zip(store.layers, drafting, strict=True)], options, slots
    )
    _check_slots(slots, store.slot_bytes, budget_bytes, pinned, store.total_experts, options)


def transposed(modules: dict[str, Any]) -> list[bool]:
    """Whether the matrices of each layer's experts are [in, out]."""
    return [bool(module.is_transposed) for module in modules.values()]


def drafting_layers(modules: dict[str, Any]) -> list[bool]:
    """Which layers draft."""
    return [bool(getattr(module, "drafts", True)) for module in modules.values()]


def _pins(draft_sizes: list[int], options: SpecOptions, slots: int) -> tuple[int, int]:
    """The largest N that a controller may pin, and how many draft experts are pinned at first."""
    layers = max(1, sum(n > 0 for n in draft_sizes))
    most = max(1, 3 * slots // (4 * layers))  # the rest is left to the placement policy
    if not options.pins_experts:
        return most, 0
    each = min(options.draft_experts, most) if options.controller == "auto" else options.draft_experts
    return most, sum(min(each, n) for n in draft_sizes)


def _selection(sizes: list[int], options: SpecOptions, calibration: Calibration | None) -> DraftSelection:
    counts = _required(calibration, options).counts if options.selection == "hot-global" else None
    return DraftSelection(sizes, options, counts)


def _tables(store: ExpertStore, options: SpecOptions, calibration: Calibration | None) -> list[torch.Tensor]:
    if options.substitution == "affinity-activation":
        return [table.float() for table in _required(calibration, options).distances]
    return [affinity.load_table(store, layer) for layer in range(len(store.layers))]


def _required(calibration: Calibration | None, options: SpecOptions) -> Calibration:
    if calibration is None:
        raise OptionError(
            f"selection={options.selection!r} with substitution={options.substitution!r} needs a calibration of this "
            "model: run SpecMoE.calibrate on sample prompts once"
        )
    return calibration


def _check_slots(
    slots: int, slot_bytes: int, budget_bytes: int, fixed: int, experts: int, options: SpecOptions
) -> None:
    needed = min(fixed + 1, experts)
    if slots < needed:
        raise BudgetError(
            f"expert budget of {budget_bytes} bytes holds {slots} experts, but {fixed} draft experts "
            f"and one in transit need {needed * slot_bytes} bytes: raise expert_budget, or lower "
            + ("merged_experts or " if options.merged_experts else "")
            + "draft_experts"
            + (" (or gamma=0)" if options.speculates else "")
        )
