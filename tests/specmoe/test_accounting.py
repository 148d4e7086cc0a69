"""The bytes, hits and tokens that the engine reports are what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from harness.machine.proc import kernel_read_bytes
from specmoe import SpecMoE
from specmoe.offload.sources import DiskSource, Extended
from tests.conftest import prompts


def _engine(tiny: tuple[Path, PreTrainedModel], **options: object) -> SpecMoE:
    return SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", **options)  # type: ignore[arg-type]


def test_on_demand_moves_every_distinct_expert_of_every_pass(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    with _engine(tiny, gamma=0, placement="on-demand", expert_budget="20%") as engine:
        stats = engine.generate(ids, mask, max_new_tokens=6).stats
        stride = engine.store.slot_bytes
    assert stats.decode.experts.hits == 0
    assert stats.decode.link.moved_bytes == stats.decode.experts.requests * stride
    assert stats.target_passes == 5
    layers, top_k = 3, 2
    assert 5 * layers * top_k <= stats.decode.experts.requests <= 5 * layers * top_k * 2


def test_a_budget_of_everything_moves_each_expert_at_most_once(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    with _engine(tiny, gamma=0, placement="lru") as engine:
        for _ in range(3):
            engine.generate(ids, mask, max_new_tokens=8)
        assert engine.link.stats.moved_bytes <= engine.store.total_experts * engine.store.slot_bytes


def test_drafting_moves_no_byte(tiny: tuple[Path, PreTrainedModel]) -> None:
    """The pass that refreshes the hot set brings it: bytes equal the misses of target passes exactly."""
    ids, mask = prompts(3)
    with _engine(tiny, gamma=4, draft_experts=2, placement="on-demand", expert_budget="40%") as engine:
        stats = engine.generate(ids, mask, max_new_tokens=20).stats
        stride = engine.store.slot_bytes
    misses = stats.decode.experts.requests - stats.decode.experts.hits
    assert stats.decode.link.moved_bytes == misses * stride
    assert sum(stats.drafted_by_position) > 0


def test_counts_of_tokens_add_up(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    with _engine(tiny, gamma=3, draft_experts=3) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=15).stats
    assert stats.new_tokens == 3 * 15
    assert stats.decode_tokens == 3 * 14
    assert stats.prompt_tokens == int(mask.sum())
    assert stats.tokens_per_step == stats.decode_tokens / stats.row_steps
    assert all(a <= d for a, d in zip(stats.accepted_by_position, stats.drafted_by_position, strict=True))
    assert stats.accepted_by_position == sorted(stats.accepted_by_position, reverse=True)


def test_a_full_set_of_draft_experts_is_always_accepted(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    with _engine(tiny, gamma=4, draft_experts=8) as engine:
        engine.generate(ids, mask, max_new_tokens=40)  # until every expert has been seen
        pinned = [len(engine._state.residency.slots.pinned(p)) for p in range(3)]
        stats = engine.generate(ids, mask, max_new_tokens=21).stats
    if pinned == [8, 8, 8]:
        assert stats.acceptance_rate == 1.0
        assert stats.tokens_per_step == 5.0


def test_the_first_token_is_reported_once_before_decoding(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    seen: list[int] = []
    with _engine(tiny, gamma=0) as engine:
        engine.generate(
            ids, mask, max_new_tokens=5, on_first_token=lambda: seen.append(engine._state.residency.stats.requests)
        )
        assert len(seen) == 1
        assert 0 < seen[0] < engine._state.residency.stats.requests


def test_finished_rows_ask_for_no_expert(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2, seed=3)
    with _engine(tiny, gamma=0, placement="on-demand") as engine:
        first = engine.generate(ids, mask, max_new_tokens=12).sequences[0, ids.shape[1] :]
        stop = int(first[1])
        both = engine.generate(ids, mask, max_new_tokens=12, eos_token_id=None).stats
        one = engine.generate(ids, mask, max_new_tokens=12, eos_token_id=stop).stats
    assert one.decode.experts.requests < both.decode.experts.requests


@pytest.mark.parametrize("rows", [1, 5])
def test_link_bytes_agree_with_the_kernels(tiny: tuple[Path, PreTrainedModel], rows: int) -> None:
    ids, mask = prompts(rows)
    with _engine(tiny, gamma=2, draft_experts=2, draft_pool="pinned", expert_budget="40%") as engine:
        assert isinstance(engine.link._source, Extended)
        source = engine.link._source._base
        assert isinstance(source, DiskSource)
        if not source.direct or kernel_read_bytes() is None:
            pytest.skip("file system refuses O_DIRECT, or no /proc/PID/io: the page cache hides reads")
        engine.generate(ids, mask, max_new_tokens=4)
        before, moved = kernel_read_bytes(), engine.link.stats.moved_bytes
        engine.generate(ids, mask, max_new_tokens=20)
        after = kernel_read_bytes()
        assert after is not None
        assert before is not None
        assert engine.link.stats.moved_bytes - moved == pytest.approx(after - before, rel=0.1)


def test_the_host_tier_gives_the_same_tokens_as_the_disk_tier(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    sequences = []
    for tier in ("disk", "host"):
        with _engine(tiny, gamma=3, draft_experts=2, expert_budget="50%", slow_tier=tier) as engine:
            output = engine.generate(ids, mask, max_new_tokens=10)
            sequences.append(output.sequences.tolist())
            assert output.stats.decode.link.moved_bytes > 0
    assert sequences[0] == sequences[1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tier", ["disk", "host", "paced:10GB/s"])
@pytest.mark.parametrize(
    "options",
    [
        {"draft_experts": 2},
        {"draft_experts": 2, "draft_pool": "resident", "prefetch": "draft", "controller": "auto"},
        {"draft_pool": "low-bit"},
        {"draft_experts": 2, "placement": "on-demand", "drafter": "ngram+pinned", "substitution": "best-gate"},
    ],
    ids=str,
)
def test_cuda_gives_the_same_tokens_as_the_cpu(
    tiny: tuple[Path, PreTrainedModel], options: dict[str, Any], tier: str
) -> None:
    ids, mask = prompts(3)
    sequences = []
    for device in ("cpu", "cuda"):
        with _engine(tiny, gamma=3, expert_budget="50%", slow_tier=tier, device=device, **options) as engine:
            sequences.append(engine.generate(ids, mask, max_new_tokens=10).sequences.tolist())
    assert sequences[0] == sequences[1]
