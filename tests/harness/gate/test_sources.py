"""Evidence repeats the recorded experiment exactly, in this code or in two revisions, and overwrites nothing."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main as cli
from harness.gate import sources
from harness.gate.evidence import Evidence
from harness.gate.judge import EXIT_CODES, gate, judge
from harness.plan.experiment import validate
from harness.run.runner import RunError
from reports.results.load import ReportError, load
from reports.results.record import RecordError, ResultFile
from reports.results.rounds import counted
from tests import ROOT
from tests.harness.gate.records import record, rounds

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
    (known,) = sources.rerun(then, tmp_path / "now", max_rounds=1)
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

    monkeypatch.setattr(sources, "of", lambda against, **options: options)
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
    *_, known = sources.both_revisions(then, "HEAD", tmp_path / "now", max_rounds=2)
    assert len(known.then) == len(known.now) == 2
    assert {(r.cell_id, r.round) for r in known.then} == {(r.cell_id, r.round) for r in known.now}
    assert {r.environment["git_dirty"] for r in known.then} == {False}, "the other side is the committed code"
    judgement = judge(known, 0.05)
    assert all(f.slowdown.n == 2 for f in judgement.findings)
    assert "was" not in str(judgement), "deterministic figures match"
    with pytest.raises(RunError, match="name a revision"):
        next(sources.both_revisions(then, "no-such-revision", tmp_path / "no", max_rounds=1))


def test_a_baseline_is_run_again_without_fields_that_have_their_default() -> None:
    """An older revision that does not know them can run it too."""
    experiment = validate(EXPERIMENT | {"rounds": 7}, "test")
    (one, *_) = rounds(1)
    config = sources.config_of([one.model_copy(update={"config": experiment.model_dump(mode="json")})])
    assert set(config) == set(EXPERIMENT)
    assert validate(config | {"rounds": 7}, "test") == experiment


def test_a_round_written_six_times_counts_as_one(tmp_path: Path) -> None:
    then, now = ResultFile(tmp_path / "then.jsonl"), ResultFile(tmp_path / "now.jsonl")
    for entry in rounds(6):
        then.append(entry)
    for _ in range(6):
        for entry in rounds(1):
            now.append(entry)
    judgement = gate(sources.of(then.path, results=now.path), 0.05)
    assert judgement.verdict == "cannot tell"
    assert "1 of at least 6 rounds" in str(judgement)


def test_the_last_finished_line_of_a_round_counts(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "now.jsonl")
    first, second = record("specmoe", 10, 0), record("specmoe", 20, 0)
    failed = second.model_copy(update={"status": "failed", "metrics": None})
    for entry in (failed, first, second, failed):
        file.append(entry)
    assert counted(file.read()) == [second]


@pytest.mark.parametrize("rate", ["Infinity", "-Infinity", "NaN"])
def test_a_rate_that_is_not_finite_is_refused_by_check_and_report_with_its_line(rate: str, tmp_path: Path) -> None:
    line = record("specmoe", 12345.5, 0).model_dump_json().replace("12345.5", rate)
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RecordError, match=r"results\.jsonl:1: metrics\.decode_tok_s is .*not a finite number"):
        sources.of(path, results=path)
    with pytest.raises(ReportError, match=r"results\.jsonl:1: metrics\.decode_tok_s is .*not a finite number"):
        load([path])


def test_a_speed_of_zero_gives_no_ratio() -> None:
    then = rounds(2)
    stopped = [
        r.model_copy(update={"metrics": r.metrics and r.metrics.model_copy(update={"decode_tok_s": 0.0})}) for r in then
    ]
    assert Evidence(then, stopped, paired=True).slowdowns() == {}
    assert Evidence(then, stopped, paired=False).slowdowns() == {}


def test_a_reference_that_the_baseline_lacks_is_refused(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.jsonl"
    for line in rounds(6):
        ResultFile(baseline).append(line)
    with pytest.raises(
        RecordError, match=r"no result of the reference 'fastest' in the baseline .*: name one of on-demand, "
    ):
        sources.of(baseline, results=baseline, reference="fastest")
    for line in rounds(6):
        if line.cell.system != "on-demand":
            ResultFile(tmp_path / "alone.jsonl").append(line)
    for against, results in (("alone", None), ("alone", "baseline"), ("baseline", "alone")):
        other = None if results is None else tmp_path / f"{results}.jsonl"
        with pytest.raises(
            RecordError, match=r"reference 'on-demand' in .*alone.jsonl: name one of specmoe with --ref"
        ):
            sources.of(tmp_path / f"{against}.jsonl", results=other, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_example_workflow_fails_on_bad_input_and_only_warns_without_a_decision() -> None:
    text = (ROOT / "docs" / "examples" / "performance-gate.yml").read_text()
    assert f'[ "$code" = {EXIT_CODES["cannot tell"]} ]' in text
    assert EXIT_CODES["cannot tell"] != cli.BAD_INPUT
