"""Does a system keep the contract?  The same processes, limits and counters as a benchmark, on small models.

``examine`` runs a system on the embedded model and on one eight times wider and judges what came back, in the
order of ``CHECKS``.  A system that says it cannot run here is skipped, with its reason, and is no failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from baselines import contract
from harness import leaks
from harness.config import validate
from harness.limits import drop_page_cache
from harness.proc import kernel_read_bytes
from harness.record import Record
from harness.runner import Runner, scratch_path
from harness.worker import LEFT_BEHIND, Answer, Job
from specmoe.store import INDEX
from workloads import models

SMALL, LARGE = "embedded", "embedded-x8"
RAGGED = {"distribution": "uniform", "low": 2, "high": 14}
SLACK_BYTES = 64 << 20
BYTES_TOLERANCE = 0.1
WORKER_TIMEOUT_S = 300


@dataclass(frozen=True)
class Check:
    """One verdict; ``detail`` says what was seen."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass
class Evidence:
    """What the runs of one system left to judge."""

    card: contract.CapabilityCard
    records: dict[str, Record] = field(default_factory=dict)
    refusals: dict[str, Answer] = field(default_factory=dict)
    unknown_option: str | None = None
    leftovers: list[str] = field(default_factory=list)
    large_expert_bytes: int = 0
    kernel_counts_reads: bool = False


class _Skip(Exception):
    """The check does not apply; the message says why."""


def examine(name: str, options: dict[str, Any], work: Path) -> list[Check]:
    """All checks on one system; ``work`` keeps reference outputs, so share it between systems.

    Raises:
        ValueError: unknown system or option.
    """
    evidence = Evidence(contract.create(name, options).card)
    with _private_temporary_folder(work) as (temporary, mark):
        _run_all(name, options, work, evidence)
        evidence.leftovers += [f"temporary file {path}" for path in leaks.listing([temporary])]
        evidence.leftovers += [f"process {pid}" for pid in leaks.marked_processes(mark)]
    return [_judge(check, evidence) for check in CHECKS]


def _run_all(name: str, options: dict[str, Any], work: Path, evidence: Evidence) -> None:
    try:
        contract.create(name, {**options, "no_such_option": 1})
    except ValueError as error:
        evidence.unknown_option = str(error)
    evidence.records["one row"] = _run(name, options, work, SMALL, batch=1, budget="50%")
    if evidence.records["one row"].status == "not_supported":
        return
    folders = [models.path(SMALL), models.store_path(SMALL, "float32"), _scratch(name)]
    before = leaks.listing(folders)
    evidence.records["ragged"] = _run(name, options, work, SMALL, batch=5, budget="50%", new_tokens=RAGGED)
    evidence.leftovers += [f"file {path}" for path in leaks.listing(folders).keys() - before.keys()]
    evidence.records["large"] = _run(name, options, work, LARGE, batch=3, budget="25%")
    evidence.large_expert_bytes = sum(leaks.listing([models.store_path(LARGE, "float32")]).values())
    evidence.kernel_counts_reads = _kernel_counts_reads(models.store_path(LARGE, "float32") / INDEX)
    evidence.refusals["a model folder that does not exist"] = _refusal(
        name, options, work, Path("/no/such/model"), None
    )
    if evidence.card.knows_budget:
        evidence.refusals["an expert budget of one byte"] = _refusal(name, options, work, models.path(SMALL), 1)


def _run(
    name: str, options: dict[str, Any], work: Path, model: str, batch: int, budget: str, new_tokens: Any = 10
) -> Record:
    """One cell through the runner, as a benchmark would."""
    experiment = {
        "name": "conformance",
        "model": model,
        "systems": [{"system": name, "options": options}],
        "batch_sizes": [batch],
        "expert_budget": budget,
        "new_tokens": new_tokens,
        "rounds": 1,
        "warmup_tokens": 2,
        "repetitions": 2,
        "threads": 1,
        "timeout_s": WORKER_TIMEOUT_S,
    }
    runner = Runner(validate(experiment, "conformance"), work, show=lambda line: None)
    runner.results.path.unlink(missing_ok=True)
    runner.run(resume=True)  # the folder is shared for its references, its results are not kept
    (record,) = runner.results.read()
    return record


