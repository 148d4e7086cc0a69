"""Systems that cannot join rows get a queue in static batches, in order, and every token is reported once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from baselines.contract import Generation, Request
from baselines.counters import Counters
from baselines.queueing import Queue, added, serve_batches
from harness.run.queue_run import figures
from harness.run.repetition import Arrivals

LENGTHS = (3, 2, 4, 2, 5)


class Echo:
    """Repeats the last prompt token; notes its batches."""

    def __init__(self, reports: bool) -> None:
        self.batches: list[list[int]] = []
        self._reports = reports

    def generate(self, request: Request) -> Generation:
        ids, mask = request.input_ids, request.attention_mask
        assert bool(mask[:, 0].any()), "no column is padding alone"
        self.batches.append([int(row[keep.bool()][0]) for row, keep in zip(ids, mask, strict=True)])
        for row in range(len(ids)):
            if self._reports:
                request.on_tokens(row, 1)
        request.on_prefill_done()
        for row, length in enumerate(request.lengths):
            if self._reports:
                request.on_tokens(row, length - 1)
        rows = [torch.full((length,), int(ids[row, -1])) for row, length in enumerate(request.lengths)]
        return Generation(rows, Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0))


def _queue(arrivals_s: tuple[float, ...], on_tokens: Callable[[int, int], None], batch_size: int = 2) -> Queue:
    """Prompts of 1, 2, ... tokens, which begin with 10, 11, ... and end with 20, 21, ..."""
    rows = len(LENGTHS)
    ids, mask = torch.zeros(rows, rows, dtype=torch.long), torch.zeros(rows, rows, dtype=torch.long)
    for row in range(rows):
        mask[row, rows - 1 - row :] = 1
        ids[row, rows - 1 - row], ids[row, -1] = 10 + row, 20 + row
    request = Request(ids, mask, max(LENGTHS), lambda: None, LENGTHS, on_tokens)
    return Queue(request, arrivals_s, batch_size)


@pytest.mark.parametrize("reports", [True, False])
def test_batches_are_made_in_order_and_every_token_is_reported_once(reports: bool) -> None:
    given, system = [0] * len(LENGTHS), Echo(reports)

    def count(request: int, tokens: int) -> None:
        given[request] += tokens

    served = serve_batches(system, _queue((0.0,) * 5, count))
    assert system.batches == [[20, 11], [12, 13], [14]]
    assert given == list(LENGTHS)
    assert served.generation.rows() == [[20 + row] * length for row, length in enumerate(LENGTHS)]
    assert served.generation.counters.decode_steps == 2 + 3 + 4
    assert served.generation.counters.tokens_per_step == 1.0
    assert served.prefill_s >= 0 <= served.decode_s


def test_a_batch_holds_what_has_arrived_and_nothing_starts_before_it_arrives() -> None:
    arrived = (0.0, 0.05, 0.05, 0.2, 0.2)
    arrivals, system = Arrivals(len(LENGTHS)), Echo(True)
    serve_batches(system, _queue(arrived, arrivals.note))
    assert system.batches == [[20], [11, 12], [13, 14]]
    found = figures(arrivals.seconds(LENGTHS), arrived)
    assert found["request_arrival_s"] == list(arrived)
    assert 0.2 <= found["queue_s"] < 5
    assert [len(row) for row in found["arrivals_s"]] == list(LENGTHS)
    assert min(row[0] for row in found["arrivals_s"]) >= 0


def test_a_queue_without_tokens_or_with_one_before_its_arrival_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no tokens were reported"):
        figures(None, (0.0,))
    with pytest.raises(RuntimeError, match=r"request 1 arrived at 60\.000 s and had a token at 2\.000 s"):
        figures([[1.0], [2.0]], (0.0, 60.0))


def test_counters_of_batches_are_added_up() -> None:
    facts: list[dict[str, Any]] = [
        {"decode_link_bytes": 10, "peak_expert_bytes": 7, "accepted_by_position": [3, 1], "phases_s": {"draft": 1.0}},
        {"decode_link_bytes": 5, "peak_expert_bytes": 9, "accepted_by_position": [2, 2], "phases_s": {"draft": 0.5}},
    ]
    parts = [
        Counters(decode_steps=n, tokens_per_step=t, **f) for n, t, f in zip((1, 3), (2.0, 4.0), facts, strict=True)
    ]
    parts[0].expert_hits = 4  # the other counts none
    total = added(parts, [0, 0])
    assert (total.decode_steps, total.tokens_per_step) == (4, 3.5)
    assert (total.decode_link_bytes, total.peak_expert_bytes, total.expert_hits) == (15, 9, None)
    assert (total.accepted_by_position, total.phases_s) == ([5, 3], {"draft": 1.5})


def test_what_a_server_says_of_itself_is_not_added_up() -> None:
    facts = {"server": "a server 1.2", "compared": "token ids from the server"}
    parts = [Counters(decode_steps=2, server=facts, phases_s={"verify": 0.5}) for _ in range(2)]
    total = added(parts, [2, 2])
    assert (total.server, total.phases_s) == (facts, {"verify": 1.0})
