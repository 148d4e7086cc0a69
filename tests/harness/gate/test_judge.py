"""The gate decides by intervals and by exact figures, stops early, and says when it cannot tell."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.cli import main as cli
from harness.gate import evidence
from harness.gate.judge import EXIT_CODES, Evidence, gate, judge
from harness.plan.experiment import validate
from harness.run.runner import RunError
from reports.results.metrics import Metrics
from reports.results.record import Cell, Limit, Record, ResultFile
from tests import ROOT


def record(system: str, speed: float, rnd: int, run: str = "a", **metrics: float | None) -> Record:
    cell = Cell(system=system, model="m", batch_size=4, new_tokens=8, expert_budget_bytes=100)
    return Record(
        run_id=run,
        cell_id=cell.cell_id,
        round=rnd,
        status="ok",
        label=system,
        cell=cell,
        started_at="2026-01-01T00:00:00+00:00",
        wall_s=1.0,
        limit=Limit(enforced=True, mechanism="cgroup-v2", limit_bytes=1),
        metrics=Metrics(
            **{"prefill_tok_s": 1, "decode_tok_s": speed, "ttft_s": 1, "tpot_s": 1, "tokens_per_step": 2.5}
            | {"acceptance_rate": 0.5, "link_bytes_per_token": 1000.0, "fidelity": 1.0}
            | metrics
        ),
        config={"name": "x"},
    )


def rounds(count: int, slowdown: float = 1.0, noise: float = 0.02, seed: int = 0, machine: float = 1.0) -> list[Record]:
    """``count`` rounds of the reference and of a system twice as fast, this one slowed."""
    draw = np.random.default_rng(seed)
    out = []
    for number in range(count):
        spell = machine * draw.lognormal(0, 0.3)  # the machine's mood, the same for the whole round
        out.append(record("on-demand", 10 * spell * draw.lognormal(0, noise), number))
        out.append(record("specmoe", 20 * spell / slowdown * draw.lognormal(0, noise), number))
    return out


def growing(then: list[Record], slowdown: float, seed: int, limit: int = 20, **changes: float) -> Iterator[Evidence]:
    for count in range(1, limit + 1):
        yield Evidence(then, rounds(count, slowdown, seed=seed, **changes), paired=False)


def test_a_slowdown_beyond_the_allowance_is_a_regression_on_any_machine() -> None:
    then = rounds(10, seed=1)
    assert gate(growing(then, 1.15, seed=2, machine=7.0), 0.05).verdict == "regression"
    assert gate(growing(then, 1.00, seed=3, machine=7.0), 0.05).verdict == "pass"


def test_it_stops_as_soon_as_the_interval_clears_the_allowance() -> None:
    judgement = gate(growing(rounds(10, seed=1), 1.5, seed=2), 0.05)
    assert (judgement.verdict, judgement.rounds) == ("regression", 6)


def test_noise_too_wide_for_the_allowance_cannot_tell() -> None:
    then = rounds(10, seed=1, noise=0.4)
    judgement = gate(growing(then, 1.0, seed=2, limit=8, noise=0.4), 0.05)
    assert judgement.verdict == "cannot tell"
    assert "quiet the machine" in str(judgement)


def test_few_rounds_cannot_tell_however_clear_they_look() -> None:
    judgement = judge(Evidence(rounds(10), rounds(3, slowdown=3.0), paired=False), 0.05)
    assert judgement.verdict == "cannot tell"
    assert "3 of at least 6 rounds" in str(judgement)


def test_paired_revisions_are_compared_round_by_round() -> None:
    then = rounds(8, seed=4)
    slower = [
        r.model_copy(update={"metrics": r.metrics.model_copy(update={"decode_tok_s": r.metrics.decode_tok_s / 1.15})})
        for r in then
    ]
    judgement = judge(Evidence(then, slower, paired=True), 0.05)
    assert judgement.verdict == "regression"
    assert len(judgement.findings) == 2, "the reference system is judged too"
    assert judgement.overall.median == pytest.approx(1.15)
    assert judge(Evidence(then, then, paired=True), 0.05).verdict == "pass"


@pytest.mark.parametrize(
    "change",
    [{"acceptance_rate": 0.49}, {"link_bytes_per_token": 1001.0}, {"fidelity": 0.99}, {"tokens_per_step": 2.4}],
)
def test_deterministic_figures_must_match_exactly(change: dict[str, float]) -> None:
    then = rounds(8)
    now = [
        r.model_copy(update={"metrics": r.metrics.model_copy(update=change)}) if r.cell.system == "specmoe" else r
        for r in then
    ]
    judgement = judge(Evidence(then, now, paired=False), 0.05)
    assert judgement.verdict == "regression"
    assert next(iter(change)) in str(judgement)


def test_a_figure_that_already_varied_cannot_be_gated() -> None:
    then = rounds(8)
    then[-1] = record("specmoe", 20, 7, acceptance_rate=0.1)
    judgement = judge(Evidence(then, rounds(8), paired=False), 0.05)
    assert judgement.verdict == "cannot tell"
    assert "acceptance_rate already varied" in str(judgement)


def test_a_cell_that_fails_now_is_a_regression_and_one_not_run_cannot_tell() -> None:
    then = rounds(8)
    failed = [r.model_copy(update={"status": "failed", "error": "no", "metrics": None}) for r in then]
    assert judge(Evidence(then, failed, paired=False), 0.05).verdict == "regression"
    assert judge(Evidence(then, [], paired=False), 0.05).verdict == "cannot tell"


def test_the_three_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def file(name: str, records: list[Record]) -> str:
        for one in records:
            ResultFile(tmp_path / name).append(one)
        return str(tmp_path / name)

    then = file("then.jsonl", rounds(12, seed=1))
    same = file("same.jsonl", rounds(12, seed=2))
    slow = file("slow.jsonl", rounds(12, slowdown=1.3, seed=3))
    few = file("few.jsonl", rounds(2, seed=4))
    for results, code in ((same, 0), (slow, 1), (few, 2), (str(tmp_path / "none.jsonl"), 2)):
        assert cli.main(["check", "--against", then, "--max-slowdown", "5%", "--results", results]) == code
    assert capsys.readouterr().out.count("time ") >= 3
    assert EXIT_CODES == {"pass": 0, "regression": 1, "cannot tell": 2}


@pytest.mark.parametrize("text", ["5", "-1%", "much", "100%", "nan"])
def test_an_allowance_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="share"):
        evidence.percentage(text)


def test_shares_are_read() -> None:
    assert evidence.percentage("5%") == pytest.approx(evidence.percentage("0.05"))


EXPERIMENT = {
    "name": "gate",
    "model": "embedded",
    "systems": [{"system": "on-demand"}, {"system": "specmoe", "options": {"gamma": 2, "draft_experts": 8}}],
    "batch_sizes": [1],
    "new_tokens": 3,
    "rounds": 1,
    "warmup_tokens": 0,
    "threads": 1,
}


@pytest.mark.slow
def test_reruns_repeat_the_recorded_experiment_exactly(tmp_path: Path, cache: Path) -> None:
    experiment = tmp_path / "e.yaml"
    experiment.write_text(json.dumps(EXPERIMENT))
    assert cli.main(["run", str(experiment), "--out", str(tmp_path / "then")]) == 0
    then = ResultFile(tmp_path / "then" / "results.jsonl").read()
    (known,) = evidence.rerun(then, tmp_path / "now", max_rounds=1)
    judgement = judge(known, 0.05)
    assert judgement.verdict == "cannot tell", "one round is too few for speed"
    assert "was" not in str(judgement), "deterministic figures repeat"
    before = (tmp_path / "now" / "results.jsonl").read_bytes()
    command = ["check", "--against", str(tmp_path / "then" / "results.jsonl"), "--out", str(tmp_path / "now")]
    assert cli.main(command) == 2
    assert (tmp_path / "now" / "results.jsonl").read_bytes() == before, "nothing is overwritten"


def test_the_example_workflow_uses_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "examples" / "performance-gate.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    commands = " ".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    (check,) = re.findall(r"specmoe-bench (check .*?) \|\|", commands)
    arguments = check.replace('"origin/${{ github.base_ref }}"', "origin/main").split()
    seen: dict[str, Any] = {}

    def stop(options: dict[str, Any], max_slowdown: float) -> None:
        seen.update(options, max_slowdown=max_slowdown)
        raise ValueError("seen enough")

    monkeypatch.setattr(evidence, "of", lambda against, **options: options)
    monkeypatch.setattr("harness.gate.judge.gate", stop)
    assert cli.main(arguments) == 2
    assert (seen["revision"], seen["max_slowdown"], seen["max_rounds"]) == ("origin/main", 0.05, 12)


def test_a_baseline_of_few_rounds_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in rounds(2):
        ResultFile(tmp_path / "then.jsonl").append(one)
    assert cli.main(["check", "--against", str(tmp_path / "then.jsonl"), "--out", str(tmp_path / "now")]) == 2
    assert "the baseline holds 2 rounds" in capsys.readouterr().err
    assert not (tmp_path / "now").exists()


@pytest.mark.slow
def test_two_revisions_are_run_in_turns(tmp_path: Path, cache: Path) -> None:
    here = ROOT
    if subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")
    prompts = here / "workloads" / "prompts" / "embedded.jsonl"
    model = here / "workloads" / "embedded"
    changes = {"model": str(model), "prompts": str(prompts), "systems": EXPERIMENT["systems"][1:]}
    config = validate(EXPERIMENT | changes, "test").model_dump(mode="json")
    then = [record("specmoe", 1.0, 0).model_copy(update={"config": config})]  # what to run, and nothing else
    *_, known = evidence.both_revisions(then, "HEAD", tmp_path / "now", max_rounds=2)
    assert len(known.then) == len(known.now) == 2
    assert {(r.cell_id, r.round) for r in known.then} == {(r.cell_id, r.round) for r in known.now}
    assert {r.environment["git_dirty"] for r in known.then} == {False}, "the other side is the committed code"
    judgement = judge(known, 0.05)
    assert all(f.slowdown.n == 2 for f in judgement.findings)
    assert "was" not in str(judgement), "deterministic figures match"
    with pytest.raises(RunError, match="name a revision"):
        next(evidence.both_revisions(then, "no-such-revision", tmp_path / "no", max_rounds=1))


def test_a_baseline_is_run_again_without_the_fields_that_are_as_by_default() -> None:
    """So that an older revision, which may not know them, can run it too."""
    experiment = validate(EXPERIMENT | {"rounds": 7}, "test")
    (one, *_) = rounds(1)
    config = evidence.config_of([one.model_copy(update={"config": experiment.model_dump(mode="json")})])
    assert set(config) == set(EXPERIMENT)
    assert validate(config | {"rounds": 7}, "test") == experiment
