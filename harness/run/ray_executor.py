"""Cells on a Ray cluster: one actor per node slot, each with a runner of its own that measures one cell at a time.

All cells of a round with the same workload go to one slot, one after another, because ratios are taken within a
round and must not compare two machines; different rounds and batch sizes run on different slots at once.
A node takes part if it declares the resource ``specmoe_slot`` (normally 1: two cells on one machine disturb each
other) and has the package installed.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from harness.plan.experiment import Experiment
from harness.plan.schedule import Unit
from harness.run.executor import CellRunner
from harness.run.runner import RunError, Runner
from reports.results.record import Record

SLOT = "specmoe_slot"
_FIX = f"""start nodes with `ray start ... --resources='{{"{SLOT}": 1}}'`"""


class NodeRunner:
    """The actor on a node: prepares what its units need there and measures them; records describe the node."""

    def __init__(self, experiment: str, node: str) -> None:
        from specmoe.files import cache_dir

        self._node = node
        out = cache_dir() / "ray" / node
        self._runner = Runner.open(Experiment.model_validate_json(experiment), out, show=lambda line: None)

    def prepare(self, units: list[Unit]) -> None:
        self._runner.prepare(units)

    def measure(self, unit: Unit) -> list[Record]:
        return [record.model_copy(update={"node": self._node}) for record in self._runner.measure(unit)]


@dataclass
class _Slot:
    """One actor, the unit it measures and the rest of its group."""

    node: str
    address: str
    actor: Any
    unit: Unit | None = None
    rest: deque[Unit] = field(default_factory=deque)


class RayExecutor:
    """Spreads units over the slots of a cluster.

    Args:
        address: of the cluster; None for a running one (``RAY_ADDRESS``, or on this machine), else a new local one.

    Raises:
        ValueError: Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ValueError("--executor ray needs Ray: pip install 'specmoe-bench[ray]'") from error
        self._address = address

    def records(self, runner: CellRunner, units: list[Unit]) -> Iterator[Record]:
        if not units:
            return
        with _connected(self._address):
            slots = _open_slots(runner.experiment, units)
            yield from _spread(runner, _prepare(slots, units), deque(_groups(units)))


def _groups(units: list[Unit]) -> list[deque[Unit]]:
    """Units between which ratios are taken, together and in their order."""

    def key(unit: Unit) -> tuple[int, int, str]:
        cell = unit.planned.cell
        return unit.round, cell.batch_size, cell.conditions

    return [deque(group) for _, group in groupby(sorted(units, key=key), key)]


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    import ray

    ours = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if ours:
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError as error:
            if address is not None:
                raise ValueError(f"no Ray cluster at {address} ({error}): start one, or leave --address out") from error
            ray.init(resources={SLOT: 1}, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _open_slots(experiment: Experiment, units: list[Unit]) -> list[_Slot]:
    """An actor on every slot that is large enough.

    Raises:
        ValueError: there is none; the message gives the reason for each node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cells = [unit.planned.cell for unit in units]
    cpus = max(cell.threads for cell in cells)
    memory = max(cell.process_limit_bytes or 0 for cell in cells)
    remote = ray.remote(NodeRunner)
    slots: list[_Slot] = []
    refused: list[str] = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has, name = node["Resources"], node["NodeID"][:12]
        count = int(min(has.get(SLOT, 0), has.get("CPU", 0) // cpus, has.get("memory", 0) // memory if memory else 1e9))
        if count < 1:
            refused.append(
                f"{name} has {has.get(SLOT, 0):.0f} {SLOT}, {has.get('CPU', 0):.0f} CPUs, {has.get('memory', 0):.3g} B"
            )
        for _ in range(count):
            actor = remote.options(
                num_cpus=cpus,
                memory=memory or None,
                resources={SLOT: 1},
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                max_restarts=0,
            ).remote(experiment.model_dump_json(), f"{name}-{len(slots)}" if count > 1 else name)
            slots.append(_Slot(name, node["NodeManagerAddress"], actor))
    if not slots:
        needed = f"1 {SLOT}, {cpus} CPUs and {memory:.3g} B of memory"
        raise ValueError(f"no node can take a cell, which needs {needed} ({'; '.join(refused)}): {_FIX}")
    return slots


def _prepare(slots: list[_Slot], units: list[Unit]) -> list[_Slot]:
    """Build stores and references on every node, one after another on nodes that share a machine and its cache.

    Returns the slots that are ready: a node may be lost before the cluster notices.

    Raises:
        RunError: a node's reference failed.
    """
    import ray

    waiting: dict[str, deque[_Slot]] = {}
    for slot in slots:
        waiting.setdefault(slot.address, deque()).append(slot)
    ready = []
    while any(waiting.values()):
        turn = [queue.popleft() for queue in waiting.values() if queue]
        for slot, started in [(slot, slot.actor.prepare.remote(units)) for slot in turn]:
            try:
                ray.get(started)
                ready.append(slot)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from error
            except ray.exceptions.RayError:
                continue
    return ready


def _spread(runner: CellRunner, slots: list[_Slot], groups: deque[deque[Unit]]) -> Iterator[Record]:
    import ray

    pending: dict[Any, _Slot] = {}
    for slot in slots:
        _next(slot, groups, pending)
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        slot = pending.pop(done)
        try:
            yield from ray.get(done)
        except ray.exceptions.RayError as error:
            reason = f"node {slot.node} was lost ({type(error).__name__}): run the same command again to continue"
            yield from (runner.lost(unit, reason) for unit in (slot.unit, *slot.rest) if unit is not None)
            continue
        _next(slot, groups, pending)
    if groups:
        raise RunError(
            "every node of the cluster was lost: finished cells are kept; run the same command again to continue"
        )


def _next(slot: _Slot, groups: deque[deque[Unit]], pending: dict[Any, _Slot]) -> None:
    """Start the slot's next unit, of its own group first."""
    if not slot.rest and groups:
        slot.rest = groups.popleft()
    slot.unit = slot.rest.popleft() if slot.rest else None
    if slot.unit is not None:
        pending[slot.actor.measure.remote(slot.unit)] = slot
