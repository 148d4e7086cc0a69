"""A budget that fills a process limit: what the limit leaves beside all other memory, and never more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baselines import fill as module
from baselines.contract import NotSupported, Request
from baselines.fill import MARGIN_BYTES, MARGIN_SHARE, Peak, fill, held_bytes
from specmoe import SpecMoE
from tests.conftest import prompts, reference

Tiny = tuple[Path, PreTrainedModel]


def _opener(tiny: Tiny, **options: object):  # type: ignore[no-untyped-def]
    tried: list[int] = []

    def opened(budget_bytes: int) -> SpecMoE:
        tried.append(budget_bytes)
        return SpecMoE.from_pretrained(
            tiny[0], store=tiny[0] / "store", expert_budget=budget_bytes, gamma=2, draft_experts=2, **options
        )

    return opened, tried


def _holding(monkeypatch: pytest.MonkeyPatch, base: int, opened: Any) -> Any:
    """``opened``, in a process that holds ``base`` bytes beside the experts of its engines."""
    engines: list[SpecMoE] = []
    monkeypatch.setattr(module, "held_bytes", lambda limit: base + sum(e.arena.peak_bytes for e in engines))

    def noted(budget_bytes: int) -> SpecMoE:
        engines.append(opened(budget_bytes))
        return engines[-1]

    return noted


def _probe() -> Request:
    return Request(*prompts(3), 12, lambda: None)


def _expected(tiny: Tiny) -> torch.Tensor:
    return reference(tiny[1], *prompts(3), 4)[:, -4:]


def test_a_roomy_limit_holds_all_experts(tiny: Tiny) -> None:
    opened, tried = _opener(tiny)
    with fill(8 << 30, _probe(), opened) as engine:
        assert engine.arena.budget_bytes == engine.store.budget_bytes(None)
        assert engine.arena.peak_bytes == 0, "nothing of the trial is left"
        assert torch.equal(engine.generate(*prompts(3), max_new_tokens=4).sequences[:, -4:], _expected(tiny))
    assert len(tried) == 1


def test_a_tight_limit_leaves_its_margin(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, left = 64_000_000_000, 150_000
    base = int(limit * (1 - MARGIN_SHARE)) - MARGIN_BYTES - left
    opened, tried = _opener(tiny)
    with fill(limit, _probe(), _holding(monkeypatch, base, opened)) as engine:
        assert engine.arena.budget_bytes == left < engine.store.budget_bytes(None)
    assert len(tried) == 1


def test_what_calls_take_where_more_experts_stay_is_seen(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, left, more = 64_000_000_000, 180_000, 40_000
    base = int(limit * (1 - MARGIN_SHARE)) - MARGIN_BYTES - left
    needed = iter([base, base + more])
    monkeypatch.setattr(module, "_base_bytes", lambda engine, probe, limit_bytes: next(needed))
    with fill(limit, _probe(), _opener(tiny)[0]) as engine:
        assert engine.arena.budget_bytes == left - more


def test_a_limit_without_room_is_refused_with_the_fix(tiny: Tiny) -> None:
    opened, _ = _opener(tiny)
    with pytest.raises(NotSupported, match="leaves too little for experts: raise process_overhead"):
        fill(1 << 20, _probe(), opened)


def test_a_limit_that_holds_less_than_the_draft_needs_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, tried = _opener(tiny)
    with pytest.raises(NotSupported, match="leaves too little for experts"):
        fill(64_000_000_000, _probe(), _holding(monkeypatch, 63_990_000_000, opened))
    assert len(tried) == 1


def test_the_peak_is_seen_although_it_is_gone_at_the_end() -> None:
    before = held_bytes(1)
    with Peak(1) as peak:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        for _ in range(200):
            block += 1
        del block
    assert peak.nbytes > before + (48 << 20)


@pytest.mark.parametrize("version", [1, 2])
def test_file_pages_that_are_not_mapped_are_free(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / ("memory/a/b" if version == 1 else "a/b")
    group.mkdir(parents=True)
    usage, mapped = ("memory.usage_in_bytes", "mapped_file") if version == 1 else ("memory.current", "file_mapped")
    (group / usage).write_text("1000\n")
    (group / "memory.stat").write_text(f"anon 500\n{mapped} 30\ninactive_file 200\nactive_file 100\n")
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
    (group / limit).write_text("8192\n")
    line = "4:memory:/a/b" if version == 1 else "0::/a/b"
    monkeypatch.setattr(module, "_LINES", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(f"3:cpu:/\n{line}\n")
    assert held_bytes(8192 + 5) == 730, "limits are whole pages"
    resident = held_bytes(4096)
    assert resident > 10_000_000, "a group with another limit counts other processes too"
    (group / "memory.stat").write_text("anon 500\n")
    assert held_bytes(8192) > 10_000_000
