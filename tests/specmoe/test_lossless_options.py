"""No option, and no combination of options, changes greedy output."""

from __future__ import annotations

from functools import cache as memoise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from specmoe import SpecMoE
from tests.conftest import FAMILIES, build, prompts, reference

NEW_TOKENS = 10


SLOT_BYTES = 4096 * -(-3 * 32 * 16 * 4 // 4096)  # one expert of the tiny model, in whole pages


@pytest.fixture(scope="module", params=["qwen3", pytest.param("qwen3-next", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A random Qwen3-MoE, and a hybrid of the same shape, whose store has a calibration: (folder, reference model)."""
    folder = tmp_path_factory.mktemp("calibrated")
    model = build(request.param, folder)
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=0) as engine:
        engine.calibrate(*prompts(8, seed=99))
    return folder, model


def _load(model: tuple[Path, PreTrainedModel], **options: Any) -> SpecMoE:
    return SpecMoE.from_pretrained(model[0], store=model[0] / "store", **options)


@memoise
def _expected(folder: Path, rows: int) -> list[list[int]]:
    ids, mask = prompts(rows, seed=rows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected: list[list[int]] = reference(model, ids, mask, NEW_TOKENS).tolist()
    return expected


ONE_AT_A_TIME: list[dict[str, Any]] = [
    {"gamma": 1},
    {"gamma": 12},
    {"draft_experts": 7, "expert_budget": "95%"},
    {"drafter": "ngram"},
    {"drafter": "ngram+pinned", "ngram_min": 1},
    {"draft_pool": "resident"},
    {"draft_pool": "low-bit"},
    {"draft_pool": "low-bit", "draft_bits": 2},
    {"draft_pool": "low-bit", "draft_bits": 3, "prefetch": "draft"},
    {"draft_pool": "low-bit", "draft_bits": 8, "controller": "auto"},
    {"draft_pool": "low-bit", "drafter": "ngram+pinned", "ngram_min": 1},
    {"selection": "hot-global"},
    {"selection": "hot-prefill"},
    {"selection": "random"},
    {"count_window": "last"},
    {"count_window": "accumulated"},
    {"hot_decay": 0.9},
    {"counted": "accepted"},
    {"refresh_interval": 3},
    {"max_replacements": 1},
    {"ties": "incumbent"},
    {"ties": "random"},
    {"initial": "prefill-tail"},
    {"substitution": "affinity-activation"},
    {"substitution": "random"},
    {"substitution": "best-gate"},
    {"substitution": "drop"},
    {"substitution": "merged", "merged_experts": 3, "expert_budget": "80%"},
    {"collision": "once"},
    {"prefetch": "draft"},
    {"prefetch": "draft", "prefetch_share": 0.05},
    {"ngram_max": 8, "drafter": "ngram"},
    {"controller": "auto"},
    {"seed": 9, "selection": "random"},
]


@pytest.mark.parametrize("options", ONE_AT_A_TIME, ids=str)
def test_no_option_changes_greedy_output(options: dict[str, Any], model: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3, seed=3)
    with _load(model, **{"gamma": 4, "draft_experts": 2, "expert_budget": "50%", **options}) as engine:
        for _ in range(2):  # the second call starts with a warm arena
            output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
            assert output.sequences.tolist() == _expected(model[0], 3)


@pytest.mark.parametrize("draft_experts", [4, 8])
def test_the_controller_starts_within_a_small_budget(draft_experts: int, model: tuple[Path, PreTrainedModel]) -> None:
    """Auto may pin fewer experts than asked for; the prefill, before its first choice, must too."""
    ids, mask = prompts(3, seed=3)
    with _load(model, controller="auto", gamma=4, draft_experts=draft_experts, expert_budget=7 * SLOT_BYTES) as engine:
        assert engine.arena.slots == 7
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
    assert output.sequences.tolist() == _expected(model[0], 3)


@pytest.mark.parametrize("placement", ["on-demand", "lru", "lfu", "top-fraction"])
def test_merged_slices_find_their_slots_in_the_smallest_budget(
    placement: str, model: tuple[Path, PreTrainedModel]
) -> None:
    ids, mask = prompts(3, seed=3)
    merged = {"substitution": "merged", "merged_experts": 1, "draft_experts": 1, "expert_budget": 7 * SLOT_BYTES}
    with _load(model, gamma=3, placement=placement, **merged) as engine:
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
    assert output.sequences.tolist() == _expected(model[0], 3)


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[] if family in ("qwen3", "deepseek-v3") else pytest.mark.slow) for family in FAMILIES],
)
@pytest.mark.parametrize("substitution", ["drop", "affinity-activation", "merged"])
def test_substitution_is_lossless_in_every_family(substitution: str, family: str, tmp_path: Path) -> None:
    model = build(family, tmp_path / "model")
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store", gamma=0) as engine:
        engine.calibrate(ids, mask)
    with SpecMoE.from_pretrained(
        tmp_path / "model",
        store=tmp_path / "store",
        gamma=3,
        draft_experts=1,
        substitution=substitution,
        merged_experts=2 if substitution == "merged" else 0,
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
    assert output.sequences.tolist() == reference(model, ids, mask, NEW_TOKENS).tolist()


@st.composite
def _combinations(draw: st.DrawFn) -> dict[str, Any]:
    pick = {
        "placement": ["on-demand", "lru", "lfu", "top-fraction"],
        "drafter": ["pinned", "ngram", "ngram+pinned"],
        "draft_pool": ["auto", "pinned", "resident", "low-bit"],
        "draft_bits": [2, 3, 4, 8],
        "selection": ["hot-temporal", "hot-global", "hot-prefill", "random"],
        "count_window": ["decayed", "last", "accumulated"],
        "counted": ["all", "accepted"],
        "refresh_interval": [1, 2, 5],
        "max_replacements": [None, 1, 2],
        "ties": ["lower-id", "incumbent", "random"],
        "initial": ["prefill", "prefill-tail"],
        "substitution": ["affinity", "affinity-activation", "random", "best-gate", "drop", "merged"],
        "collision": ["add", "once"],
        "prefetch": ["none", "draft"],
        "prefetch_share": [0.05, 0.5, 1.0],
        "controller": ["fixed", "auto"],
        "gamma": [1, 3, 6],
        "draft_experts": [1, 2, 4],
        "ngram_min": [1, 2],
    }
    options = {name: draw(st.sampled_from(values), label=name) for name, values in pick.items()}
    if options["substitution"] == "merged":
        options["draft_pool"] = "resident" if options["draft_pool"] == "low-bit" else options["draft_pool"]
        options["merged_experts"] = draw(st.integers(1, 4), label="merged_experts")
    return options


@pytest.mark.slow
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(options=_combinations(), rows=st.sampled_from([1, 4]), spare=st.integers(1, 8))
def test_any_combination_matches_the_reference(
    options: dict[str, Any], rows: int, spare: int, model: tuple[Path, PreTrainedModel]
) -> None:
    ids, mask = prompts(rows, seed=rows)
    merged = 3 * options.get("merged_experts", 0)
    slots = merged + min(24, 3 * options["draft_experts"] + spare)
    with _load(model, **options, expert_budget=slots * SLOT_BYTES) as engine:
        assert engine.store.slot_bytes == SLOT_BYTES
        for _ in range(2):
            output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
            assert output.sequences.tolist() == _expected(model[0], rows)
        assert engine.arena.peak_slots <= slots
