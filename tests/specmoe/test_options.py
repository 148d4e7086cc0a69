"""Options: each is checked, none changes greedy output, and those that need a calibration say so."""

from __future__ import annotations

from functools import cache as memoise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, Qwen3MoeForCausalLM

from specmoe import SpecMoE, StoreError
from specmoe.drafting import calibration as calibrate
from specmoe.errors import OptionError
from specmoe.options import SpecOptions
from tests.conftest import FAMILIES, build, prompts, reference

NEW_TOKENS = 10
SLOT_BYTES = 4096 * -(-3 * 32 * 16 * 4 // 4096)  # one expert of the tiny model, in whole pages


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("gamma", -1, "greater than or equal to 0"),
        ("gamma", 65, "less than or equal to 64"),
        ("gamma", "many", "integer"),
        ("draft_experts", 0, "greater than or equal to 1"),
        ("placement", "magic", "'on-demand'"),
        ("drafter", "magic", "'ngram'"),
        ("draft_pool", "magic", "'resident'"),
        ("selection", "magic", "'hot-temporal'"),
        ("count_window", "magic", "'last'"),
        ("hot_decay", 1.5, "less than or equal to 1"),
        ("hot_decay", -0.1, "greater than or equal to 0"),
        ("counted", "magic", "'accepted'"),
        ("refresh_interval", 0, "greater than or equal to 1"),
        ("refresh_interval", 65, "less than or equal to 64"),
        ("max_replacements", 0, "greater than or equal to 1"),
        ("ties", "magic", "'incumbent'"),
        ("initial", "magic", "'prefill-tail'"),
        ("substitution", "magic", "'drop'"),
        ("collision", "magic", "'once'"),
        ("merged_experts", -1, "greater than or equal to 0"),
        ("prefetch", "magic", "'draft'"),
        ("prefetch_share", 0.0, "greater than 0"),
        ("prefetch_share", 1.1, "less than or equal to 1"),
        ("ngram_max", 0, "greater than or equal to 1"),
        ("ngram_max", 17, "less than or equal to 16"),
        ("ngram_min", 0, "greater than or equal to 1"),
        ("controller", "magic", "'auto'"),
        ("seed", -1, "greater than or equal to 0"),
        ("gama", 3, "no such option, use one of gamma, "),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(name: str, value: Any, mend: str) -> None:
    with pytest.raises(OptionError) as caught:
        SpecOptions.of(**{name: value})
    message = str(caught.value)
    assert f"option {name}:" in message
    assert mend in message
    assert f"(given {value!r})" in message


def test_every_option_has_a_range_that_is_checked_here() -> None:
    wrong = next(
        mark
        for mark in test_a_wrong_option_is_named_with_its_value_and_what_is_allowed.pytestmark  # type: ignore[attr-defined]
    )
    assert {name for name, _, _ in wrong.args[1]} - {"gama"} == set(SpecOptions.model_fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"substitution": "merged"}, "merged_experts go together: give both or neither"),
        ({"merged_experts": 4}, "merged_experts go together: give both or neither"),
        ({"ngram_min": 5, "ngram_max": 3}, "ngram_min 5 is above ngram_max 3"),
        ({"controller": "auto", "gamma": 0}, "needs gamma >= 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SpecOptions.of(**values)


def test_options_are_described_one_by_one() -> None:
    assert all(field.description for field in SpecOptions.model_fields.values())


def test_named_options_override_those_of_an_object(model: tuple[Path, PreTrainedModel]) -> None:
    with _load(model, options=SpecOptions.of(gamma=7, draft_experts=2), gamma=2) as engine:
        assert (engine.options.gamma, engine.options.draft_experts) == (2, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A random Qwen3-MoE whose store has a calibration: (folder, reference model)."""
    folder = tmp_path_factory.mktemp("calibrated")
    model = build("qwen3", folder)
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=0) as engine:
        engine.calibrate(*prompts(8, seed=99))
    return folder, model


def _load(model: tuple[Path, PreTrainedModel], **options: Any) -> SpecMoE:
    return SpecMoE.from_pretrained(model[0], store=model[0] / "store", **options)


@memoise
def _expected(folder: Path, rows: int) -> list[list[int]]:
    ids, mask = prompts(rows, seed=rows)
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected: list[list[int]] = reference(model, ids, mask, NEW_TOKENS).tolist()
    return expected


ONE_AT_A_TIME: list[dict[str, Any]] = [
    {"gamma": 1},
    {"gamma": 12},
    {"draft_experts": 7, "expert_budget": "95%"},
    {"drafter": "ngram"},
    {"drafter": "ngram+pinned", "ngram_min": 1},
    {"draft_pool": "resident"},
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


@pytest.mark.parametrize("family", FAMILIES)
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
        "draft_pool": ["pinned", "resident"],
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


# Calibration


@pytest.mark.parametrize(
    "options",
    [
        {"selection": "hot-global"},
        {"substitution": "affinity-activation"},
        {"substitution": "merged", "merged_experts": 2},
    ],
    ids=str,
)
def test_what_needs_a_calibration_says_so(options: dict[str, Any], tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(OptionError, match=r"needs a calibration of this model: run SpecMoE\.calibrate"):
        SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", **options)


def test_a_calibration_counts_every_pick_of_real_tokens(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    ids, mask = prompts(5, seed=1)
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        result = engine.calibrate(ids, mask)
        again = engine.generate(ids, mask, max_new_tokens=4).sequences
    assert result.tokens == int(mask.sum())
    assert [float(c.sum()) for c in result.counts] == [2 * int(mask.sum())] * 3
    assert again.tolist() == reference(tiny[1], ids, mask, 4).tolist()


def test_a_calibration_is_found_again(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        saved = engine.calibrate(*prompts(4))
        loaded = calibrate.load(engine.store)
    assert loaded is not None
    assert loaded.tokens == saved.tokens
    for one, other in zip(saved.counts + saved.distances, loaded.counts + loaded.distances, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("damage", ["empty", "cut", "no archive", "other shape", "missing array"])
def test_a_damaged_calibration_is_refused(damage: str, tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        engine.calibrate(*prompts(4))
    file = tmp_path / "store" / calibrate.FILE
    good = file.read_bytes()
    with np.load(file) as arrays:
        content = dict(arrays)
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(good[: len(good) // 2])
    elif damage == "no archive":
        file.write_bytes(b"\x00" * 100)
    elif damage == "other shape":
        np.savez(file, **{**content, "counts_0": np.zeros(5, dtype=np.float32)})
    else:
        del content["distances_1"]
        np.savez(file, **content)
    with pytest.raises(StoreError, match="calibrate again"):
        SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0)


def test_activation_affinity_is_the_distance_between_expert_outputs(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    """On the same tokens, computed here by the reference experts from the hidden states that reach them."""
    ids, mask = prompts(4, seed=2, shortest=6, longest=6)  # 24 tokens, all of them sampled
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        result = engine.calibrate(ids, mask)
    experts, seen = tiny[1].model.layers[1].mlp.experts, []
    hook = experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        tiny[1](ids, attention_mask=mask)
    hook.remove()
    outputs = []
    for expert in range(8):
        index = torch.full((len(seen[0]), 1), expert)
        with torch.inference_mode():
            outputs.append(experts(seen[0], index, torch.ones(len(seen[0]), 1)).flatten())
    distance = torch.cdist(torch.stack(outputs), torch.stack(outputs))
    assert result.distances[1].dtype == torch.float16
    torch.testing.assert_close(result.distances[1].float(), distance / distance.max(), atol=2e-3, rtol=2e-3)
