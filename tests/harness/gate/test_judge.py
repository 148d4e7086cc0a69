"""The gate decides by intervals and by deterministic metrics, stops early, and says when it cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli import main as cli
from harness.gate.evidence import Evidence
from harness.gate.judge import EXIT_CODES, gate, judge, percentage
from reports.results.metrics import Metrics
from reports.results.record import Record, ResultFile
from reports.results.repetition import Repetition
from tests.harness.gate.records import record, rounds


def growing(then: list[Record], slowdown: float, seed: int, limit: int = 20, **changes: float) -> Iterator[Evidence]:
    for count in range(1, limit + 1):
        yield Evidence(then, rounds(count, slowdown, seed=seed, **changes), paired=False)


def test_a_slowdown_beyond_the_allowed_is_a_regression_on_any_machine() -> None:
    then = rounds(10, seed=1)
    assert gate(growing(then, 1.15, seed=2, machine=7.0), 0.05).verdict == "regression"
    assert gate(growing(then, 1.00, seed=3, machine=7.0), 0.05).verdict == "pass"


def test_it_stops_as_soon_as_the_interval_clears_the_allowed_slowdown() -> None:
    judgement = gate(growing(rounds(10, seed=1), 1.5, seed=2), 0.05)
    assert (judgement.verdict, judgement.evaluations) == ("regression", 6)


def test_noise_too_wide_cannot_tell() -> None:
    then = rounds(10, seed=1, noise=0.4)
    judgement = gate(growing(then, 1.0, seed=2, limit=8, noise=0.4), 0.05)
    assert judgement.verdict == "cannot tell"
    assert "idle machine" in str(judgement)


def test_few_rounds_cannot_tell_however_clear_they_look() -> None:
    judgement = judge(Evidence(rounds(10), rounds(3, slowdown=3.0), paired=False), 0.05)
    assert judgement.verdict == "cannot tell"
    assert "3 of at least 6 rounds" in str(judgement)


def test_it_says_how_often_it_evaluated() -> None:
    evidence = Evidence(rounds(10), rounds(3), paired=False)
    assert "cannot tell (after 1 evaluation)" in str(judge(evidence, 0.05, evaluations=1))
    assert "cannot tell (after 2 evaluations)" in str(judge(evidence, 0.05, evaluations=2))


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
    for results, code in ((same, 0), (slow, 1), (few, 3), (str(tmp_path / "none.jsonl"), 2)):
        assert cli.main(["check", "--against", then, "--max-slowdown", "5%", "--results", results]) == code
    assert capsys.readouterr().out.count("speed ") >= 3
    assert EXIT_CODES == {"pass": 0, "regression": 1, "cannot tell": 3}


@pytest.mark.parametrize("text", ["5", "-1%", "much", "100%", "nan"])
def test_an_allowed_slowdown_that_is_not_a_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="share"):
        percentage(text)


def test_shares_are_read() -> None:
    assert percentage("5%") == pytest.approx(percentage("0.05"))


def _with_output(kind: str, **metrics: float) -> list[Record]:
    """Eight rounds in which specmoe's tokens compare with the reference as ``kind``."""
    difference = {"row": 0, "position": 3, "token": 5, "reference_token": 9, "margin": 0.5, "kind": kind}
    repetition = Repetition(
        **{"prefill_s": 1, "decode_s": 1, "prompt_tokens": 4, "new_tokens": 32, "decode_steps": 7, "noise_floor": 0.1},
        fidelity_kind=kind,
        differences=[] if kind == "equal" else [difference],
    )
    return [
        r.model_copy(
            update={"repetitions": [repetition], "metrics": r.metrics and r.metrics.model_copy(update=metrics)}
        )
        if r.cell.system == "specmoe"
        else r
        for r in rounds(8)
    ]


def test_a_tie_is_no_regression_although_its_counts_are_those_of_other_tokens() -> None:
    tie = _with_output("tie", fidelity=0.8, tokens_per_step=2.3)
    for then, now in ((_with_output("equal"), tie), (tie, _with_output("equal")), (rounds(8), tie)):
        assert judge(Evidence(then, now, paired=False), 0.05).verdict == "pass"


def test_output_that_rounding_does_not_explain_is_a_regression_whatever_the_baseline_holds() -> None:
    wrong = _with_output("differs", fidelity=0.8)
    for then in (_with_output("equal"), wrong):
        judgement = judge(Evidence(then, wrong, paired=False), 0.05)
        assert judgement.verdict == "regression"
        assert "row 0, new token 3: 5 for 9, logit margin 0.5, noise floor 0.1" in str(judgement)
    lossy = [r.model_copy(update={"lossless": False}) for r in wrong]
    assert judge(Evidence(lossy, lossy, paired=False), 0.05).verdict == "pass"


def test_a_metric_newer_than_the_baseline_is_not_compared() -> None:
    now = [
        r.model_copy(update={"metrics": r.metrics and r.metrics.model_copy(update={"hit_rate": 0.5})})
        for r in rounds(8)
    ]
    judged = [r.model_copy(update={"metrics": r.metrics and _without(r.metrics, "fidelity")}) for r in rounds(8)]
    assert judge(Evidence(judged, now, paired=False), 0.05).verdict == "pass"


def _without(metrics: Metrics, name: str) -> Metrics:
    return Metrics(**{key: value for key, value in metrics.model_dump(exclude_unset=True).items() if key != name})


def test_sampled_tokens_of_another_distribution_are_a_regression_at_any_speed() -> None:
    then = rounds(10)
    wrong = [r.model_copy(update={"metrics": r.metrics.model_copy(update={"distribution_p": 1e-9})}) for r in then]
    judgement = judge(Evidence(then, wrong, paired=False), 0.05)
    assert judgement.verdict == "regression"
    assert "sampled tokens are not distributed as the reference's (p = 1e-09 below 0.0001)" in str(judgement)
