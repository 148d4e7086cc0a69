"""A system's engine: under the limit in place of the worker, counted with it, gone with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from baselines import contract, registry
from baselines.contract import CapabilityCard, Generation, Request, Setting, SystemOptions
from harness.machine.limits import LimitSupport, MemoryLimit, detect
from harness.machine.page_cache import drop_page_cache
from harness.machine.telemetry import Telemetry
from harness.plan.experiment import validate
from harness.run import leaks
from harness.run.engines import Engines, last_id
from harness.run.job import LEFT_BEHIND
from harness.run.runner import Runner
from reports.results.record import Record
from tests import ROOT
from tests.conftest import system_package

SUPPORT = detect()
needs_limit = pytest.mark.skipif(SUPPORT.mechanism == "none", reason=f"no memory limit here: {SUPPORT.reason}")
needs_groups = pytest.mark.skipif(not SUPPORT.parents, reason="no cgroup of our own here")
MIB = 1 << 20

# Does what it is told, line by line, as an engine would.
ENGINE = """
import subprocess, sys
for line in sys.stdin:
    order, _, what = line.strip().partition(" ")
    if order == "hold":
        held = bytearray(int(what) << 20)
    elif order == "read":
        open(what, "rb").read()
    elif order == "start":
        subprocess.Popen(["sleep", what], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print("done", flush=True)
"""


def _start(start: contract.StartEngine) -> subprocess.Popen[str]:
    return start([sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _tell(engine: subprocess.Popen[str], order: str) -> None:
    print(order, file=engine.stdin, flush=True)
    if engine.stdout.readline() != "done\n":
        raise RuntimeError(f"the engine ended with code {engine.wait()}")


@contextlib.contextmanager
def _engine(start: contract.StartEngine) -> Iterator[subprocess.Popen[str]]:
    engine = _start(start)
    try:
        yield engine
    finally:
        engine.kill()
        engine.communicate()


def _members(group: Path) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def _until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


@needs_groups
def test_an_engine_is_in_every_group_when_it_is_returned_and_its_worker_is_in_none() -> None:
    with MemoryLimit(64 * MIB, "engine", SUPPORT, covers="engine") as limit:
        with _engine(Engines(*limit.entry()).start) as engine:
            assert limit._groups
            assert all(_members(group) == [engine.pid] for group in limit._groups)
            _tell(engine, "hold 20")
            assert limit.peak_bytes() is None or limit.peak_bytes() >= 20 * MIB
        assert limit.report().covers == "engine"


@needs_groups
def test_an_engine_beyond_the_limit_is_killed_and_its_worker_goes_on() -> None:
    with MemoryLimit(64 * MIB, "engine", SUPPORT, covers="engine") as limit:
        with _engine(Engines(*limit.entry()).start) as engine, pytest.raises(RuntimeError, match="code -9"):
            _tell(engine, "hold 256")
        assert limit.oom_kills() == 1


@needs_groups
def test_what_an_engine_has_started_is_killed_with_its_group() -> None:
    with MemoryLimit(64 * MIB, "engine", SUPPORT, covers="engine") as limit:
        with _engine(Engines(*limit.entry()).start) as engine:
            _tell(engine, "start 60")
            (child,) = set(_members(limit._groups[0])) - {engine.pid}
        assert limit.kill_members() == [child]
        assert _until(lambda: limit.kill_members() == [])


def test_without_groups_an_engine_runs_all_the_same(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    assert last_id(ids) is None
    with MemoryLimit(64 * MIB, "none", LimitSupport("none", reason="a test"), covers="engine") as limit:
        engines = Engines(*limit.entry(), ids=ids)
        with _engine(engines.start) as first:
            _tell(first, "hold 1")
            with _engine(engines.start) as second:
                assert last_id(ids) == second.pid
        assert limit.kill_members() == []
    assert [engine.pid for engine in engines.started] == [first.pid, second.pid]


def test_systemd_starts_an_engine_through_its_prefix() -> None:
    """``env`` stands in for systemd-run: it becomes the command too, and so keeps the process id."""
    with _engine(Engines(["env", "--"]).start) as engine:
        _tell(engine, "hold 1")
        assert b"hold" in Path(f"/proc/{engine.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("command", "groups", "why"),
    [
        ("/no/such/engine", (), "/no/such/engine: No such file"),
        (sys.executable, ("/no/such/group",), "/no/such/group/cgroup.procs: No such file"),
    ],
)
def test_an_engine_that_cannot_be_started_says_why(command: str, groups: tuple[str, ...], why: str) -> None:
    engines = Engines(groups=groups)
    with pytest.raises(RuntimeError, match=f"cannot be started: {why}"):
        engines.start([command])
    assert engines.started == []


def test_reads_of_an_engine_are_counted_before_and_after_its_end(tmp_path: Path) -> None:
    engines = Engines()
    if engines.read_bytes() is None:
        pytest.skip("no /proc/PID/io")
    file = tmp_path / "data"
    file.write_bytes(os.urandom(MIB) * 24)
    drop_page_cache([file])
    before = engines.read_bytes()
    with _engine(engines.start) as engine:
        _tell(engine, f"read {file}")
        alive = engines.read_bytes() - before
    ended = engines.read_bytes() - before
    if not alive:
        pytest.skip("the kernel counts no reads here")
    assert 24 * MIB <= alive <= 30 * MIB
    assert alive <= ended <= 30 * MIB


def test_an_engine_dies_with_its_worker() -> None:
    worker = (
        "import sys; from harness.run.engines import Engines\n"
        "print(Engines().start(['sleep', '60']).pid, flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", worker], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    engine = Path(f"/proc/{int(process.stdout.readline())}")
    assert b"sleep" in (engine / "cmdline").read_bytes()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert _until(lambda: not engine.exists() or "Z" in (engine / "stat").read_text().rpartition(")")[2][:3])


def test_peaks_are_of_the_engine_and_not_of_the_process_that_drives_it() -> None:
    driver = subprocess.Popen([sys.executable, "-c", "x = bytearray(300 << 20); input()"], stdin=subprocess.PIPE)
    with _engine(subprocess.Popen) as engine:
        with Telemetry(driver.pid, period_s=0.01, engine=lambda: (engine.pid, None)) as telemetry:
            _tell(engine, "hold 100")
            time.sleep(0.6)  # it is held for some samples
            driver.communicate(b"\n")
        usage = telemetry.usage()
    assert usage.peak_rss_bytes is not None
    assert 100 * MIB <= usage.peak_rss_bytes <= 200 * MIB


def test_a_setting_by_itself_starts_without_a_limit(tmp_path: Path) -> None:
    setting = Setting(tmp_path, tmp_path, tmp_path, torch.float32, None, 1)
    with _engine(setting.start_engine) as engine:
        _tell(engine, "hold 1")


@registry.register
class _Driven:
    """Drives ``ENGINE``, into trouble where its option says so."""

    card: ClassVar = CapabilityCard(
        "test-driven", "t", "an engine of its own", grain="pages", knows_budget=False, own_process=True
    )

    class Options(SystemOptions):
        how: str

    def __init__(self, options: Any) -> None:
        self._how = options.how
        self._engine: subprocess.Popen[str] | None = None

    def build(self, setting: Setting) -> None:
        (setting.scratch / "data").write_bytes(os.urandom(MIB) * 24)

    def prepare(self, setting: Setting) -> None:
        self._data = setting.scratch / "data"
        if self._how != "without":
            self._engine = _start(setting.start_engine)
            time.sleep(0.5)  # it lives for some samples

    def generate(self, request: Request) -> Generation:
        request.on_prefill_done()
        order = {"memory": "hold 2000", "slow": "start 60"}.get(self._how, f"read {self._data}")
        _tell(self._engine, order)
        if self._how == "slow":
            time.sleep(60)
        return Generation(torch.zeros(len(request.input_ids), request.new_tokens, dtype=torch.long))

    def close(self) -> None:
        if self._engine is not None and self._how != "forgets":
            self._engine.communicate()


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """One cell for each way to drive an engine: records by way."""
    folder = tmp_path_factory.mktemp("driven")
    plugin = system_package(folder, "driven", "tests.harness.run.test_engines:_Driven")
    ways = ["well", "without", "forgets", "slow", *(["memory"] if SUPPORT.mechanism != "none" else [])]
    experiment = {
        "name": "driven",
        "model": "embedded",
        "systems": [{"system": "test-driven", "options": {"how": ways}}],
        "batch_sizes": [1],
        "new_tokens": 2,
        "rounds": 1,
        "warmup_tokens": 0,
        "threads": 1,
        "timeout_s": 20,
        "process_overhead": "150MB",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECMOE_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", f"{plugin}{os.pathsep}{ROOT}")
        patch.setenv(leaks.MARK, "driven")
        runner = Runner.open(validate(experiment, "test"), folder / "out", show=lambda line: None)
        runner.run()
        assert leaks.marked_processes("driven") == [], "a process outlived its cell"
    return {str(record.cell.options["how"]): record for record in runner.results.read()}


@pytest.mark.slow
class TestACell:
    def test_has_the_engine_under_a_limit_that_its_worker_would_not_fit(self, driven: dict[str, Record]) -> None:
        record = driven["well"]
        assert record.status == "ok"
        assert record.limit.covers == "engine"
        assert record.notes == []
        assert record.usage.peak_rss_bytes < 100 * MIB, "that is the worker's"
        assert record.usage.cpu_s > 0.5, "the worker's time counts too"
        if record.limit.enforced and record.limit.peak_bytes is not None:
            assert 20 * MIB <= record.limit.peak_bytes <= record.limit.limit_bytes

    def test_has_the_engines_reads(self, driven: dict[str, Record]) -> None:
        read = driven["well"].repetitions[0].decode_kernel_read_bytes
        if not read:
            pytest.skip("the kernel counts no reads here")
        assert 24 * MIB <= read <= 30 * MIB

    @needs_limit
    def test_whose_engine_meets_the_limit_fails_in_one_clear_line(self, driven: dict[str, Record]) -> None:
        record = driven["memory"]
        assert record.status == "failed"
        assert record.error == (
            "engine killed by the kernel at the memory limit: raise process_overhead or lower expert_budget"
        )

    def test_that_takes_too_long_is_ended_with_its_engine(self, driven: dict[str, Record]) -> None:
        assert driven["slow"].status == "timeout"

    def test_whose_card_promises_an_engine_must_have_one(self, driven: dict[str, Record]) -> None:
        assert "start it in prepare, with setting.start_engine" in driven["without"].error

    def test_whose_system_forgets_its_engine_says_so(self, driven: dict[str, Record]) -> None:
        (note,) = driven["forgets"].notes
        assert note.startswith(f"{LEFT_BEHIND}child process ")
