"""Nothing finished is lost: random kills, damaged lines, full disks, second runners, changed configurations."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tqdm import tqdm

from harness.plan import schedule
from harness.plan.experiment import validate
from harness.plan.schedule import Unit
from harness.run import manifest
from harness.run.manifest import ManifestError
from harness.run.runner import Runner
from reports.results.record import Limit, Record, RecordError, ResultFile
from specmoe.files import write_text
from tests.reports.records import bare_record

MANY = {
    "name": "many",
    "model": "embedded",
    "systems": [{"system": "specmoe", "options": {"gamma": [1, 2, 3, 4, 5, 6, 7, 8]}}, {"system": "on-demand"}],
    "batch_sizes": [1, 2, 3, 4, 5],
    "rounds": 90,
}


def quick_record(runner: Runner, unit: Unit, status: str = "ok") -> Record:
    cell = unit.planned.cell
    return Record(
        run_id="r",
        cell_id=cell.cell_id,
        round=unit.round,
        status=status,
        error=None if status == "ok" else "on purpose",
        label=unit.planned.label,
        cell=cell,
        started_at="2026-01-01T00:00:00+00:00",
        wall_s=0.001,
        limit=Limit(enforced=False, mechanism="none", limit_bytes=None, reason="test"),
        attempt=unit.attempt,
        notes=["x" * 2000],
        config=runner.experiment.model_dump(mode="json"),
    )


class QuickExecutor:
    """Cells of a millisecond, so that kills fall on the runner's own work: planning, appending, renaming."""

    def __init__(self, statuses: Iterator[str] | None = None) -> None:
        self._statuses = statuses

    def records(self, runner: Runner, units: list[Unit]) -> Iterator[Record]:
        for unit in units:
            time.sleep(0.001)
            yield quick_record(runner, unit, next(self._statuses) if self._statuses else "ok")


def _runner(out: Path, changes: dict | None = None, executor: QuickExecutor | None = None) -> Runner:
    experiment = validate(MANY | (changes or {}), "test")
    return Runner.open(experiment, out, show=lambda line: None, executor=executor or QuickExecutor())


def _run_and_kill(out: Path, after_s: float, results: Path | None = None) -> bool:
    """Run in a forked process and kill -9 it after a time; returns whether the kill found it at work.

    The time counts from the start, or from the first byte that the process adds to ``results``.
    """
    before = _size(results)
    child = os.fork()
    if child == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the parent, which would wait for it for good
            _runner(out).run()
        finally:
            os._exit(0)
    for _ in range(3000 if results else 0):
        if _size(results) != before or os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.01)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _size(file: Path | None) -> int:
    return file.stat().st_size if file and file.exists() else 0


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_finished_and_repeat_nothing(tmp_path: Path, cache: Path) -> None:
    chance = random.Random(6)
    results = tmp_path / "out" / "results.jsonl"
    _runner(tmp_path / "out")  # builds the store, so that kills fall on runs and not on that
    total = 45 * 90
    kills, kept, interrupted = 0, b"", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork beside torch's threads; the children use none of them
        for number in range(100):
            if number % 3 == 0:  # between cells, however long a busy machine takes to start
                kills += _run_and_kill(tmp_path / "out", chance.uniform(0.0, 0.03), results)
            else:
                kills += _run_and_kill(tmp_path / "out", chance.uniform(0.02, 0.3))
            now = results.read_bytes() if results.exists() else b""
            whole = kept[: kept.rfind(b"\n") + 1]
            assert now.startswith(whole), f"kill {number} changed lines that were finished"
            interrupted += len(now) > len(whole) and now.count(b"\n") < total
            if number % 5 == 4 and now.count(b"\n") < total:  # and what a power loss would leave
                now += now[-500 : -chance.randint(2, 400)]
                results.write_bytes(now)
            kept = now
            assert manifest.read(tmp_path / "out") is None or manifest.read(tmp_path / "out").config["name"] == "many"
        _runner(tmp_path / "out").run()
        records = ResultFile(results).read()
    assert kills >= 90
    assert interrupted >= 20, "the kills did not fall between cells"
    assert results.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert len(records) == total
    assert len({r.key for r in records}) == total
    assert manifest.read(tmp_path / "out").complete
    assert not list((tmp_path / "out").glob(".manifest.json.*")), "half-written manifests are left behind"


