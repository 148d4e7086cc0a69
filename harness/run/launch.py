"""One worker process from start to end: its limit, its telemetry, and its answer or the reason for having none."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.machine.limits import MemoryLimit
from harness.machine.telemetry import Telemetry
from harness.run.engines import last_id
from harness.run.job import LEFT_BEHIND, Answer, Job
from reports.results.record import Limit, Usage

_COMMAND = (sys.executable, "-m", "harness.run")
WAITING = {"GOMP_SPINCOUNT": "1000"}
"""How OpenMP threads wait for work, unless the environment says otherwise: they spin for 20 to 50 microseconds.

That serves the next product, if it comes at once.  Threads that spin on (the default is some milliseconds) take a core
from the thread that they wait for as soon as another process is busy.
"""
_OOM = "killed by the kernel at the memory limit: raise process_overhead or lower expert_budget"


@dataclass(frozen=True)
class Outcome:
    """The end of a worker process: its answer, the limit it ran under, and its resource usage."""

    answer: Answer
    limit: Limit
    usage: Usage | None
    wall_s: float


def run(job: Job, limit: MemoryLimit, timeout_s: float) -> Outcome:
    """Run a job to its end.

    The limit is in force before what it covers imports anything: the worker, or the engine that the worker starts.
    """
    started = time.monotonic()
    with limit, contextlib.ExitStack() as stack:
        ids = Path(f"{job.paths.result}.engines")
        if limit.covers == "engine":
            prefix, groups = limit.entry()
            entry = {"engine_prefix": tuple(prefix), "engine_groups": tuple(groups), "engine_ids": ids}
            job = job.model_copy(update={"limit": job.limit.model_copy(update=entry)})
        errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        process = subprocess.Popen(
            _COMMAND if limit.covers == "engine" else limit.command(_COMMAND),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            env=WAITING | os.environ,
        )
        if limit.covers == "engine":
            telemetry = Telemetry(process.pid, engine=lambda: _engine(ids, limit))
        else:
            limit.add(process.pid)
            telemetry = Telemetry(process.pid, limit.group())
        with telemetry:
            answer = _communicate(process, job, limit, timeout_s, errors)
        report = limit.report()
    return Outcome(answer, report, telemetry.usage(), time.monotonic() - started)


def _engine(ids: Path, limit: MemoryLimit) -> tuple[int, Path | None] | None:
    """The engine to watch and its group, once the worker has started it."""
    pid = last_id(ids)
    if pid is None:
        return None
    if limit.group() is None:
        limit.find(pid)
    return pid, limit.group()


def _communicate(
    process: subprocess.Popen[str], job: Job, limit: MemoryLimit, timeout_s: float, errors: IO[str]
) -> Answer:
    """Send the job and wait for the worker's end; no process of the limit's group is left, whatever happens.

    ``errors`` is the worker's standard error: a file, since a pipe ends only with the last process that inherits it.
    """
    try:
        process.communicate(job.model_dump_json() + "\n", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        limit.kill_members()
        process.wait()
        return Answer("timeout", f"ran longer than {timeout_s:.0f} s: raise timeout_s")
    except BaseException:
        process.kill()
        limit.kill_members()
        process.wait()
        raise
    errors.seek(0)
    answer = _read_answer(job.paths.result, process.returncode, errors.read(), limit)
    killed = limit.kill_members()
    if limit.covers == "engine" and answer.status == "ok":  # a worker names its own children itself
        answer.notes += [f"{LEFT_BEHIND}process {pid}" for pid in killed]
    return answer


def _read_answer(result: Path, returncode: int, stderr: str, limit: MemoryLimit) -> Answer:
    if not result.exists():
        last = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
        cause = _OOM if limit.oom_kills() else last
        return Answer("failed", f"worker ended with code {returncode}: {cause}")
    answer = Answer(**json.loads(result.read_text()))
    if limit.covers == "engine" and answer.status != "ok" and limit.oom_kills():
        answer.status, answer.error = "failed", f"engine {_OOM}"
    return answer
