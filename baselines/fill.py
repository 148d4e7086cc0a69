"""The expert budget that fills a process limit: what the limit leaves beside all other memory, measured by a trial."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from baselines.contract import NotSupported, Request
from specmoe import BudgetError, SpecMoE
from specmoe.generation import plain_settings

TRIALS = (0.25, 0.5, 0.75)
"""Budgets of trials, as shares of the memory that is free before; the first that holds the draft is used."""
SECOND_TRIAL = 0.85
"""Budget of a second trial, as a share of what the first leaves: where more experts stay, calls take more beside."""
TRIAL_COMMITS = 3
"""The prefill and two cycles of a draft and its verification: then every buffer has had its size."""
TRIAL_CALLS = 3
"""A later call finds the heap in pieces that do not fit, and grows it."""
MARGIN_SHARE, MARGIN_BYTES = 0.01, 24_000_000
"""Of the limit and on top: for page tables, for what falls between two samples, and for memory that is in pieces."""
LARGE_BYTES = 1 << 20
"""Buffers from this size on go back to the system when they are freed: on the heap they leave gaps that others miss."""
_M_MMAP_THRESHOLD = -3  # of mallopt
_PERIOD_S = 0.002
_ROOT, _LINES = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Enough(Exception):
    """Ends a trial."""


def fill(limit_bytes: int, probe: Request, open_engine: Callable[[int], SpecMoE]) -> SpecMoE:
    """An engine with as many bytes for experts as a process of ``limit_bytes`` can hold beside everything else.

    The engine is loaded with a smaller budget and generates the first tokens of ``probe``.  What the process then holds
    beside experts is taken as needed, and after a second such trial with nearly the rest, the engine is resized to the
    rest, to all experts at most.  The prompts and lengths must be those of later requests, or take as much.

    Args:
        open_engine: loads an engine with an expert budget in bytes.

    Raises:
        NotSupported: the limit leaves no memory for experts.
    """
    _give_back_large_buffers()
    free = max(0, limit_bytes - held_bytes(limit_bytes))
    for trial in (int(share * free) for share in TRIALS if free):
        try:
            engine = open_engine(trial)
        except BudgetError:
            continue
        try:
            room, most = int(limit_bytes * (1 - MARGIN_SHARE)) - MARGIN_BYTES, engine.store.budget_bytes(None)
            base = _base_bytes(engine, probe, limit_bytes)
            if room - base < most:
                with contextlib.suppress(BudgetError):
                    engine.resize(max(1, int(SECOND_TRIAL * (room - base))))
                    base = max(base, _base_bytes(engine, probe, limit_bytes))
            engine.resize(min(most, max(1, room - base)))
        except BaseException as error:
            engine.close()
            if isinstance(error, BudgetError):
                break  # less than the draft needs
            raise
        return engine
    raise NotSupported(
        f"the process limit of {limit_bytes / 1e6:.0f} MB leaves too little for experts: raise process_overhead or "
        "the experiment's expert_budget, or lower draft_experts"
    )


def _base_bytes(engine: SpecMoE, probe: Request, limit_bytes: int) -> int:
    """The most that the process holds beside experts in a few calls."""
    with Peak(limit_bytes) as peak:
        for _ in range(TRIAL_CALLS):
            _first_tokens(engine, probe)
    return peak.nbytes - engine.arena.peak_bytes


def _give_back_large_buffers() -> None:
    with contextlib.suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def _first_tokens(engine: SpecMoE, probe: Request) -> None:
    commits = 0

    def count(row: int, tokens: list[int]) -> None:
        nonlocal commits
        commits += row == 0
        if commits > TRIAL_COMMITS:
            raise _Enough

    settings = plain_settings(bool(engine.model.config.is_encoder_decoder))
    ids, mask = probe.input_ids, probe.attention_mask
    with contextlib.suppress(_Enough):
        engine.generate(ids, mask, max_new_tokens=probe.lengths, on_tokens=count, **settings)


class Peak:
    """The most memory that this process held at any sample taken in the block: ``nbytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.nbytes = 0
        self._limit_bytes = limit_bytes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak memory", daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            self.nbytes = max(self.nbytes, held_bytes(self._limit_bytes))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self.nbytes = max(self.nbytes, held_bytes(self._limit_bytes))


def held_bytes(limit_bytes: int) -> int:
    """Memory of this process that the kernel should not reclaim: all but the file pages that nobody has mapped.

    Read from the group that limits the process to ``limit_bytes``; without one, its resident set.
    """
    group = _group(limit_bytes)
    charged = None if group is None else _charged(group)
    return charged if charged is not None else int(psutil.Process().memory_info().rss)


def _group(limit_bytes: int) -> Path | None:
    """The folder of the memory controller's group (version 1 or 2) that has this limit; None if there is none."""
    with contextlib.suppress(OSError):
        for line in _LINES.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            folder = (_ROOT / "memory" if controllers else _ROOT) / path.strip("/")
            file = folder / ("memory.limit_in_bytes" if controllers else "memory.max")
            if file.exists() and file.read_text().strip() == str(limit_bytes // _PAGE * _PAGE):
                return folder
    return None


def _charged(group: Path) -> int | None:
    """What a group holds, less its file pages that are not mapped; None where the kernel does not say."""
    try:
        usage = next(f for f in (group / "memory.current", group / "memory.usage_in_bytes") if f.exists())
        stat = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE))
        mapped = int(stat["file_mapped" if "file_mapped" in stat else "mapped_file"])
        return int(usage.read_text()) - int(stat["inactive_file"]) - int(stat["active_file"]) + mapped
    except (OSError, KeyError, ValueError, StopIteration):
        return None
