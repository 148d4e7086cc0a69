"""Drafts from low-bit copies change no token, share one budget with the full experts, and their bytes are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from specmoe import BudgetError, SpecMoE
from specmoe.control.controller import make_controller
from specmoe.options import SpecOptions
from tests import families
from tests.conftest import FAMILIES, build, prompts, reference
from tests.specmoe.model.test_encoder_decoder import ROUTED, SWITCH, check, make

NEW_TOKENS = 12
SLOT, COPY = 8192, 4096  # bytes of one expert of ``tiny`` and of its copy, in whole pages
EXPERTS = 24


def _load(folder: Path, **options: Any) -> SpecMoE:
    return SpecMoE.from_pretrained(folder, **{"store": folder / "store", "draft_pool": "low-bit", "gamma": 4} | options)


def _check(folder: Path, model: PreTrainedModel, rows: int = 3, **options: Any) -> SpecMoE:
    ids, mask = prompts(rows)
    expected = reference(model, ids, mask, NEW_TOKENS).tolist()
    with _load(folder, **options) as engine:
        for _ in range(2):  # the second call starts with a warm arena
            assert engine.generate(ids, mask, max_new_tokens=NEW_TOKENS).sequences.tolist() == expected
    return engine


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [1, 5])
def test_greedy_tokens_are_those_of_the_reference(family: str, gamma: int, tmp_path: Path) -> None:
    _check(tmp_path, build(family, tmp_path), gamma=gamma, draft_bits=4 if gamma == 1 else 3)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("gpt_oss", id="transposed, biases, interleaved gate"),
        pytest.param("llama4_text", id="transposed, scaled inputs"),
        pytest.param("longcat_flash", id="picks that name no expert"),
    ],
)
def test_layouts_of_other_families(family: str, tmp_path: Path) -> None:
    families.build(family, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).float().eval()
    _check(tmp_path, model, draft_bits=8)
    _check(tmp_path, model, draft_bits=2, kernels="torch")


@pytest.mark.parametrize("family", [SWITCH, ROUTED])
def test_encoder_decoders_hold_copies_of_the_decoder_only(family: str, tmp_path: Path) -> None:
    output = check(tmp_path / "model", make(family, tmp_path / "model"), {"draft_pool": "low-bit", "draft_bits": 8})
    assert output.stats.acceptance_rate > 0.8


def test_copies_of_eight_bits_draft_nearly_as_the_target(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(4)
    rates = {}
    for bits in (2, 8):
        with _load(tiny[0], draft_bits=bits) as engine:
            rates[bits] = engine.generate(ids, mask, max_new_tokens=40).stats.acceptance_rate
    assert rates[8] > 0.9
    assert rates[8] > rates[2]


def test_copies_and_slots_share_the_budget(tiny: tuple[Path, PreTrainedModel]) -> None:
    budget = EXPERTS * COPY + 5 * SLOT + 100
    engine = _check(*tiny, expert_budget=budget)
    assert engine.store.slot_bytes == SLOT
    assert engine.arena.slots == 5
    assert EXPERTS * COPY < engine.arena.peak_bytes <= budget
    ids, mask = prompts(3)
    with _load(tiny[0], expert_budget=budget) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=4).stats
    assert stats.peak_expert_bytes == engine.arena.peak_bytes


def test_the_prefill_moves_the_copies_and_drafting_moves_nothing(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    with _load(tiny[0], placement="on-demand", expert_budget=EXPERTS * COPY + 4 * SLOT) as engine:
        for _ in range(2):
            stats = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS).stats
            for phase, copies in ((stats.prefill, EXPERTS), (stats.decode, 0)):
                misses = phase.experts.requests - phase.experts.hits
                assert phase.link.moved_bytes == misses * SLOT + copies * COPY
            assert all(cycle.early_bytes == 0 for cycle in stats.cycles)
            engine.reset()  # forgets the copies too


@pytest.mark.parametrize("copies", [1, 3, 7])
@pytest.mark.parametrize("substitution", ["affinity", "drop", "best-gate", "random"])
def test_a_smaller_budget_holds_copies_of_the_hottest(
    copies: int, substitution: str, tiny: tuple[Path, PreTrainedModel]
) -> None:
    budget = 3 * copies * COPY + 2 * SLOT
    engine = _check(*tiny, expert_budget=budget, substitution=substitution)
    assert engine.arena.slots == 2
    held = engine._parts.state.copies
    assert held is not None
    assert all(0 < len(held.held(layer)) <= copies for layer in range(3))
    assert engine.arena.peak_bytes <= budget


@pytest.mark.parametrize("counted", ["all", "accepted"])
def test_hot_copies_follow_use(counted: str, tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    with _load(tiny[0], expert_budget=3 * 2 * COPY + 2 * SLOT, counted=counted, placement="on-demand") as engine:
        stats = engine.generate(ids, mask, max_new_tokens=40).stats
    misses = stats.decode.experts.requests - stats.decode.experts.hits
    assert stats.decode.link.moved_bytes > misses * SLOT, "copies are exchanged"


def test_a_budget_without_room_for_copies_is_refused_with_the_sizes(tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(BudgetError, match=rf"{3 * COPY} bytes\) and 2 full experts of {SLOT} bytes.*or more"):
        _load(tiny[0], expert_budget=3 * COPY + 2 * SLOT - 1)


def test_the_controller_leaves_the_number_of_copies_alone() -> None:
    options = SpecOptions.of(draft_pool="low-bit", controller="auto", draft_experts=4)
    knobs = make_controller(options, 8)._knobs  # type: ignore[attr-defined]
    for rate in range(1, 400):
        knobs.learn(float(rate % 7 + 1))
        assert knobs.draft_experts == 4
