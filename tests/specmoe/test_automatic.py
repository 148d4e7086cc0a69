"""``controller="auto"`` splits the budget at load, says why, and changes no output; what the caller names is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from specmoe import SpecMoE, automatic
from specmoe.control.split import Cost, Rates
from specmoe.drafting.agreement import Agreement
from specmoe.drafting.low_bit import BITS, made
from specmoe.probe import Probed
from tests.conftest import build, prompts, reference

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A random model whose store has a calibration."""
    folder = tmp_path_factory.mktemp("automatic")
    model = build("qwen3", folder)
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=0) as engine:
        engine.calibrate(*prompts(6, seed=5))
    return folder, model


def _load(folder: Path, path: Path | None = None, **choices: Any) -> SpecMoE:
    options = {"controller": "auto", "gamma": 6, "prefetch": "draft", "expert_budget": "50%", **choices}
    return SpecMoE.from_pretrained(path or folder, store=folder / "store", **options)


@pytest.mark.parametrize("budget", ["20%", "50%", "100%"])
def test_the_automatic_setting_changes_no_output(budget: str, calibrated: tuple[Path, PreTrainedModel]) -> None:
    folder, model = calibrated
    ids, mask = prompts(3)
    with _load(folder, expert_budget=budget, expected_rows=3) as engine:
        for _ in range(2):
            output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
            assert output.sequences.tolist() == reference(model, ids, mask, NEW_TOKENS).tolist()


def test_the_reason_and_the_memory_are_in_the_statistics(calibrated: tuple[Path, PreTrainedModel]) -> None:
    with _load(calibrated[0], expected_rows=3) as engine:
        setting = engine.generate(*prompts(3), max_new_tokens=4).stats.setting
        assert engine.options.draft_pool == setting.pool
        assert setting.slots == engine.arena.slots
    assert setting.pool != "auto"
    assert "tok/s" in setting.reason
    assert "expected for 3 rows with a link of" in setting.reason
    assert "agreement measured by the calibration" in setting.reason


def test_without_a_calibration_the_reason_says_that_agreement_is_assumed(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    choices = {"controller": "auto", "gamma": 4, "expert_budget": "50%"}
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", **choices) as engine:
        setting = engine.generate(*prompts(2), max_new_tokens=4).stats.setting
    assert "agreement assumed: not calibrated" in setting.reason
    assert "expected for 8 rows" in setting.reason


@pytest.mark.parametrize("pool", ["pinned", "resident"])
def test_a_pool_that_is_named_is_kept(pool: str, calibrated: tuple[Path, PreTrainedModel]) -> None:
    with _load(calibrated[0], draft_pool=pool) as engine:
        assert engine.options.draft_pool == pool
        assert engine.generate(*prompts(2), max_new_tokens=4).stats.setting.reason == "given by the options"


def test_with_a_fixed_controller_the_pinned_experts_draft(calibrated: tuple[Path, PreTrainedModel]) -> None:
    with _load(calibrated[0], controller="fixed", expert_budget="75%") as engine:
        assert engine.options.draft_pool == "pinned"


@pytest.mark.parametrize("others", [{"drafter": "ngram"}, {"substitution": "merged", "merged_experts": 2}], ids=str)
def test_drafts_that_need_no_split_get_none(others: dict[str, Any], calibrated: tuple[Path, PreTrainedModel]) -> None:
    with _load(calibrated[0], **others) as engine:
        assert engine.options.draft_pool == "pinned"
        assert engine.link.snapshot().moved_bytes == 0


@pytest.mark.parametrize("rows", [3, 5])
def test_copies_draft_where_they_promise_most(
    rows: int, tiny: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tiny
    ids, mask = prompts(rows)
    slow = Rates(1e5, Cost(1e-4, 1e-6), Cost(1e-4, 1e-6), dict.fromkeys(BITS, Cost(1e-5, 1e-6)))
    monkeypatch.setattr(automatic, "probe", lambda *_: Probed(slow, [2.0, 2.0, 2.0]))
    monkeypatch.setattr(automatic, "ASSUMED", Agreement({0.5: 0.1, 0.9: 0.1}, {4: 0.98, 8: 0.99}, "assumed"))
    with _load(tmp_path, path, expert_budget="60%", expected_rows=rows) as engine:
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
        assert output.sequences.tolist() == reference(model, ids, mask, NEW_TOKENS).tolist()
        setting = output.stats.setting
        assert engine.options.draft_pool == setting.pool == "low-bit"
        assert setting.copies_bytes + setting.slots * engine.store.slot_bytes <= engine.arena.budget_bytes
        assert setting.copies_bytes > 0
        assert f"{setting.bits}-bit copies: " in setting.reason
        assert made(engine.store) == [setting.bits]
        engine.resize("45%")
        assert engine.options.draft_pool == "resident"  # no copies fit
        assert engine.generate(ids, mask, max_new_tokens=4).stats.setting.bits is None


def test_copies_that_have_been_made_are_those_on_offer(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        engine.make_copies([8])
    with _load(tmp_path, path=tiny[0]) as engine:
        reason = engine.generate(*prompts(2), max_new_tokens=4).stats.setting.reason
    assert "8-bit copies" in reason
    assert "4-bit copies" not in reason


def test_measuring_leaves_no_expert_on_the_device(calibrated: tuple[Path, PreTrainedModel]) -> None:
    with _load(calibrated[0]) as engine:
        assert engine.link.snapshot().moved_bytes > 0
        assert engine.arena.free_slots == engine.arena.slots


def test_a_number_of_rows_below_one_is_refused_before_anything_is_written(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="expected_rows is 0: give a number from 1 on, or None"):
        SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", expected_rows=0)
    assert not (tmp_path / "store").exists()
