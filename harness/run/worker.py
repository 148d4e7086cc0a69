"""One cell in a process of its own: prepare, warm up, repeat, measure.

The parent places the process under its memory limit, then writes the job to standard input; the answer
is one JSON object in the job's result file.  Nothing heavy is imported before the job arrives.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.run.engines import Engines
from harness.run.enter import end_with_parent

if TYPE_CHECKING:
    from baselines.contract import Generation, Request
    from workloads.requests import Batch

LEFT_BEHIND = "left behind after close: "
Status = Literal["ok", "failed", "timeout", "not_supported"]


@dataclass
class Job:
    """What the parent asks for; ``action`` is ``build``, ``measure`` or ``reference``.

    ``prompts`` is a name or file that ``workloads.prompts`` knows, ``shape`` the fields of a ``RequestShape``; None
    is the default set, and ``new_tokens`` for every row.  ``engine_*`` are arguments of
    ``harness.run.engines.Engines``.
    """

    action: str
    system: str
    options: dict[str, Any]
    model_path: str
    store_path: str
    scratch: str
    dtype: str
    batch_size: int
    new_tokens: int
    prompt_offset: int
    prompts: str | None
    expert_budget_bytes: int | None
    threads: int
    warmup_tokens: int
    repetitions: int
    reference_path: str
    result_path: str
    process_limit_bytes: int | None = None
    shape: dict[str, Any] | None = None
    engine_prefix: list[str] = field(default_factory=list)
    engine_groups: list[str] = field(default_factory=list)
    engine_ids_path: str | None = None


@dataclass
class Answer:
    """What the worker says; ``repetitions`` are ``reports.results.record.Repetition`` fields."""

    status: Status = "ok"
    error: str | None = None
    repetitions: list[dict[str, Any]] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)
    peak_expert_bytes: int | None = None
    notes: list[str] = field(default_factory=list)


def main() -> None:
    end_with_parent()  # a killed run leaves nothing behind
    job = Job(**json.loads(sys.stdin.readline()))
    try:
        answer = run(job)
    except Exception as error:  # the process boundary: everything becomes an answer
        if type(error).__name__ == "NotSupported":
            answer = Answer("not_supported", str(error))
        else:
            answer = Answer("failed", f"{type(error).__name__}: {error}", notes=[traceback.format_exc(limit=-4)])
    Path(job.result_path).write_text(json.dumps(asdict(answer)))


def run(job: Job) -> Answer:
    """Carry out a job in this process."""
    import torch

    torch.set_num_threads(job.threads)
    if job.action == "reference":
        return _reference(job)

    from baselines import contract
    from harness.run import leaks

    engines = Engines(job.engine_prefix, job.engine_groups, Path(job.engine_ids_path) if job.engine_ids_path else None)
    system = contract.create(job.system, job.options)
    setting = contract.Setting(
        model_path=Path(job.model_path),
        store_path=Path(job.store_path),
        scratch=Path(job.scratch),
        dtype=getattr(torch, job.dtype),
        expert_budget_bytes=job.expert_budget_bytes,
        threads=job.threads,
        calibration_texts=_calibration_texts(job) if job.action == "build" else (),
        process_limit_bytes=job.process_limit_bytes,
        start_engine=engines.start,
    )
    if refusal := system.card.refusal(job.dtype, 1 if job.action == "build" else job.batch_size):
        raise contract.NotSupported(refusal)
    if job.action == "build":
        setting.scratch.mkdir(parents=True, exist_ok=True)
        system.build(setting)
        return Answer()
    threads = leaks.thread_names()
    started = time.perf_counter()
    try:
        system.prepare(setting)
        prepare_s = time.perf_counter() - started
        if system.card.own_process and not engines.started:
            raise RuntimeError(f"{job.system} has no engine: start it in prepare, with setting.start_engine")
        answer = _measure(job, system, prepare_s, engines)
    finally:
        system.close()
    folders = [setting.model_path, setting.store_path, setting.scratch]
    answer.notes += [LEFT_BEHIND + what for what in leaks.left_behind(folders, threads)]
    return answer


def _calibration_texts(job: Job) -> tuple[str, ...]:
    """Prompts to profile the model with, as the model is fed them; none is ever measured."""
    from transformers import AutoTokenizer

    from workloads import prompts
    from workloads.rendering import render

    tokenizer = AutoTokenizer.from_pretrained(job.model_path)
    chosen = prompts.calibration(prompts.load(job.prompts or prompts.DEFAULT))
    rendered = [render(prompt, tokenizer) for prompt in chosen]
    return tuple(one.body + one.end for one in rendered)


def batch(job: Job) -> Batch:
    """The cell's request: its prompts as ids, and how many tokens each row is asked for."""
    from transformers import AutoTokenizer

    from workloads import prompts, requests
    from workloads.lengths import RequestShape

    tokenizer = AutoTokenizer.from_pretrained(job.model_path, padding_side="left")
    chosen = prompts.measured(prompts.load(job.prompts or prompts.DEFAULT))
    shape = RequestShape.model_validate(job.shape or {"output_tokens": job.new_tokens})
    return requests.make(chosen, tokenizer, shape, job.batch_size, job.prompt_offset, _context_tokens(job))


def _context_tokens(job: Job) -> int | None:
    """Positions of the model, where its configuration says so."""
    config = json.loads((Path(job.model_path) / "config.json").read_text(encoding="utf-8"))
    positions = config.get("text_config", config).get("max_position_embeddings")
    return int(positions) if positions else None


