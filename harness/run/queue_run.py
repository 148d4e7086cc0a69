"""One repetition of a queue cell: the system serves all requests, and the clock notes each one's tokens."""

from __future__ import annotations

from typing import Any

from baselines.contract import Generation, Request
from baselines.queueing import Queue, serve_batches
from harness.run.repetition import Arrivals, Mark
from reports.results.record import Cell
from workloads.arrivals import times_s


def serve(
    cell: Cell, system: Any, requests: Request, arrivals: Arrivals
) -> tuple[Generation, list[Mark], dict[str, Any]]:
    """Have a system serve a queue.

    Args:
        cell: the queue's cell.
        system: the system, ready to generate.
        requests: all of them, with ``arrivals.note`` as ``on_tokens``.
        arrivals: of tokens, with the start of the queue as its own.

    Returns:
        What was generated; marks of the time spent on prompts and on decoding, without bytes read, since the two take
        turns; fields of a ``Repetition``.

    Raises:
        RuntimeError: tokens that were not reported, or before their request arrived.
    """
    arrived_s = times_s(cell.arrivals, len(requests.lengths), cell.request_seed)
    queue = Queue(requests, arrived_s, cell.batch_size)
    done = system.serve(queue) if system.card.joins_rows else serve_batches(system, queue)
    marks = [Mark(at, None) for at in (0.0, done.prefill_s, done.prefill_s + done.decode_s)]
    return done.generation, marks, figures(arrivals.seconds(done.generation.lengths()), arrived_s)


def figures(times_s: list[list[float]] | None, arrived_s: tuple[float, ...]) -> dict[str, Any]:
    """Fields of a ``Repetition``; ``times_s`` are those of every token after the start of the queue.

    Raises:
        RuntimeError: tokens that were not reported, or before their request arrived.
    """
    if times_s is None:
        raise RuntimeError("no tokens were reported: correct on_tokens")
    for request, (row, at) in enumerate(zip(times_s, arrived_s, strict=True)):
        if row[0] < at:
            raise RuntimeError(f"request {request} arrived at {at:.3f} s and had a token at {row[0]:.3f} s")
    return {
        "queue_s": max(row[-1] for row in times_s),
        "request_arrival_s": [round(at, 6) for at in arrived_s],
        "arrivals_s": [[round(one - at, 6) for one in row] for row, at in zip(times_s, arrived_s, strict=True)],
    }