def _kernel_counts_reads(file: Path) -> bool:
    """Whether reading a file that is not cached shows in the kernel's counter (on tmpfs, say, it does not)."""
    drop_page_cache([file])
    before = kernel_read_bytes()
    file.read_bytes()
    after = kernel_read_bytes()
    return before is not None and after is not None and after > before


def _scratch(name: str) -> Path:
    return scratch_path(models.path(SMALL), models.store_path(SMALL, "float32"), name)


def _refusal(name: str, options: dict[str, Any], work: Path, model: Path, budget: int | None) -> Answer:
    """The answer of a worker that is given something it must refuse."""
    result, reference = work / "refusal.json", work / "refusal-reference.json"
    result.unlink(missing_ok=True)
    reference.write_text("[[0, 0]]")  # so that only the system itself can refuse
    existing = model == models.path(SMALL)
    job = Job(
        action="measure",
        system=name,
        options=options,
        model_path=str(model),
        store_path=str(models.store_path(SMALL, "float32") if existing else model / "store"),
        scratch=str(_scratch(name) if existing else work / "no-scratch"),
        dtype="float32",
        batch_size=1,
        new_tokens=2,
        prompt_offset=0,
        prompts=None,
        expert_budget_bytes=budget,
        threads=1,
        warmup_tokens=0,
        repetitions=1,
        reference_path=str(reference),
        result_path=str(result),
    )
    process = subprocess.run(
        [sys.executable, "-m", "harness.worker"],
        input=json.dumps(asdict(job)) + "\n",
        capture_output=True,
        text=True,
        timeout=WORKER_TIMEOUT_S,
        check=False,
    )
    if not result.exists():
        return Answer("failed", f"the process died with code {process.returncode}", notes=["died"])
    return Answer(**json.loads(result.read_text()))


@contextlib.contextmanager
def _private_temporary_folder(work: Path) -> Iterator[tuple[Path, str]]:
    """Workers get a temporary folder of their own and a mark by which any descendant is found."""
    mark = uuid.uuid4().hex
    temporary = work / f"tmp-{mark}"
    temporary.mkdir(parents=True)
    given = {"TMPDIR": str(temporary), leaks.MARK: mark}
    before = {key: os.environ.get(key) for key in given}
    os.environ.update(given)
    try:
        yield temporary, mark
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _judge(name: str, evidence: Evidence) -> Check:
    first = evidence.records["one row"]
    if first.status == "not_supported":
        return Check(name, "skipped", first.error or "no reason given")
    try:
        return Check(name, "passed", CHECKS[name](evidence))
    except _Skip as reason:
        return Check(name, "skipped", str(reason))
    except AssertionError as error:
        return Check(name, "failed", str(error))


def _finished(evidence: Evidence, which: str) -> Record:
    record = evidence.records[which]
    if record.status == "not_supported":
        raise _Skip(record.error or "no reason given")
    assert record.status == "ok", f"{record.status}: {record.error}"
    assert record.metrics is not None
    return record


def _equal_tokens(which: str) -> Callable[[Evidence], str]:
    def check(evidence: Evidence) -> str:
        record = _finished(evidence, which)
        assert record.metrics is not None
        fidelity = record.metrics.fidelity
        if not evidence.card.lossless:
            raise _Skip(f"the card says lossy; fidelity {fidelity}")
        assert fidelity == 1.0, f"fidelity {fidelity} against transformers' greedy tokens in float32: 1.0 is asked"
        tokens = record.repetitions[0].new_tokens
        return f"{tokens} tokens of {record.cell.batch_size} rows equal transformers' in float32"

    return check


def _rows_end_at_their_own_length(evidence: Evidence) -> str:
    """The worker refuses an answer with a row that is too long or too short; here is what was asked for."""
    record = _finished(evidence, "ragged")
    asked = record.cell.shape.output_lengths(record.cell.batch_size)
    for repetition in record.repetitions:
        given = repetition.new_tokens_by_row
        assert given == asked, f"rows came back with {given} tokens, {asked} were asked for"
        assert repetition.new_tokens == sum(asked), f"{repetition.new_tokens} tokens counted, {sum(asked)} asked for"
    return f"rows of {', '.join(map(str, asked))} tokens"


