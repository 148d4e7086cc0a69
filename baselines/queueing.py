"""A queue of requests for a system: what it gets, what it returns, and static batches for systems that serve none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from baselines.contract import Generation, Request
from baselines.counters import Counters


@dataclass(frozen=True)
class Queue:
    """Requests, of which a system may decode ``batch_size`` at once.

    The rows of ``requests`` are its prompts with their lengths; request b may be started ``arrivals_s[b]`` seconds
    (ascending) after the call.  ``requests.on_tokens`` must be called as soon as tokens are final;
    ``requests.on_prefill_done`` never is.
    """

    requests: Request
    arrivals_s: tuple[float, ...]
    batch_size: int

    def part(self, start: int, stop: int, on_prefill_done: Callable[[], None]) -> Request:
        """A batch of the requests from ``start`` to before ``stop``, without padding that all of them have."""
        asked = self.requests
        mask = asked.attention_mask[start:stop]
        first = int(mask.any(dim=0).long().argmax())
        lengths = asked.lengths[start:stop]
        return Request(
            asked.input_ids[start:stop, first:],
            mask[:, first:],
            max(lengths),
            on_prefill_done,
            lengths if len(set(lengths)) > 1 else None,
            lambda row, count: asked.on_tokens(start + row, count),
            asked.decoding,
        )


@dataclass(frozen=True)
class Served:
    """The new tokens of every request, in the order of the queue; time spent on prompts and on decoding, in seconds."""

    generation: Generation
    prefill_s: float
    decode_s: float


class Generates(Protocol):
    """What ``serve_batches`` needs of a system."""

    def generate(self, request: Request) -> Generation: ...


def serve_batches(system: Generates, queue: Queue) -> Served:
    """Static batches in order: whenever the system is free, the requests that have arrived, as many as fit.

    A batch ends with its longest row; no request joins one under way.  Tokens that the system does not report count
    when their batch ends.
    """
    began, done, count = time.perf_counter(), 0, len(queue.arrivals_s)
    parts: list[Generation] = []
    steps: list[int] = []
    prefill_s = decode_s = 0.0
    while done < count:
        now = time.perf_counter() - began
        if queue.arrivals_s[done] > now:
            time.sleep(queue.arrivals_s[done] - now)
            now = time.perf_counter() - began
        arrived = sum(arrival <= now for arrival in queue.arrivals_s[done : done + queue.batch_size])
        stop = done + max(1, arrived)
        reporter = _Reporter(queue, done, stop)
        started = time.perf_counter()
        part = system.generate(reporter.request)
        ended = time.perf_counter()
        reporter.finish()
        first = reporter.first_token_at or ended
        prefill_s, decode_s = prefill_s + first - started, decode_s + ended - first
        parts.append(part)
        steps.append(reporter.request.new_tokens - 1)
        done = stop
    return Served(_together(parts, steps), prefill_s, decode_s)


class _Reporter:
    """Reports the tokens of one batch that the system itself does not."""

    def __init__(self, queue: Queue, start: int, stop: int) -> None:
        self._given = [0] * (stop - start)
        self.first_token_at: float | None = None
        asked = queue.part(start, stop, self._first)
        self._report, self._lengths = asked.on_tokens, asked.lengths
        self.request = replace(asked, on_tokens=self._count)

    def _count(self, row: int, count: int) -> None:
        self._given[row] += count
        self._report(row, count)

    def _first(self) -> None:
        self.first_token_at = time.perf_counter()

    def finish(self) -> None:
        """The batch has ended: every row has its tokens."""
        for row, (given, length) in enumerate(zip(self._given, self._lengths, strict=True)):
            if given < length:
                self._count(row, length - given)


def _together(parts: Sequence[Generation], steps: Sequence[int]) -> Generation:
    """Batches one after another; counters are added up, the largest of peaks."""
    rows = [torch.tensor(row, dtype=torch.long) for part in parts for row in part.rows()]
    counts = [count for part in parts for count in part.counts or ()] or None
    return Generation(rows, added([part.counters for part in parts], steps), counts)


_LARGEST = {"peak_expert_bytes", "affinity_table_bytes", "chosen_budget_bytes"}


def added(parts: Sequence[Counters], steps: Sequence[int]) -> Counters:
    """The counters of calls one after another; ``steps`` are their decode steps where a system counts none.

    A counter that one of the calls lacks is None.
    """
    known = [part.decode_steps or count for part, count in zip(parts, steps, strict=True)]
    total = Counters(decode_steps=sum(known))
    for name in type(total).model_fields:
        values = [getattr(part, name) for part in parts]
        if name == "decode_steps" or any(value is None for value in values):
            continue
        setattr(total, name, _added(name, values, known))
    return total


def _added(name: str, values: list, steps: Sequence[int]) -> object:
    if name == "tokens_per_step":
        return sum(value * count for value, count in zip(values, steps, strict=True)) / max(1, sum(steps))
    if name in _LARGEST:
        return max(values)
    first = values[0]
    if isinstance(first, int | float):
        return sum(values)
    if name == "phases_s":
        return {key: sum(value.get(key, 0.0) for value in values) for key in first}
    if name.endswith("_by_position"):
        return [sum(at) for at in zip(*values, strict=False)]
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    return first
