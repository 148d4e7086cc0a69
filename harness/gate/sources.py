"""Where the gate's evidence comes from: a second result file, reruns of this code, or runs of both revisions."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.gate.evidence import Evidence, relative_speeds
from harness.plan.experiment import validate
from harness.run.runner import RunError, Runner
from reports.results.record import Record, RecordError, ResultFile
from reports.results.roles import REFERENCE
from reports.results.rounds import counted
from reports.results.stats import FEW_ROUNDS


def of(
    against: Path,
    *,
    results: Path | None = None,
    revision: str | None = None,
    reference: str = REFERENCE,
    max_rounds: int = 20,
    out: Path | None = None,
) -> Iterator[Evidence]:
    """The evidence for a decision against a baseline: ``results``, reruns in ``out``, or runs of two revisions.

    Raises:
        RecordError: a file cannot be read, or lacks the ``reference`` where speeds are relative to it.
        ValueError: options that contradict each other.
    """
    then = counted(ResultFile(against).read())
    if max_rounds < 1:
        raise ValueError(f"--max-rounds {max_rounds}: at least one round is needed")
    if results and revision:
        raise ValueError("--results and --revision exclude each other: compare files, or run two revisions")
    if not revision:
        _has_reference(then, reference, f"the baseline {against}")
    if results:
        now = counted(ResultFile(results).read())
        _has_reference(now, reference, str(results))
        return iter([Evidence(then, now, paired=False, reference=reference)])
    out = out or Path("results") / "check" / time.strftime("%Y%m%d-%H%M%S")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another --out")
    if revision:
        return both_revisions(then, revision, out, max_rounds)
    _enough(then, reference)
    return rerun(then, out, max_rounds, reference)


def _has_reference(records: list[Record], reference: str, where: str) -> None:
    """Refuse results in which no speed could be relative to the reference.

    Raises:
        RecordError: names the missing reference and the systems that are there.
    """
    systems = dict.fromkeys(record.cell.system for record in records if record.finished)
    if reference not in systems:
        there = f"name one of {', '.join(systems)} with --reference" if systems else "nothing in it has finished"
        raise RecordError(
            f"no result of the reference {reference!r} in {where}: {there}, or compare code with --revision"
        )


def _enough(then: list[Record], reference: str) -> None:
    """Refuse a baseline that no rerun could be decided against, before anything runs.

    Raises:
        RecordError: the baseline has no cell with enough rounds.
    """
    rounds = max(map(len, relative_speeds(then, reference).values()), default=0)
    if rounds < FEW_ROUNDS:
        raise RecordError(
            f"the baseline holds {rounds} rounds with {reference!r} beside another system, {FEW_ROUNDS} are needed: "
            "record it with `run ... --set rounds=10`, or compare code with --revision"
        )


def rerun(then: list[Record], out: Path, max_rounds: int, reference: str = REFERENCE) -> Iterator[Evidence]:
    """Run the recorded experiment with this code, one more round at a time."""
    payload = config_of(then)
    for rounds in range(1, max_rounds + 1):
        runner = Runner.open(validate(payload | {"rounds": rounds}, "baseline"), out, show=lambda line: None)
        runner.run(resume=rounds > 1)
        yield Evidence(then, counted(runner.results.read()), paired=False, reference=reference)


def both_revisions(then: list[Record], revision: str, out: Path, max_rounds: int) -> Iterator[Evidence]:
    """Run the recorded experiment with the code of ``revision`` and with this code, in turns.

    Raises:
        RunError: the revision cannot be checked out, or its runner does not finish.
    """
    if revision.startswith("-"):
        raise RunError(f"{revision!r} is not a revision: name a branch, a tag or a commit")
    payload = _for_another_folder(config_of(then))
    here = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="specmoe-bench-revision-") as folder:
        there = Path(folder) / "code"
        _git(here, "worktree", "add", "--detach", str(there), revision)
        try:
            evidence = Evidence([], [], paired=True)
            for number in range(max_rounds):
                sides = [(there, evidence.then, "then"), (here, evidence.now, "now")]
                for code, records, name in sides if number % 2 == 0 else reversed(sides):
                    records += _one_round(code, payload, number, out / f"{name}-{number}")
                yield evidence
        finally:
            _git(here, "worktree", "remove", "--force", str(there))


def config_of(records: list[Record]) -> dict[str, Any]:
    """The one configuration a baseline was recorded with, without fields that have their default.

    Raises:
        RecordError: none, or several.
        ConfigError: this release cannot run it.
    """
    known = {json.dumps({**r.config, "rounds": 0}, sort_keys=True) for r in records if r.config}
    if len(known) != 1:
        raise RecordError(
            f"the baseline holds {len(known)} configurations, one is needed: give a results.jsonl of one experiment"
        )
    config = json.loads(known.pop())
    config.setdefault("stored_dtype", config.get("dtype"))  # a baseline from before experts had a dtype of their own
    experiment = validate(config | {"rounds": 1}, "the baseline")
    return experiment.model_dump(mode="json", exclude_defaults=True)  # fields that an older revision may not know


def _for_another_folder(payload: dict[str, Any]) -> dict[str, Any]:
    """The configuration with absolute paths."""

    def resolved(name: str | None) -> str | None:
        return str(Path(name).resolve()) if name and Path(name).exists() else name

    files: dict[str, Any] = {"model": resolved(payload["model"])}
    if "prompts" in payload:
        files["prompts"] = [resolved(name) for name in payload["prompts"]]
    return payload | files


def _one_round(code: Path, payload: dict[str, Any], number: int, out: Path) -> list[Record]:
    out.mkdir(parents=True, exist_ok=False)
    experiment = out / "experiment.yaml"
    known = payload if _has_stored_dtype(code) else {k: v for k, v in payload.items() if k != "stored_dtype"}
    experiment.write_text(json.dumps(known | {"rounds": 1, "seed": number}), encoding="utf-8")
    command = [sys.executable, "-m", "harness.cli", "run", str(experiment.resolve()), "--out", str(out.resolve())]
    done = subprocess.run(command, cwd=code, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: cells failed; their records say so
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
        raise RunError(f"the run of {code.name} ended with {done.returncode}: {last}")
    return [r.model_copy(update={"round": number}) for r in counted(ResultFile(out / "results.jsonl").read())]


def _has_stored_dtype(code: Path) -> bool:
    """Whether the experiments of a revision have the field; before it, experts were stored in the compute dtype."""
    return "stored_dtype" in (code / "harness" / "plan" / "experiment.py").read_text(encoding="utf-8")


def _git(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
        raise RunError(f"git {arguments[0]} failed ({last}): name a revision of this repository, and run in a checkout")
