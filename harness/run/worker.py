"""Carries out one job in a worker process: prepare, warm up, repeat, measure; or build, or compute a reference.

``harness.run.__main__`` imports this module once its process is under the memory limit: nothing that runs before
may import it.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from baselines import contract
from baselines.contract import Generation, NotSupported, Request, Setting
from harness.run import leaks
from harness.run.engines import Engines
from harness.run.job import LEFT_BEHIND, Answer, Job
from specmoe.files import write_text
from workloads import prompts, requests
from workloads.prompt import Prompt
from workloads.rendering import render


def work(text: str) -> None:
    """Carry out the job in ``text`` (JSON) and write the answer to its result file, whatever happens."""
    job = Job.model_validate_json(text)
    try:
        answer = run(job)
    except NotSupported as error:
        answer = Answer("not_supported", str(error))
    except Exception as error:  # the process boundary: everything becomes an answer
        answer = Answer("failed", f"{type(error).__name__}: {error}", notes=[traceback.format_exc(limit=-4)])
    write_text(job.paths.result, json.dumps(asdict(answer)))


def run(job: Job) -> Answer:
    """Carry out a job in this process."""
    torch.set_num_threads(job.cell.threads)
    if job.action == "reference":
        return _reference(job)
    cell, limit = job.cell, job.limit
    engines = Engines(limit.engine_prefix, limit.engine_groups, limit.engine_ids)
    system = contract.create(cell.system, cell.options)
    if refusal := system.card.refusal(cell.dtype, 1 if job.action == "build" else cell.batch_size):
        raise NotSupported(refusal)
    setting = setting_of(job, engines)
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
            raise RuntimeError(f"{cell.system} has no engine: start it in prepare, with setting.start_engine")
        answer = _measure(job, system, prepare_s, engines)
    finally:
        system.close()
    folders = [setting.model_path, setting.store_path, setting.scratch]
    answer.notes += [LEFT_BEHIND + what for what in leaks.left_behind(folders, threads)]
    return answer


def setting_of(job: Job, engines: Engines) -> Setting:
    """What the adapter gets: fields named as in the cell are the cell's, the others belong to this process."""
    own: Mapping[str, Any] = {
        "model_path": job.paths.model,
        "store_path": job.paths.store,
        "scratch": job.paths.scratch,
        "dtype": getattr(torch, job.cell.dtype),
        "calibration_texts": _calibration_texts(job) if job.action == "build" else (),
        "process_limit_bytes": job.limit.process_limit_bytes,
        "start_engine": engines.start,
    }
    return Setting(**own, **{f.name: getattr(job.cell, f.name) for f in fields(Setting) if f.name not in own})


def _calibration_texts(job: Job) -> tuple[str, ...]:
    """Prompts to profile the model with, as the model is fed them; none is ever measured."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.paths.model)
    chosen = prompts.calibration(_prompts(job))
    rendered = [render(prompt, tokenizer) for prompt in chosen]
    return tuple(one.body + one.end for one in rendered)


def _prompts(job: Job) -> list[Prompt]:
    return prompts.load(job.cell.prompts or prompts.DEFAULT)


def batch(job: Job) -> requests.Batch:
    """The cell's request: its prompts as ids, and how many tokens each row is asked for."""
    from transformers import AutoTokenizer

    cell = job.cell
    tokenizer = AutoTokenizer.from_pretrained(job.paths.model, padding_side="left")
    chosen = prompts.measured(_prompts(job))
    return requests.make(chosen, tokenizer, cell.shape, cell.batch_size, cell.prompt_offset, _context_tokens(job))


def _context_tokens(job: Job) -> int | None:
    """Positions of the model, where its configuration says so."""
    config = json.loads((job.paths.model / "config.json").read_text(encoding="utf-8"))
    positions = config.get("text_config", config).get("max_position_embeddings")
    return int(positions) if positions else None


def _reference(job: Job) -> Answer:
    """Write the resident model's own greedy tokens, which every system is compared with."""
    from transformers import AutoModelForCausalLM

    asked = batch(job)
    ids, mask, new_tokens = asked.input_ids, asked.attention_mask, max(asked.output_tokens)
    model = AutoModelForCausalLM.from_pretrained(job.paths.model, dtype=getattr(torch, job.cell.dtype))
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    rows = output[:, ids.shape[1] :].tolist()
    tokens = [row[:length] for row, length in zip(rows, asked.output_tokens, strict=True)]
    write_text(job.paths.reference, json.dumps(tokens))
    return Answer()


def _measure(job: Job, system: Any, prepare_s: float, engines: Engines) -> Answer:
    asked = batch(job)
    ids, mask, lengths = asked.input_ids, asked.attention_mask, asked.output_tokens
    ragged = lengths if len(set(lengths)) > 1 else None
    reference = json.loads(job.paths.reference.read_text())
    answer = Answer(phases_s={"prepare": prepare_s})
    if job.cell.warmup_tokens:
        system.generate(Request(ids, mask, job.cell.warmup_tokens, lambda: None))
    for _ in range(job.cell.repetitions):
        marks = [_Mark.now(engines)]
        request = Request(ids, mask, max(lengths), lambda: marks.append(_Mark.now(engines)), ragged)  # noqa: B023
        generation = system.generate(request)
        marks.append(_Mark.now(engines))
        if len(marks) != 3:
            raise RuntimeError(
                f"{job.cell.system} reported its first token {len(marks) - 2} times: exactly once is asked"
            )
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
