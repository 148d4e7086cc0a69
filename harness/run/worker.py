"""Carries out one job in a worker process: prepare, warm up, repeat, measure; or build, or what the reference does.

``harness.run.__main__`` imports this module once its process is under the memory limit: nothing that runs before
may import it.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch

from baselines import registry
from baselines.contract import UNFINISHED, CapabilityCard, Generation, NotSupported, Request, Setting
from baselines.decoding import Decoding
from harness.run import leaks, queue_run, reference
from harness.run.differences import explained
from harness.run.engines import Engines
from harness.run.job import LEFT_BEHIND, Answer, Job
from harness.run.repetition import Arrivals, Mark, raw_figures
from reports.results.record import Cell
from specmoe.errors import BufferedReadsWarning
from specmoe.files import write_text
from workloads import prompts, requests, tokenizers
from workloads.prompt import Prompt
from workloads.rendering import render

NO_FIDELITY = (
    "fidelity is null: tokens are drawn at random, and distribution_p says whether as the reference model draws them"
)


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
    if job.action == "score":
        from harness.run import sampled

        return sampled.score(job, batch(job))
    cell, limit = job.cell, job.limit
    engines = Engines(limit.engine_prefix, limit.engine_groups, limit.engine_ids)
    system = registry.create(cell.system, cell.options)
    batch_size = 1 if job.action == "build" else cell.batch_size
    if refusal := system.card.refusal(
        cell.dtype, batch_size, cell.device, cell.slow_tier, cell.decoding, cell.requests
    ):
        raise NotSupported(refusal)
    if system.card.external and cell.disk_read_limit_bytes_s:
        raise NotSupported(
            f"{cell.system} runs outside of this harness, which cannot throttle its disk: remove disk_read_limit"
        )
    setting = setting_of(job, engines)
    if job.action == "build":
        setting.scratch.mkdir(parents=True, exist_ok=True)
        system.build(setting)
        return Answer()
    cap_device(cell, system.card)
    threads = leaks.thread_names()
    started = time.perf_counter()
    with noting_buffered_reads() as buffered:
        try:
            system.prepare(setting)
            prepare_s = time.perf_counter() - started
            if system.card.own_process and not engines.started:
                raise RuntimeError(f"{cell.system} has no engine: start it in prepare, with setting.start_engine")
            answer = _measure(job, system, prepare_s, engines)
        finally:
            system.close()
    answer.notes += [*buffered, *unproven(system.card, cell.device)]
    folders = [setting.model_path, setting.store_path, setting.scratch]
    answer.notes += [LEFT_BEHIND + what for what in leaks.left_behind(folders, threads)]
    return answer


def cap_device(cell: Cell, card: CapabilityCard) -> None:
    """Cap the GPU memory of this process for a system that knows no expert budget (torch's allocator alone)."""
    if cell.device == "cpu" or cell.device_limit_bytes is None or card.knows_budget or card.own_process:
        return
    device = torch.device(cell.device)
    everything = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cell.device_limit_bytes / everything), device)


def unproven(card: CapabilityCard, device: str) -> list[str]:
    """A note where an adapter was written for a device and had never run on it."""
    if device.partition(":")[0] not in card.only_written_for:
        return []
    return [f"{card.name} was written for {device} and had not been run there before: doubt its figures first"]


@contextlib.contextmanager
def noting_buffered_reads() -> Iterator[list[str]]:
    """Collects the warnings that direct reads fail, which change what a cell measures; all warnings are shown."""
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", BufferedReadsWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
            if issubclass(category, BufferedReadsWarning):
                notes.append(str(message))
            show(message, category, *where, **rest)

        warnings.showwarning = note
        yield notes


def setting_of(job: Job, engines: Engines) -> Setting:
    """What the adapter gets: fields named as in the cell are the cell's, the others belong to this process."""
    own: Mapping[str, Any] = {
        "model_path": job.paths.model,
        "store_path": job.paths.store,
        "scratch": job.paths.scratch,
        "dtype": getattr(torch, job.cell.dtype),
        "stored_dtype": getattr(torch, job.cell.stored),
        "calibration_texts": _calibration_texts(job) if job.action == "build" else (),
        "process_limit_bytes": job.limit.process_limit_bytes,
        "expert_budget_bytes": None if job.cell.fills_limit else job.cell.expert_budget_bytes,
        "probe": _probe(job) if job.cell.fills_limit and job.action == "measure" else None,
        "start_engine": engines.start,
    }
    return Setting(**own, **{f.name: getattr(job.cell, f.name) for f in fields(Setting) if f.name not in own})


def _probe(job: Job) -> Request:
    """The measured request, as in the warm-up: how much memory products take depends on how its tokens are routed."""
    asked = shortened(batch(job), job.cell.first_tokens).first(job.cell.batch_size)
    longest = max(asked.output_tokens)
    return Request(asked.input_ids, asked.attention_mask, longest, lambda: None, asked.output_tokens)


def _calibration_texts(job: Job) -> tuple[str, ...]:
    """Prompts to profile the model with, as the model is fed them; none is ever measured."""
    tokenizer = tokenizers.load(job.paths.model)
    chosen = prompts.calibration(_prompts(job))
    rendered = [render(prompt, tokenizer) for prompt in chosen]
    return tuple(one.body + one.end for one in rendered)


def _prompts(job: Job) -> list[Prompt]:
    return prompts.load(job.cell.prompts or prompts.DEFAULT)


