"""How many cells a suite has, and about how long they take."""

from __future__ import annotations

import math

from harness.plan.experiment import Experiment, expand
from harness.plan.suite import Suite
from reports.results.record import Cell

CELL_S, SEQUENCE_S = 4.5, 0.22
"""Seconds of a cell, and more for each sequence of its batch: fitted to the committed records (2 cores, 32 to 64
tokens, the whole process with loading and warm-up); a mean of about 9 s at batch 1 to 32."""
THROTTLED = 4.0  # a cell on a throttled disk takes about this many times as long
MODEL_S = 60.0  # building a model, its store and its references


def cells(experiment: Experiment) -> list[tuple[int, bool]]:
    """(batch size or requests, whether the disk is throttled) of every cell of one round, without opening the model."""
    return [
        (settings["requests"] or settings["batch_sizes"], settings["disk_read_limit"] is not None)
        for entry, settings in expand(experiment)
        for _ in entry.variants()
    ]


def cell_s(cell: Cell) -> float:
    """Seconds of one cell on 2 cores, by the figures above; good for shares of a whole."""
    return (CELL_S + SEQUENCE_S * cell.batch_size) * (THROTTLED if cell.disk_read_limit_bytes_s else 1.0)


def estimate_s(suite: Suite) -> float:
    """Seconds a suite takes on 2 cores when nothing is built or finished yet, by the figures above."""
    total = MODEL_S * len({(e.model, e.dtype) for e in suite.experiments})
    for experiment in suite.experiments:
        for batch, throttled in cells(experiment):
            once = CELL_S + SEQUENCE_S * batch
            total += experiment.rounds * once * (THROTTLED if throttled else 1.0)
    return total


def extent(suite: Suite) -> str:
    """Number of experiments and cells, and the estimated time."""
    count = sum(len(cells(e)) * e.rounds for e in suite.experiments)
    size = f"{len(suite.experiments)} experiments, {count} cells"
    if not suite.estimated:
        return size
    minutes = math.ceil(estimate_s(suite) / 60)
    hours = f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
    return (
        f"{size}, about {hours} on 2 cores ({CELL_S} s a cell and {SEQUENCE_S} s a sequence; finished cells are kept)"
    )


def announcement(suite: Suite) -> str:
    """What is about to run, how long it takes and what the suite leaves out."""
    return "\n".join([f"suite {suite.name}: {extent(suite)}", *(f"left out: {text}" for text in suite.left_out)])
