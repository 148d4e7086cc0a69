"""A queue of requests: rows that end make room for new ones, so that the batch stays full.

Between two cycles the requests that have arrived take the free rows: one pass over their prompts fills a cache of their
own, which joins the cache of the batch.  Every row depends on its own tokens alone, so a request's greedy output is the
one it gets alone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel

from specmoe.batch import OnTokens, Rows, Run
from specmoe.control.controller import Controller
from specmoe.drafters import Drafter
from specmoe.errors import UnsupportedModelError
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.positions import check_positions
from specmoe.request import Request
from specmoe.speculate import advance, drop_finished, prefill
from specmoe.stats import GenerationStats


@dataclass(frozen=True)
class QueuedRequest:
    """A prompt (long [S], without padding), its most new tokens, and when it arrives: seconds after the call."""

    input_ids: torch.Tensor
    max_new_tokens: int
    arrival_s: float = 0.0


@dataclass(frozen=True)
class FinishedRequest:
    """One answer: the request's place in the queue and its new tokens, a stop token included.

    Times are seconds after the call: when the request arrived, took a row, had its first token and its last.
    """

    index: int
    tokens: list[int]
    arrival_s: float
    started_s: float
    first_token_s: float
    finished_s: float


class FinishedRequests(Iterator[FinishedRequest]):
    """Requests in the order in which they end; ``stats`` grow until the last one has.

    The engine is busy from the first ``next`` until the last request has ended or ``close`` is called.
    """

    def __init__(self, source: Generator[FinishedRequest, None, None], stats: GenerationStats) -> None:
        self._source, self.stats = source, stats

    def __next__(self) -> FinishedRequest:
        return next(self._source)

    def close(self) -> None:
        """Give up the requests that have not ended."""
        self._source.close()

    def __enter__(self) -> FinishedRequests:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass
class Server:
    """Generates for the requests of one call.

    ``run`` has an empty cache with memory for ``run.most_rows`` rows.  New rows take part once ``least_free`` rows are
    free or none is left, so that one pass over prompts serves several.
    """

    run: Run
    stats: GenerationStats
    requests: Sequence[Request]
    arrivals_s: Sequence[float]
    drafter: Drafter
    controller: Controller
    least_free: int
    on_tokens: OnTokens | None = None
    _started_s: dict[int, float] = field(default_factory=dict)
    _first_s: dict[int, float] = field(default_factory=dict)

    def serve(self) -> Iterator[FinishedRequest]:
        """Every request as it ends."""
        began, most = time.perf_counter(), self.run.most_rows or 1
        waiting = deque(sorted(range(len(self.requests)), key=lambda i: self.arrivals_s[i]))
        rows = self._no_rows()
        while waiting or len(rows):
            now = time.perf_counter() - began
            free = most - len(rows)
            joining: list[int] = []
            if free >= self.least_free or not len(rows):
                while waiting and len(joining) < free and self.arrivals_s[waiting[0]] <= now:
                    joining.append(waiting.popleft())
            if joining:
                self._started_s |= dict.fromkeys(joining, now)
                before = [*rows.index.tolist(), *joining]
                with self.run.meter.phase(self.stats.prefill):
                    rows = self._join(rows, joining)
                self._first_s |= dict.fromkeys(joining, time.perf_counter() - began)
                rows = drop_finished(self.run, rows)
            elif not len(rows):
                time.sleep(self.arrivals_s[waiting[0]] - now)
                continue
            else:
                before = rows.index.tolist()
                with self.run.meter.phase(self.stats.decode):
                    rows = advance(self.run, rows, self.drafter, self.controller)
            active, now = set(rows.index.tolist()), time.perf_counter() - began
            for index in [i for i in before if i not in active]:
                yield self._finished(rows, index, now)

    def _no_rows(self) -> Rows:
        nothing = torch.empty(0, dtype=torch.long, device=self.run.model.device)
        texts = [request.prompts[0].tolist() for request in self.requests]
        return Rows(nothing, nothing, nothing, texts, self.requests[0].limits.stop, self.on_tokens)

    def _join(self, rows: Rows, joining: list[int]) -> Rows:
        """The rows, and those of new requests with their first tokens."""
        prompts = [self.requests[i].prompts[0] for i in joining]
        device, config = self.run.model.device, self.run.model.config.get_text_config()
        own = RaggedCache(config, len(joining), max(map(len, prompts)), device)
        first = prefill(replace(self.run, cache=own), prompts)
        if not isinstance(self.run.cache, RaggedCache):
            raise TypeError("rows join a ragged cache only")
        self.run.cache.join(own)
        tokens = first.tolist()
        limits = [self.requests[i].limits for i in joining]
        left = [0 if t in limit.stop else limit.new_tokens[0] - 1 for t, limit in zip(tokens, limits, strict=True)]
        new = replace(rows, last=first, remaining=torch.tensor(left).to(first), index=torch.tensor(joining).to(first))
        for row, token in enumerate(tokens):
            new.append(row, [token])
        return rows.join(new)

    def _finished(self, rows: Rows, index: int, now: float) -> FinishedRequest:
        tokens = rows.tokens[index][len(self.requests[index].prompts[0]) :]
        self.stats.new_tokens += len(tokens)
        started, first = self._started_s.pop(index), self._first_s.pop(index)
        return FinishedRequest(index, tokens, self.arrivals_s[index], started, first, now)


def check(
    model: PreTrainedModel, queued: Sequence[QueuedRequest], settings: dict[str, Any], seed: int
) -> list[Request]:
    """The requests of a queue, checked one by one as ``generate`` does it, with merged generation ``settings``.

    Raises:
        UnsupportedModelError: an encoder-decoder, whose source texts are padded to one length for a whole call.
        ValueError: no request, a negative arrival time, or as ``generate``.
        OptionError: as ``generate``.
    """
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{model.config.model_type} is an encoder-decoder, whose rows cannot join a batch: call generate for one "
            "batch after another"
        )
    if not queued:
        raise ValueError("the queue is empty: give at least one request")
    found = []
    for request in queued:
        if not 0 <= request.arrival_s < math.inf:
            raise ValueError(f"arrival_s is {request.arrival_s}: use seconds after the call, 0 or more")
        ids = request.input_ids[None]
        limits = {"max_new_tokens": request.max_new_tokens, "max_length": None}
        found.append(Request.of(model, ids, torch.ones_like(ids), settings | limits, seed))
    return found


def check_rows(batch_size: int, least_free: int) -> None:
    """Check how many rows a queue may have, and how many must be free before new ones join.

    Raises:
        ValueError: out of range.
    """
    if not 1 <= least_free <= batch_size:
        raise ValueError(f"batch_size {batch_size}, least_free {least_free}: use 1 <= least_free <= batch_size")


def open_cache(model: PreTrainedModel, requests: Sequence[Request], gamma: int, most_rows: int) -> RaggedCache:
    """An empty cache for at most ``most_rows`` of the requests at once, each with ``gamma`` drafted tokens.

    Raises:
        UnsupportedModelError: positions that change with length, and a request that reaches the change.
    """
    config = model.config.get_text_config()
    lengths = [(len(r.prompts[0]), len(r.prompts[0]) + r.limits.new_tokens[0] + gamma + 1) for r in requests]
    for prompt, longest in lengths:
        check_positions(config, prompt, longest)
    return RaggedCache(config, 0, max(longest for _, longest in lengths), model.device, most_rows=most_rows)
