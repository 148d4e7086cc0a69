"""Rows of a queue join as others end, and the greedy output of every request is the one it gets alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import FinishedRequest, QueuedRequest, SpecMoE, SpecMoEError, UnsupportedModelError
from specmoe.model.kv_cache import RaggedLayer
from specmoe.speculate import holes_filled
from tests import families
from tests.conftest import FAMILIES, build, prompts, reference

LENGTHS = (5, 12, 1, 9, 3, 14, 2, 7, 6)
ROWS = 3


def _queue(arrivals_s: tuple[float, ...] = (0.0,) * len(LENGTHS), seed: int = 4) -> list[QueuedRequest]:
    ids, mask = prompts(len(LENGTHS), seed=seed)
    rows = [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]
    return [QueuedRequest(*facts) for facts in zip(rows, LENGTHS, arrivals_s, strict=True)]


def _alone(model: PreTrainedModel, queue: list[QueuedRequest]) -> list[list[int]]:
    """The reference's new tokens of every request in a batch of its own."""
    found = []
    for request in queue:
        ids = request.input_ids[None]
        found.append(reference(model, ids, torch.ones_like(ids), request.max_new_tokens)[0, ids.shape[1] :].tolist())
    return found


def _open(folder: Path, **choices: Any) -> SpecMoE:
    options = {"draft_experts": 2, "expert_budget": "60%", "gamma": 3} | choices
    return SpecMoE.from_pretrained(folder, store=folder / "store", dtype=torch.float32, **options)


def _served(engine: SpecMoE, queue: list[QueuedRequest], **choices: Any) -> dict[int, FinishedRequest]:
    return {done.index: done for done in engine.generate_many(queue, **{"batch_size": ROWS} | choices)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0, 4])
def test_every_family_gives_each_request_the_tokens_it_gets_alone(family: str, gamma: int, tmp_path: Path) -> None:
    model, queue = build(family, tmp_path), _queue()
    with _open(tmp_path, gamma=gamma) as engine:
        done = _served(engine, queue)
    assert [done[i].tokens for i in range(len(queue))] == _alone(model, queue)


@pytest.mark.parametrize("family", ["llama4_text+scaled-queries", "qwen3_5_moe_text", "longcat_flash", "jetmoe"])
def test_rows_of_special_layers_join_too(family: str, tmp_path: Path) -> None:
    """Chunks and scales that depend on positions, another recurrent state, experts without weights, in attention."""
    model, queue = families.build(family, tmp_path), _queue()
    with _open(tmp_path) as engine:
        done = _served(engine, queue)
    assert [done[i].tokens for i in range(len(queue))] == _alone(model, queue)


CHOICES: list[dict[str, Any]] = [
    {"controller": "auto", "gamma": 6, "draft_pool": "resident", "prefetch": "draft"},
    {"draft_pool": "low-bit", "draft_bits": 4},
    {"drafter": "ngram+pinned"},
    {"counted": "accepted", "initial": "prefill-tail"},
    {"gamma": 0, "placement": "on-demand"},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_options_change_no_token(choices: dict[str, Any], tiny: tuple[Path, PreTrainedModel]) -> None:
    queue = _queue()
    with _open(tiny[0], **choices) as engine:
        for least_free in (1, 2):
            done = _served(engine, queue, least_free=least_free)
            assert [done[i].tokens for i in range(len(queue))] == _alone(tiny[1], queue)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    families.build("switch_transformers", tmp_path)
    with _open(tmp_path) as engine, pytest.raises(UnsupportedModelError, match="rows cannot join a batch"):
        engine.generate_many(_queue(), batch_size=2)


def test_rows_join_as_soon_as_others_end(tiny: tuple[Path, PreTrainedModel]) -> None:
    queue = _queue()
    with _open(tiny[0], gamma=0) as engine:
        stream = engine.generate_many(queue, batch_size=ROWS)
        order = [done.index for done in stream]
    rows = [cycle.rows for cycle in stream.stats.cycles]
    assert order != sorted(order)
    assert max(rows) == ROWS
    assert rows.count(ROWS) >= len(rows) - 7, "rows are missing only at the end"
    assert stream.stats.new_tokens == sum(LENGTHS)
    assert stream.stats.decode_tokens == sum(LENGTHS) - len(LENGTHS)
    assert sum(rows) == stream.stats.row_steps
    assert stream.stats.prompt_tokens == sum(len(request.input_ids) for request in queue)


def test_new_rows_wait_until_enough_are_free(tiny: tuple[Path, PreTrainedModel]) -> None:
    with _open(tiny[0], gamma=0) as engine:
        stream = engine.generate_many(_queue(), batch_size=ROWS, least_free=ROWS)
        starts = sorted(done.started_s for done in stream)
    assert [starts[i] == starts[i + 1] for i in range(len(starts) - 1)] == [True, True, False] * 2 + [True, True]


def test_requests_start_after_they_arrive_and_times_are_in_order(tiny: tuple[Path, PreTrainedModel]) -> None:
    queue = _queue((0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.6, 0.0, 0.0))
    with _open(tiny[0]) as engine:
        began = time.perf_counter()
        done = _served(engine, queue)
        took = time.perf_counter() - began
    assert [done[i].tokens for i in range(len(queue))] == _alone(tiny[1], queue)
    for index, request in enumerate(queue):
        one = done[index]
        assert one.arrival_s == request.arrival_s <= one.started_s <= one.first_token_s <= one.finished_s <= took


def test_tokens_are_reported_as_they_are_final_and_a_stop_token_ends_a_request(
    tiny: tuple[Path, PreTrainedModel],
) -> None:
    queue, seen = _queue(), {i: [] for i in range(len(LENGTHS))}  # type: dict[int, list[int]]
    alone = _alone(tiny[1], queue)
    stop = alone[1][3]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in alone]
    with _open(tiny[0]) as engine:
        done = _served(engine, queue, eos_token_id=stop, on_tokens=lambda row, new: seen[row].extend(new))
    assert [done[i].tokens for i in range(len(queue))] == expected
    assert [seen[i] for i in range(len(queue))] == expected