def _budget_is_kept(evidence: Evidence) -> str:
    """The kernel's peak of the process, and for systems that know the budget the growth with the model's size."""
    small, large = _finished(evidence, "ragged"), _finished(evidence, "large")
    assert small.metrics is not None
    assert large.metrics is not None
    limit, budget = large.limit, large.cell.expert_budget_bytes or 0
    if limit.enforced and limit.peak_bytes is not None and limit.limit_bytes is not None:
        assert limit.peak_bytes <= limit.limit_bytes, f"peak {limit.peak_bytes} beyond the limit {limit.limit_bytes}"
    reported = large.metrics.peak_device_expert_bytes
    if reported is not None and evidence.card.knows_budget:
        assert reported <= budget, f"reports {reported} expert bytes, the budget is {budget}"
    if not evidence.card.knows_budget:
        if not limit.enforced:
            raise _Skip(f"knows no budget, and no limit was enforced: {limit.why_not}")
        return f"kernel peak {_mb(limit.peak_bytes)} within the process limit of {_mb(limit.limit_bytes)}"
    peaks = small.metrics.peak_rss_bytes, large.metrics.peak_rss_bytes
    if peaks[0] is None or peaks[1] is None or evidence.large_expert_bytes < 2 * (budget + SLACK_BYTES):
        raise _Skip("no resident sizes from the kernel, or a model too small to tell")
    grown = peaks[1] - peaks[0]
    allowed = budget + SLACK_BYTES
    assert grown <= allowed, (
        f"with {_mb(evidence.large_expert_bytes)} of experts the process grew by {_mb(grown)}: {_mb(allowed)} allowed"
    )
    return f"grew by {_mb(grown)} for {_mb(evidence.large_expert_bytes)} of experts under a budget of {_mb(budget)}"


def _bytes_agree(evidence: Evidence) -> str:
    record = _finished(evidence, "large")
    assert record.metrics is not None
    link, kernel = record.metrics.link_bytes, record.metrics.kernel_read_bytes
    if link is None:
        raise _Skip("reports no link bytes: the kernel's alone are used")
    if kernel is None or not evidence.kernel_counts_reads:
        raise _Skip("the kernel counts no reads here")
    if link == 0 == kernel:
        return "no byte moved, by either count"
    assert kernel, f"reports {_mb(link)}, the kernel read none: they came from the page cache, which is no slow tier"
    assert abs(link / kernel - 1) <= BYTES_TOLERANCE, f"reports {_mb(link)}, the kernel read {_mb(kernel)}"
    return f"reports {_mb(link)}, the kernel read {_mb(kernel)}"


def _bad_input_is_refused(evidence: Evidence) -> str:
    assert evidence.unknown_option, "an unknown option was accepted: derive Options from SystemOptions"
    for what, answer in evidence.refusals.items():
        assert answer.status != "ok", f"{what} was accepted"
        assert answer.error, f"{what} was refused without a reason"
        assert "died" not in answer.notes, f"{what}: {answer.error}"
    return f"refused: an unknown option, {', '.join(evidence.refusals)}"


def _nothing_is_left(evidence: Evidence) -> str:
    noted = [n for record in evidence.records.values() for n in record.notes if n.startswith(LEFT_BEHIND)]
    found = [*noted, *evidence.leftovers]
    assert not found, "; ".join(found)
    return "no thread, process, open file or new file after close"


def _mb(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else f"{nbytes / 1e6:.0f} MB"


CHECKS: dict[str, Callable[[Evidence], str]] = {
    "equal-tokens": _equal_tokens("one row"),
    "equal-tokens-ragged-batch": _equal_tokens("ragged"),
    "ragged-output-lengths": _rows_end_at_their_own_length,
    "equal-tokens-tight-memory": _equal_tokens("large"),
    "budget-kept": _budget_is_kept,
    "bytes-agree-with-kernel": _bytes_agree,
    "bad-input-refused": _bad_input_is_refused,
    "clean-shutdown": _nothing_is_left,
}
