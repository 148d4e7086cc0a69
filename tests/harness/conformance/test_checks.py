"""Every conformance check fails on what it is there to catch, passes otherwise, and works without ``assert``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from baselines.contract import CapabilityCard
from harness.conformance.checks import CHECKS, NEEDS, SLACK_BYTES, judge
from harness.conformance.evidence import Evidence
from harness.run.job import LEFT_BEHIND, Answer
from tests import ROOT
from tests.reports.records import BUDGET, record


def evidence(**changes: Any) -> Evidence:
    """Of a system that keeps the contract, with changes of the record of each run."""
    card = CapabilityCard("x", "x", "x", grain="experts", knows_budget=changes.pop("knows_budget", True))
    runs = {
        "one row": record("x", 10.0, batch=1),
        "ragged": record("x", 10.0, batch=5),
        "large": record("x", 10.0, batch=3, link=12e6),
    }
    cell = runs["ragged"].cell.model_copy(update={"output_tokens": None})
    lengths = cell.shape.output_lengths(5)
    repetitions = [
        r.model_copy(update={"new_tokens": sum(lengths), "new_tokens_by_row": lengths})
        for r in runs["ragged"].repetitions
    ]
    runs["ragged"] = runs["ragged"].model_copy(update={"repetitions": repetitions})
    for run, change in changes.items():
        runs[run.replace("_", " ")] = runs[run.replace("_", " ")].model_copy(update=change)
    return Evidence(
        card,
        records=runs,
        refusals={"a model folder that does not exist": Answer("failed", "no such folder")},
        unknown_option="unknown option",
        large_expert_bytes=4 * (BUDGET + SLACK_BYTES),
        kernel_counts_reads=True,
    )


def metrics(run: str, **changes: Any) -> dict[str, Any]:
    """A changed record of a run: its metrics with other figures."""
    known = evidence().records[run].metrics
    assert known is not None
    return {run.replace(" ", "_"): {"metrics": known.model_copy(update=changes)}}


@pytest.mark.parametrize("name", CHECKS)
def test_a_system_that_keeps_the_contract_passes(name: str) -> None:
    check = judge(name, evidence())
    assert check.passed, check.detail


@pytest.mark.parametrize(
    ("name", "changes", "detail"),
    [
        ("equal-tokens", metrics("one row", fidelity=0.9), "fidelity 0.9"),
        ("equal-tokens-ragged-batch", metrics("ragged", fidelity=0.9), "fidelity 0.9"),
        ("equal-tokens-tight-memory", {"large": {"status": "failed", "error": "out of memory"}}, "failed: out of mem"),
        ("ragged-output-lengths", {"ragged": {"repetitions": evidence().records["one row"].repetitions}}, "requested"),
        ("budget-kept", metrics("large", peak_device_expert_bytes=BUDGET + 1), "the budget is"),
        ("budget-kept", metrics("large", peak_rss_bytes=10**10), "allowed"),
        ("bytes-agree-with-kernel", metrics("large", link_bytes=1), "the kernel read"),
        ("bytes-agree-with-kernel", metrics("large", kernel_read_bytes=0), "page cache"),
        ("clean-shutdown", {"one_row": {"notes": [LEFT_BEHIND + "thread x"]}}, "thread x"),
    ],
)
def test_a_broken_contract_fails_its_check(name: str, changes: dict[str, Any], detail: str) -> None:
    check = judge(name, evidence(**changes))
    assert check.status == "failed"
    assert detail in check.detail


def test_accepted_bad_input_fails() -> None:
    accepted = evidence()
    accepted.unknown_option = None
    assert judge("bad-input-refused", accepted).status == "failed"
    for answer in (Answer(), Answer("failed", None), Answer("failed", "code -9", notes=["died"])):
        accepted = evidence()
        accepted.refusals["a budget of one byte"] = answer
        assert judge("bad-input-refused", accepted).status == "failed"


def test_a_system_that_cannot_run_here_is_skipped_with_its_reason() -> None:
    missing = evidence(one_row={"status": "not_supported", "error": "needs a GPU"})
    assert {(c.status, c.detail) for c in (judge(name, missing) for name in CHECKS)} == {("skipped", "needs a GPU")}


def test_every_check_says_which_runs_it_needs() -> None:
    assert NEEDS.keys() == CHECKS.keys()


@pytest.mark.slow
def test_checks_hold_without_assert_statements() -> None:
    """``python -O`` drops them."""
    code = (
        "from tests.harness.conformance.test_checks import evidence, metrics\n"
        "from harness.conformance.checks import judge\n"
        "print(judge('equal-tokens', evidence(**{'one_row': {'status': 'failed', 'error': 'x'}})).status)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "failed", done.stderr