def batch(job: Job) -> requests.Batch:
    """The cell's requests: their prompts as ids, and the number of new tokens of each."""
    cell = job.cell
    tokenizer = tokenizers.load(job.paths.model)
    chosen = prompts.measured(_prompts(job))
    return requests.make(chosen, tokenizer, cell.shape, cell.rows, cell.prompt_offset, _context_tokens(job))


def shortened(asked: requests.Batch, first_tokens: int | None) -> requests.Batch:
    """The same batch with at most ``first_tokens`` new tokens per row; None changes nothing."""
    if first_tokens is None:
        return asked
    return replace(asked, output_tokens=tuple(min(length, first_tokens) for length in asked.output_tokens))


def _context_tokens(job: Job) -> int | None:
    """Positions of the model, where its configuration says so."""
    config = json.loads((job.paths.model / "config.json").read_text(encoding="utf-8"))
    positions = config.get("text_config", config).get("max_position_embeddings")
    return int(positions) if positions else None


def _reference(job: Job) -> Answer:
    """Write the resident model's own greedy tokens, or scores of its draws, which every system is compared with."""
    from harness.run import sampled

    asked, model = batch(job), sampled.reference_model(job)
    if job.cell.decoding is not None:
        scores = sampled.Scorer(model, asked, job.cell.decoding).reference_scores()
        write_text(job.paths.reference, json.dumps(scores))
    else:
        reference.write(model, asked, job.paths.reference, job.cell.batch_size)
    return Answer()


def _measure(job: Job, system: Any, prepare_s: float, engines: Engines) -> Answer:
    """Warm up, and measure every repetition; those before one that fails stay in the answer."""
    asked, decoding = shortened(batch(job), job.cell.first_tokens), job.cell.decoding
    whole = json.loads(job.paths.reference.read_text()) if decoding is None else None
    lengths = asked.output_tokens
    expected = None if whole is None else [row[:length] for row, length in zip(whole, lengths, strict=True)]
    answer = Answer(phases_s={"prepare": prepare_s}, notes=[] if decoding is None else [NO_FIDELITY])
    if job.cell.warmup_tokens:
        few = asked.first(job.cell.batch_size)
        ids, mask = few.input_ids, few.attention_mask
        system.generate(Request(ids, mask, job.cell.warmup_tokens, lambda: None, decoding=decoding))
    for number in range(job.cell.repetitions):
        try:
            chosen = None if decoding is None else decoding.again(number)
            figures, generation = _repetition(job, system, engines, asked, expected, chosen)
        except Exception as error:
            if not number:
                raise
            answer.status, answer.error = "failed", f"repetition {number + 1}: {type(error).__name__}: {error}"
            answer.notes.append(traceback.format_exc(limit=-4))
            break
        answer.repetitions.append(figures)
        answer.phases_s |= generation.counters.phases_s
        if decoding is not None:
            answer.sampled.append(generation.rows())
    return answer


def _repetition(
    job: Job,
    system: Any,
    engines: Engines,
    asked: requests.Batch,
    expected: list[list[int]] | None,
    decoding: Decoding | None,
) -> tuple[dict[str, Any], Generation]:
    """The figures of one timed call, and what it generated; ``expected`` are greedy tokens, None if it samples."""
    lengths, card = asked.output_tokens, system.card
    ragged = lengths if len(set(lengths)) > 1 else None
    ids, mask = asked.input_ids, asked.attention_mask
    marks, arrivals = [Mark.now(engines)], Arrivals(len(lengths))
    request = Request(ids, mask, max(lengths), lambda: marks.append(Mark.now(engines)), ragged, arrivals.note, decoding)
    if job.cell.requests is not None:
        generation, marks, times = queue_run.serve(job.cell, system, request, arrivals)
    else:
        generation, times = system.generate(request), {}
        marks.append(Mark.now(engines))
        if len(marks) != 3:
            raise RuntimeError(f"{card.name} reported its first token {len(marks) - 2} times: exactly once is asked")
        if card.kind != "oracle":  # whose times are computed
            times = {"arrivals_s": arrivals.seconds(generation.lengths())}
    _check_lengths(generation, request)
    compared = expected if expected is None or generation.counts is None else encoded_again(expected, job)
    figures = raw_figures(marks, generation, request, compared, card) | times
    if compared is None:
        return figures, generation
    logits = job.paths.reference if compared == expected else None  # a text's tokens may stand at other positions
    return figures | explained(generation.rows(), compared, logits), generation


def encoded_again(rows: list[list[int]], job: Job) -> list[list[int]]:
    """Tokens of the rows' texts, which compare with those of a system that gives text alone."""
    tokenizer = tokenizers.load(job.paths.model)
    texts = [tokenizer.decode(row, skip_special_tokens=False).rstrip(UNFINISHED) for row in rows]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _check_lengths(generation: Generation, request: Request) -> None:
    """Every row must have its requested length, so that rates count no other tokens.

    Raises:
        RuntimeError: names the first row that has not.
    """
    given = generation.lengths()
    if len(given) != len(request.lengths):
        raise RuntimeError(f"{len(given)} rows came back, {len(request.lengths)} were requested")
    for row, (length, asked) in enumerate(zip(given, request.lengths, strict=True)):
        if length != asked:
            raise RuntimeError(f"row {row} came back with {length} tokens, {asked} were requested")
