"""A Ray cluster of two nodes on loopback gives the same cells and the same records as this machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli.run import make_executor
from harness.plan.experiment import validate
from harness.plan.schedule import todo
from harness.run.ray_executor import SLOT, RayExecutor, _groups
from harness.run.runner import Runner
from reports.results.record import Record
from tests.harness.experiments import MINIMAL, SIZES

ray = pytest.importorskip("ray")

SMALL = {
    "name": "spread",
    "model": "embedded",
    "systems": [{"system": "on-demand"}, {"system": "specmoe", "options": {"gamma": 2, "draft_experts": 8}}],
    "batch_sizes": [1],
    "new_tokens": 3,
    "rounds": 2,
    "warmup_tokens": 0,
    "threads": 1,
    "process_overhead": "1GB",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without slots and two nodes with one each."""
    from ray.cluster_utils import Cluster

    os.environ["SPECMOE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1, resources={SLOT: 1}, memory=4 << 30, object_store_memory=80 << 20)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def deterministic(record: Record) -> tuple[Any, ...]:
    """What must not depend on where a cell ran."""
    assert record.metrics is not None, record.error
    figures = ("fidelity", "tokens_per_step", "acceptance_rate", "link_bytes", "hit_rate", "peak_device_expert_bytes")
    return (
        record.run_id,
        record.cell_id,
        record.round,
        record.label,
        record.cell,
        record.config,
        record.limit.enforced,
        record.limit.limit_bytes,
        *(getattr(record.metrics, name) for name in figures),
    )


@pytest.mark.slow
def test_two_nodes_give_the_records_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    experiment = validate(SMALL, "test")
    local = Runner.open(experiment, tmp_path / "local", show=lambda line: None)
    local.run()
    spread = Runner.open(experiment, tmp_path / "ray", show=lambda line: None, executor=RayExecutor(cluster.address))
    spread.run()
    here, there = local.results.read(), spread.results.read()
    assert sorted(map(deterministic, here), key=str) == sorted(map(deterministic, there), key=str)
    nodes = {r.round: {o.node for o in there if o.round == r.round} for r in there}
    assert all(len(on) == 1 for on in nodes.values()), "ratios within a round must not compare two machines"
    assert len(set.union(*nodes.values())) == 2, "both nodes take part"
    assert {r.node for r in here} == {None}
    assert all(r.environment["cpu"] == here[0].environment["cpu"] and r.usage.cpu_s > 0 for r in there)
    before = spread.results.path.read_bytes()
    Runner.open(experiment, tmp_path / "ray", show=lambda line: None, executor=RayExecutor(cluster.address)).run()
    assert spread.results.path.read_bytes() == before, "what is finished is not run again"


@pytest.mark.slow
def test_cells_no_node_can_take_are_refused_with_the_mend(cluster: Any, tmp_path: Path) -> None:
    experiment = validate(SMALL | {"threads": 64}, "test")
    runner = Runner.open(experiment, tmp_path, show=lambda line: None, executor=RayExecutor(cluster.address))
    with pytest.raises(ValueError, match=rf"no node can take a cell, which needs 1 {SLOT}, 64 CPUs.*ray start"):
        runner.run()
    assert not runner.results.path.exists()


@pytest.mark.slow
def test_a_lost_node_s_cells_are_failures_and_the_other_goes_on(cluster: Any, tmp_path: Path) -> None:
    extra = cluster.add_node(num_cpus=1, resources={SLOT: 1}, memory=4 << 30, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    experiment = validate(SMALL | {"rounds": 6, "systems": SMALL["systems"][:1]}, "test")
    runner = Runner.open(experiment, tmp_path, show=lambda line: None, executor=RayExecutor(cluster.address))
    append = runner.results.append
    killed: list[bool] = []

    def kill_after_the_first(record: Record) -> None:
        append(record)
        if not killed:
            killed.append(True)
            cluster.remove_node(extra, allow_graceful=False)

    runner.results.append = kill_after_the_first  # type: ignore[method-assign]
    runner.run()
    records = runner.results.read()
    assert len(records) == 6
    lost = [r for r in records if r.status == "failed"]
    assert len(lost) <= 1
    assert all("was lost" in r.error and "go on" in r.error for r in lost)
    Runner.open(experiment, tmp_path, show=lambda line: None, executor=RayExecutor(cluster.address)).run()
    finished = [r for r in runner.results.read() if r.status == "ok"]
    assert len({r.key for r in finished}) == len(finished) == 6


def test_a_round_s_cells_of_one_workload_stay_together() -> None:
    from harness.plan.experiment import plan

    systems = [{"system": "on-demand"}, {"system": "caching"}]
    cells = plan(validate(MINIMAL | {"systems": systems, "batch_sizes": [1, 2]}, "test"), SIZES)
    groups = _groups(todo(cells, 3, 0, []))
    assert [len(group) for group in groups] == [2] * 6
    for group in groups:
        assert len({(u.round, u.planned.cell.batch_size) for u in group}) == 1
        assert {u.planned.cell.system for u in group} == {"on-demand", "caching"}


def test_an_unknown_executor_is_named() -> None:
    with pytest.raises(ValueError, match="use one of local, ray"):
        make_executor("slurm")