def test_a_full_disk_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    file.append(bare_record(0))
    whole = file.path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, before[1]))  # room for a part of the next line
    try:
        with pytest.raises(RecordError, match=r"finished cells are kept; free some space and run the same command"):
            file.append(bare_record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.path.read_bytes() == whole
    file.append(bare_record(1))
    assert [r.round for r in file.read()] == [0, 1]


def test_a_manifest_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(path, "new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_line_altered_on_disk_is_no_result_and_its_cell_runs_again(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    file.append(bare_record(0, wall_s=1.25))
    file.append(bare_record(1))
    file.path.write_text(file.path.read_text().replace('"wall_s":1.25', '"wall_s":0.25'))
    with pytest.warns(UserWarning, match=r"results\.jsonl:1: damaged line skipped \(checksum differs\)"):
        assert [r.round for r in file.read()] == [1]


def test_a_second_runner_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        manifest.locked(tmp_path),
        pytest.raises(ManifestError, match="another run is writing"),
        manifest.locked(tmp_path),
    ):
        pass
    with manifest.locked(tmp_path):
        pass


@pytest.mark.slow
def test_another_configuration_needs_resume_and_then_keeps_what_is_finished(tmp_path: Path, cache: Path) -> None:
    small = {"systems": [{"system": "on-demand"}], "batch_sizes": [1], "rounds": 1}
    results = _runner(tmp_path, small).run()
    first = results.read_bytes()
    with pytest.raises(ManifestError, match=r"another configuration \(batch_sizes, rounds differ\).*--resume"):
        _runner(tmp_path, small | {"batch_sizes": [1, 2], "rounds": 2}).run()
    assert results.read_bytes() == first
    _runner(tmp_path, small | {"batch_sizes": [1, 2], "rounds": 2}).run(resume=True)
    assert results.read_bytes().startswith(first)
    assert len({r.key for r in ResultFile(results).read()}) == 4
    assert len(manifest.read(tmp_path).run_ids) == 2


@pytest.mark.slow
def test_failures_are_tried_again_on_the_next_run_and_keep_their_records(tmp_path: Path, cache: Path) -> None:
    small = {"systems": [{"system": "on-demand"}], "batch_sizes": [1], "rounds": 2}
    _runner(tmp_path, small, QuickExecutor(iter(["failed", "ok"]))).run()
    results = _runner(tmp_path, small, QuickExecutor(iter(["ok"]))).run()
    records = ResultFile(results).read()
    assert [(r.round, r.attempt, r.status) for r in records] == [(0, 1, "failed"), (1, 1, "ok"), (0, 2, "ok")]
    assert [r.attempt for r in schedule.recovered(records)] == [1]
    assert schedule.unresolved(records) == []


def test_results_name_the_manifest_s_cells(tmp_path: Path) -> None:
    plan = manifest.Manifest(run_ids=["a-1"], config={"name": "a"}, rounds=1, cells=[])
    manifest.claim(tmp_path, plan, resume=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["run_ids"] == ["a-1"]
    retitled = plan.model_copy(update={"config": {"name": "a", "title": "A"}})
    assert manifest.claim(tmp_path, retitled, resume=False).run_ids == ["a-1"], "a title changes no result"
    changed = plan.model_copy(update={"config": {"name": "b"}, "run_ids": ["b-1"]})
    assert manifest.claim(tmp_path, changed, resume=True).run_ids == ["a-1", "b-1"]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="delete that one file"):
        manifest.read(tmp_path)


@pytest.mark.slow
def test_retries_are_records_of_their_own(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"systems": [{"system": "on-demand"}], "batch_sizes": [1], "rounds": 1, "retries": 2}
    runner = _runner(tmp_path, small)
    statuses = iter(["failed", "timeout", "ok"])

    def measured(unit: Unit, attempt: int) -> Record:
        return quick_record(runner, replace(unit, attempt=attempt), next(statuses))

    monkeypatch.setattr(runner, "_measure", measured)
    records = list(runner.measure(Unit(runner.cells[0], 0)))
    assert [(r.attempt, r.status) for r in records] == [(1, "failed"), (2, "timeout"), (3, "ok")]
    assert [r.attempt for r in schedule.recovered(records)] == [1, 2]
