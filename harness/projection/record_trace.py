"""Records routing and acceptance of a run as a trace, under the conditions of a measured cell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.projection.traces import Geometry, Trace, TraceError
from harness.projection.traces.recorder import TraceRecorder
from specmoe import SpecMoE, SpecOptions
from specmoe.generation import plain_settings
from specmoe.model.checkpoint import expert_modules
from specmoe.stats import GenerationStats
from workloads import models, prompts, requests, tokenizers
from workloads.lengths import RequestShape


@dataclass(frozen=True)
class RunToRecord:
    """A cell's run: prompts from ``prompt_offset`` on, a warm-up call (if not of 0 tokens), the measured call."""

    model: str
    batch_size: int
    new_tokens: int
    expert_budget: int | str
    options: dict[str, Any] = field(default_factory=dict)
    prompt_offset: int = 0
    warmup_tokens: int = 4
    prompts: str | None = None


def record(run: RunToRecord) -> Trace:
    """Run the model and record every pass; ``meta`` holds the engine's counters, against which a replay can be checked.

    Raises:
        ValueError: an unknown model, prompt file or size.
        SpecMoEError: what loading or the options raise.
        TraceError: a model with an encoder, or with picks that name no expert.
    """
    options = SpecOptions.of(**run.options)
    folder = models.path(run.model)
    with SpecMoE.from_pretrained(
        folder,
        expert_budget=run.expert_budget,
        options=options,
        dtype=torch.float32,
        stored_dtype=torch.float32,
        store=models.store_path(run.model, "float32"),
    ) as engine:
        if engine.model.config.is_encoder_decoder:
            raise TraceError(f"{run.model} has an encoder, whose passes a trace cannot hold: record a decoder's")
        if any(getattr(module, "may_skip", False) for module in expert_modules(engine.model).values()):
            raise TraceError(f"{run.model} has picks that name no expert, which a trace cannot hold: use another model")
        recorder = TraceRecorder(_geometry(engine))
        batch = _batch(run, folder)
        if run.warmup_tokens:
            _generate(engine, batch, run.warmup_tokens, recorder)
        stats = _generate(engine, batch, run.new_tokens, recorder)
        budget_bytes = engine.arena.budget_bytes
    trace = recorder.trace
    trace.meta = {
        "run": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(run).items()},
        "model": run.model,
        "dtype": "float32",
        "options": options.model_dump(),
        "seed": options.seed,
        "expert_budget_bytes": budget_bytes,
        "slot_bytes": trace.geometry.slot_bytes,
        "counted": _counters(stats),
    }
    return trace


def _batch(run: RunToRecord, folder: Path) -> requests.Batch:
    tokenizer = tokenizers.load(folder)
    chosen = prompts.measured(prompts.load(run.prompts or models.find(run.model).prompts))
    shape = RequestShape.model_validate({"output_tokens": run.new_tokens})
    return requests.make(chosen, tokenizer, shape, run.batch_size, run.prompt_offset)


def _generate(engine: SpecMoE, batch: requests.Batch, new_tokens: int, recorder: TraceRecorder) -> GenerationStats:
    output = engine.generate(
        batch.input_ids, batch.attention_mask, max_new_tokens=new_tokens, recorder=recorder, **plain_settings()
    )
    if output.stats is None:
        raise TraceError("the engine returned no statistics")
    return output.stats


def _counters(stats: GenerationStats) -> dict[str, float]:
    return {
        "decode_link_bytes": stats.decode.link.moved_bytes,
        "expert_requests": stats.decode.experts.requests,
        "expert_hits": stats.decode.experts.hits,
        "prefill_link_bytes": stats.prefill.link.moved_bytes,
        "tokens_per_step": stats.tokens_per_step,
    }


def _geometry(engine: SpecMoE) -> Geometry:
    layers = engine.store.layers
    top_k = int(engine.model.config.get_text_config().num_experts_per_tok)
    return Geometry(tuple(spec.experts for spec in layers), tuple(spec.stride_bytes for spec in layers), top_k)