def _reference(job: Job) -> Answer:
    """Write the resident model's own greedy tokens, which every system is compared with."""
    import torch
    from transformers import AutoModelForCausalLM

    asked = batch(job)
    ids, mask, new_tokens = asked.input_ids, asked.attention_mask, max(asked.output_tokens)
    model = AutoModelForCausalLM.from_pretrained(job.model_path, dtype=getattr(torch, job.dtype))
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    rows = output[:, ids.shape[1] :].tolist()
    tokens = [row[:length] for row, length in zip(rows, asked.output_tokens, strict=True)]
    Path(job.reference_path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{job.reference_path}.partial")
    partial.write_text(json.dumps(tokens))
    partial.rename(job.reference_path)
    return Answer()


def _measure(job: Job, system: Any, prepare_s: float, engines: Engines) -> Answer:
    from baselines.contract import Request

    asked = batch(job)
    ids, mask, lengths = asked.input_ids, asked.attention_mask, asked.output_tokens
    ragged = lengths if len(set(lengths)) > 1 else None
    reference = json.loads(Path(job.reference_path).read_text())
    answer = Answer(phases_s={"prepare": prepare_s})
    if job.warmup_tokens:
        system.generate(Request(ids, mask, job.warmup_tokens, lambda: None))
    for _ in range(job.repetitions):
        marks = [_Mark.now(engines)]
        request = Request(ids, mask, max(lengths), lambda: marks.append(_Mark.now(engines)), ragged)  # noqa: B023
        generation = system.generate(request)
        marks.append(_Mark.now(engines))
        if len(marks) != 3:
            raise RuntimeError(f"{job.system} reported its first token {len(marks) - 2} times: exactly once is asked")
        _check_lengths(generation, request)
        repetition = _repetition(marks, generation, request, reference)
        answer.repetitions.append(repetition | _oracle_times(system.card, generation.counters))
        answer.phases_s |= generation.counters.phases_s
        answer.peak_expert_bytes = generation.counters.peak_expert_bytes
    return answer


@dataclass(frozen=True)
class _Mark:
    """A moment: time and what the kernel had read for this process and its engines by then."""

    seconds: float
    read_bytes: int | None

    @classmethod
    def now(cls, engines: Engines) -> _Mark:
        return cls(time.perf_counter(), engines.read_bytes())


def _check_lengths(generation: Generation, request: Request) -> None:
    """Every row has what it was asked for: no rate counts other tokens.

    Raises:
        RuntimeError: naming the first row that has not.
    """
    given = [len(row) for row in generation.rows()]
    if len(given) != len(request.lengths):
        raise RuntimeError(f"{len(given)} rows came back, {len(request.lengths)} were asked for")
    for row, (length, asked) in enumerate(zip(given, request.lengths, strict=True)):
        if length != asked:
            raise RuntimeError(f"row {row} came back with {length} tokens, {asked} were asked for")


def _repetition(marks: list[_Mark], generation: Generation, request: Request, reference: Any) -> dict[str, Any]:
    counters, tokens = generation.counters, generation.rows()
    start, first, end = marks
    drafted, accepted = counters.drafted_by_position, counters.accepted_by_position
    return {
        "prefill_s": first.seconds - start.seconds,
        "decode_s": end.seconds - first.seconds,
        "prompt_tokens": int(request.attention_mask.sum()),
        "new_tokens": sum(map(len, tokens)),
        "new_tokens_by_row": list(request.lengths) if request.output_tokens else None,
        "decode_steps": counters.decode_steps or request.new_tokens - 1,
        "tokens_per_step": counters.tokens_per_step,
        "prefill_link_bytes": counters.prefill_link_bytes,
        "decode_link_bytes": counters.decode_link_bytes,
        "decode_link_busy_s": counters.decode_link_busy_s,
        "decode_link_wait_s": counters.decode_link_wait_s,
        "prefill_kernel_read_bytes": _difference(start.read_bytes, first.read_bytes),
        "decode_kernel_read_bytes": _difference(first.read_bytes, end.read_bytes),
        "drafted_by_position": drafted,
        "accepted_by_position": accepted,
        "drafted_tokens": sum(drafted) if drafted is not None else None,
        "accepted_tokens": sum(accepted) if accepted is not None else None,
        "expert_requests": counters.expert_requests,
        "expert_hits": counters.expert_hits,
        "prefetched_bytes": counters.prefetched_bytes,
        "prefetch_useful_bytes": counters.prefetch_useful_bytes,
        "prefetch_late_bytes": counters.prefetch_late_bytes,
        "prefetch_wasted_bytes": counters.prefetch_wasted_bytes,
        "phases_s": counters.phases_s,
        "affinity_table_bytes": counters.affinity_table_bytes,
        "cycles": counters.cycles,
        "fidelity": fidelity(tokens, reference),
    }


def _oracle_times(card: Any, counters: Any) -> dict[str, float]:
    """Times an oracle computed, in place of the clock's; from any other system they are an error."""
    times = {"prefill_s": counters.oracle_prefill_s, "decode_s": counters.oracle_decode_s}
    given = {name: value for name, value in times.items() if value is not None}
    if bool(given) != (card.kind == "oracle"):
        raise RuntimeError(
            f"{card.name} is of kind {card.kind!r}: computed times come from oracles, and only from them"
        )
    return given


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def fidelity(tokens: list[list[int]], reference: list[list[int]]) -> float:
    """Mean over rows of the common prefix's length over the reference's: 1.0 is token for token equal."""
    shares = []
    for row, expected in zip(tokens, reference, strict=True):
        same = next((i for i, pair in enumerate(zip(row, expected, strict=False)) if pair[0] != pair[1]), len(expected))
        shares.append(same / len(expected) if len(row) == len(expected) else 0.0)
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
