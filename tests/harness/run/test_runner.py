"""The whole path on the embedded model: processes, limits, fidelity, resume, report, command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from baselines import registry
from baselines.contract import CapabilityCard, Generation, NotSupported, Request, Setting, SystemOptions
from harness.cli import main as cli
from harness.machine.limits import detect
from harness.plan.experiment import Experiment, validate
from harness.run.runner import Runner
from reports.results.record import Record, ResultFile
from tests import ROOT
from tests.conftest import system_package

SMALL = {
    "name": "small",
    "model": "embedded",
    "systems": [
        {"system": "on-demand"},
        {"system": "caching"},
        {"system": "accelerate-disk"},
        {"system": "specmoe", "options": {"gamma": 3, "draft_experts": 8}},
    ],
    "batch_sizes": [3],
    "new_tokens": 6,
    "rounds": 2,
    "warmup_tokens": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """One small experiment, run for real: (folder, records)."""
    out = tmp_path_factory.mktemp("run")
    os.environ["SPECMOE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    runner = Runner.open(validate(SMALL, "test"), out, show=lambda line: None)
    runner.run()
    return out, runner.results.read()


@pytest.mark.slow
class TestAFinishedRun:
    def test_has_every_cell_once_per_round(self, finished: tuple[Path, list[Record]]) -> None:
        _, records = finished
        assert len(records) == 8
        assert len({r.key for r in records}) == 8
        assert {r.status for r in records} == {"ok"}

    def test_is_token_for_token_exact(self, finished: tuple[Path, list[Record]]) -> None:
        assert [r.metrics.fidelity for r in finished[1]] == [1.0] * 8

    def test_interleaves_systems_within_each_round(self, finished: tuple[Path, list[Record]]) -> None:
        rounds = [r.round for r in finished[1]]
        assert rounds == sorted(rounds)
        orders = [[r.label for r in finished[1] if r.round == n] for n in range(2)]
        assert sorted(orders[0]) == sorted(orders[1])
        assert orders[0] != orders[1]

    def test_enforces_the_limit_or_says_why_not(self, finished: tuple[Path, list[Record]]) -> None:
        for record in finished[1]:
            assert record.limit.limit_bytes == record.cell.process_limit_bytes
            if record.limit.enforced:
                assert record.limit.peak_bytes is None or record.limit.peak_bytes <= record.limit.limit_bytes
            else:
                assert record.limit.reason

    def test_reports_bytes_that_agree_with_the_kernel(self, finished: tuple[Path, list[Record]]) -> None:
        for record in finished[1]:
            if record.cell.system in ("on-demand", "specmoe") and record.metrics.kernel_read_bytes:
                assert record.metrics.link_bytes == pytest.approx(record.metrics.kernel_read_bytes, rel=0.1)

    def test_keeps_experts_within_the_budget(self, finished: tuple[Path, list[Record]]) -> None:
        for record in finished[1]:
            if record.metrics.peak_device_expert_bytes is not None:
                assert 0 < record.metrics.peak_device_expert_bytes <= record.cell.expert_budget_bytes

    def test_carries_config_and_environment(self, finished: tuple[Path, list[Record]]) -> None:
        for record in finished[1]:
            assert Experiment.model_validate(record.config).name == "small"
            assert record.environment["torch"]
            assert record.metrics.decode_tok_s > 0
            assert record.metrics.ttft_s > 0

    def test_counts_speculation_only_where_there_is_some(self, finished: tuple[Path, list[Record]]) -> None:
        for record in finished[1]:
            if record.cell.system == "specmoe":
                assert record.metrics.tokens_per_step > 1
                assert 0 < record.metrics.acceptance_rate <= 1
            else:
                assert record.metrics.tokens_per_step == 1
                assert record.metrics.acceptance_rate is None

    def test_says_when_every_token_of_every_row_was_final(self, finished: tuple[Path, list[Record]]) -> None:
        for record in finished[1]:
            (repetition,) = record.repetitions
            assert repetition.arrivals_s is not None
            assert [len(row) for row in repetition.arrivals_s] == [6, 6, 6]
            assert all(row == sorted(row) for row in repetition.arrivals_s)
            whole = repetition.prefill_s + repetition.decode_s
            assert max(row[-1] for row in repetition.arrivals_s) == pytest.approx(whole, rel=0.2)
            assert max(row[0] for row in repetition.arrivals_s) == pytest.approx(repetition.prefill_s, rel=0.2)
            bursts = {len(set(row)) < 6 for row in repetition.arrivals_s}
            assert (True in bursts) == (record.cell.system == "specmoe")

    def test_compares_output_by_kind(self, finished: tuple[Path, list[Record]]) -> None:
        assert {record.fidelity_kind for record in finished[1]} == {"equal"}

    def test_runs_nothing_again(self, finished: tuple[Path, list[Record]]) -> None:
        out, records = finished
        before = (out / "results.jsonl").read_bytes()
        Runner.open(validate(SMALL, "test"), out, show=lambda line: None).run()
        assert (out / "results.jsonl").read_bytes() == before
        assert records

    def test_becomes_a_page(self, finished: tuple[Path, list[Record]], tmp_path: Path) -> None:
        assert cli.main(["report", str(finished[0] / "results.jsonl"), "--out", str(tmp_path)]) == 0
        page = (tmp_path / "index.html").read_text()
        assert "specmoe" in page
        assert '<img src="data:image/svg+xml;base64,' in page
        assert (tmp_path / "report.md").exists()
        assert list((tmp_path / "figures").glob("*.png"))


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    experiment = tmp_path / "e.yaml"
    experiment.write_text(json.dumps(SMALL | {"systems": SMALL["systems"][:2], "rounds": 3}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "harness.cli", "run", str(experiment), "--out", str(out)]
    environment = os.environ | {"SPECMOE_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = out / "results.jsonl"
    deadline = time.monotonic() + 240
    while not (results.exists() and results.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline, "no cell finished in time"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = results.read_text().splitlines()[:2]
    assert subprocess.run(command, env=environment, timeout=400, capture_output=True, check=False).returncode == 0
    records = ResultFile(results).read()
    assert results.read_text().splitlines()[:2] == kept
    assert len(records) == len({r.key for r in records}) == 6


@registry.register
class _Troubled:
    """A system that fails in the way its option says."""

    card: ClassVar = CapabilityCard("test-troubled", "t", "fails on purpose", grain="experts", knows_budget=False)

    class Options(SystemOptions):
        how: str

    def __init__(self, options: Any) -> None:
        self._how = options.how

    def build(self, setting: Setting) -> None: ...

    def prepare(self, setting: Setting) -> None:
        if self._how == "unsupported":
            raise NotSupported("needs a unicorn")

    def generate(self, request: Request) -> Generation:
        if self._how == "memory":
            b"x" * (4 << 30)
        if self._how == "slow":
            time.sleep(60)
        if self._how == "error":
            raise RuntimeError("disk on fire")
        if self._how != "silent":
            request.on_prefill_done()
        return Generation(torch.zeros(len(request.input_ids), request.new_tokens, dtype=torch.long))

    def close(self) -> None: ...


TROUBLES = {
    "unsupported": ("not_supported", "needs a unicorn"),
    "error": ("failed", "RuntimeError: disk on fire"),
    "slow": ("timeout", "raise timeout_s"),
    "memory": ("failed", "memory"),
    "silent": ("failed", "first token 0 times"),
    "wrong": ("ok", None),
}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """One run of cells that are all in trouble: records by trouble."""
    folder = tmp_path_factory.mktemp("troubled")
    plugin = system_package(folder, "troubled", "tests.harness.run.test_runner:_Troubled")
    possible = [how for how in TROUBLES if how != "memory" or detect().mechanism != "none"]
    systems = [{"system": "test-troubled", "options": {"how": possible}}]
    changes = {"systems": systems, "rounds": 1, "timeout_s": 30, "process_overhead": "700MB"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECMOE_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", f"{plugin}{os.pathsep}{ROOT}")
        runner = Runner.open(validate(SMALL | changes, "test"), folder / "out", show=lambda line: None)
        runner.run()
    return {str(record.cell.options["how"]): record for record in runner.results.read()}


@pytest.mark.slow
@pytest.mark.parametrize("how", TROUBLES)
def test_trouble_becomes_a_record_and_never_stops_the_run(how: str, troubled: dict[str, Record]) -> None:
    if how == "memory" and detect().mechanism == "none":
        pytest.skip("no memory limit here")
    status, message = TROUBLES[how]
    record = troubled[how]
    assert record.status == status
    if message is None:
        assert record.metrics.fidelity < 1.0, "tokens that differ from the reference must show"
        assert record.fidelity_kind == "differs"
        assert record.repetitions[0].differences
    else:
        assert message in record.error


def test_bad_input_ends_with_code_two_and_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for arguments in (["run", "no-such"], ["run", str(tmp_path / "bad.yaml")], ["report", str(tmp_path / "bad.jsonl")]):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("specmoe-bench: ")
        assert "Traceback" not in error


def test_list_shows_every_system_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("specmoe", "on-demand", "caching", "accelerate-disk", "quick", "embedded"):
        assert name in text


def test_doctor_says_what_can_be_enforced(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "memory limit" in capsys.readouterr().out


@pytest.mark.slow
def test_generate_continues_a_text(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert cli.main(["generate", "import os\nimport ", "--max-new-tokens", "8"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("import os\nimport ")
    assert "tokens per step" in captured.err


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Record]:
    """One round from host memory, at full and at a stated rate: records by system and slow tier."""
    systems = [{"system": "on-demand"}, {"system": "overlap"}, {"system": "accelerate-disk"}, SMALL["systems"][-1]]
    changes = {"systems": systems, "rounds": 1, "slow_tier": ["host", "paced:1GB/s+50us"], "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        runner = Runner.open(validate(SMALL | changes, "test"), tmp_path_factory.mktemp("tiers"), show=lambda _: None)
        runner.run()
    return {(r.cell.system, r.cell.slow_tier): r for r in runner.results.read()}


@pytest.mark.slow
def test_experts_from_host_memory_give_the_same_tokens_and_records_say_where_from(
    tiers: dict[tuple[str, str], Record], tmp_path: Path
) -> None:
    for slow_tier, kind in (("host", "measured"), ("paced:1GB/s+50us", "emulated")):
        for system in ("on-demand", "specmoe"):
            found = tiers[system, slow_tier]
            assert (found.status, found.kind, found.metrics.fidelity) == ("ok", kind, 1.0)
            assert found.metrics.link_bytes > 0
            assert found.metrics.kernel_read_bytes in (0, None)
            assert found.limit.slow_tier_bytes > 0
            assert any("experts rest in host memory" in note for note in found.notes)
            assert not any("slow tier was memory, or" in note for note in found.notes)
        assert tiers["overlap", slow_tier].kind == "oracle"
        refused = tiers["accelerate-disk", slow_tier]
        assert (refused.status, refused.kind) == ("not_supported", kind)
        assert "use slow_tier: disk" in refused.error
    paced = tiers["on-demand", "paced:1GB/s+50us"].metrics.achieved_link_gb_s
    assert paced <= 1.0 + 1e-3, "no transfer is faster than the stated rate"
    results = tmp_path / "results.jsonl"
    for record in tiers.values():
        ResultFile(results).append(record)
    assert cli.main(["report", str(results), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Emulated: run on a link paced to a stated rate" in page
    assert "host memory paced to 1GB/s+50us (emulated)" in page
    assert "are for them, and the kernel counts no disk reads" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA GPU: use device='cpu'"):
        Runner.open(validate(SMALL | {"device": "cuda"}, "test"), tmp_path / "out")
    assert not cache.exists()