def test_the_engine_is_busy_until_the_last_request_or_close(tiny: tuple[Path, PreTrainedModel]) -> None:
    queue = _queue()
    with _open(tiny[0]) as engine:
        with engine.generate_many(queue, batch_size=2) as stream:
            next(stream)
            assert not torch.is_inference_mode_enabled()
            with pytest.raises(SpecMoEError, match="already generating"):
                engine.generate(queue[0].input_ids[None], max_new_tokens=2)
        done = _served(engine, queue)
    assert [done[i].tokens for i in range(len(queue))] == _alone(tiny[1], queue)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "1 <= least_free <= batch_size"),
        ({"least_free": 4}, ValueError, "1 <= least_free <= batch_size"),
        ({"requests": []}, ValueError, "queue is empty"),
        ({"requests": [QueuedRequest(torch.tensor([3, 4]), 0)]}, ValueError, "at least 1 new token"),
        ({"requests": [QueuedRequest(torch.tensor([], dtype=torch.long), 2)]}, ValueError, "is empty"),
        ({"requests": [QueuedRequest(torch.tensor([3]), 2, -1.0)]}, ValueError, "arrival_s is -1.0"),
        ({"no_setting": 1}, ValueError, "no setting 'no_setting'"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_is_generated(
    changes: dict[str, Any], error: type[Exception], message: str, tiny: tuple[Path, PreTrainedModel]
) -> None:
    with _open(tiny[0]) as engine, pytest.raises(error, match=message):
        engine.generate_many(**{"requests": _queue(), "batch_size": ROWS} | changes)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_the_last_rows_take_the_places_of_those_that_leave(unfinished: list[bool]) -> None:
    kept = holes_filled(torch.tensor(unfinished)).tolist()
    assert sorted(kept) == [i for i, active in enumerate(unfinished) if active]
    assert sum(place != row for place, row in enumerate(kept)) == unfinished[: len(kept)].count(False)


def test_memory_of_rows_that_left_is_used_again() -> None:
    from specmoe.model.kv_cache import RowLengths

    def layer(values: list[float], most_rows: int | None = None) -> RaggedLayer:
        lengths = RowLengths(len(values), torch.device("cpu"))
        made = RaggedLayer(lengths, 4, most_rows)
        if values:
            new = torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 3)
            made.update(new, new)
        return made

    pool = layer([], most_rows=3)
    pool.join(layer([1.0, 2.0, 3.0]))
    assert pool.keys is not None
    memory = pool.keys.data_ptr()
    pool.select(holes_filled(torch.tensor([False, True, True])))
    pool.join(layer([4.0]))
    assert pool.keys[:, 0, 0, 0].tolist() == [3.0, 2.0, 4.0]
    pool.select(torch.tensor([], dtype=torch.long))
    pool.join(layer([5.0, 6.0]))
    assert pool.keys[:, 0, 1, 0].tolist() == [5.0, 6.0]
    assert pool.keys.data_ptr() == memory
