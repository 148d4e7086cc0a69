"""Records a run's routing and acceptance as a trace, under the same conditions as a measured cell."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.projection.traces import Geometry, Trace, TraceError


@dataclass(frozen=True)
class RunToRecord:
    """A run as a cell has it: prompts from ``prompt_offset`` on, a warm-up call, then the call that counts."""

    model: str
    batch_size: int
    new_tokens: int
    expert_budget: int | str
    options: dict[str, Any] = field(default_factory=dict)
    prompt_offset: int = 0
    warmup_tokens: int = 4
    prompts: str | None = None


def record(run: RunToRecord) -> Trace:
    """Run the model and record every pass; ``meta`` holds what the engine counted, by which a replay can be checked.

    Raises:
        ValueError: an unknown model, prompt file or size.
        SpecMoEError: what loading or the options raise.
    """
    import torch
    from transformers import AutoTokenizer

    from harness.projection.traces.recorder import TraceRecorder
    from specmoe import SpecMoE, SpecOptions
    from workloads import models, prompts, requests
    from workloads.lengths import RequestShape

    options = SpecOptions.of(**run.options)
    folder = models.path(run.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chosen = prompts.measured(prompts.load(run.prompts or models.find(run.model).prompts))
    shape = RequestShape.model_validate({"output_tokens": run.new_tokens})
    batch = requests.make(chosen, tokenizer, shape, run.batch_size, run.prompt_offset)
    with SpecMoE.from_pretrained(
        folder,
        expert_budget=run.expert_budget,
        options=options,
        dtype=torch.float32,
        store=models.store_path(run.model, "float32"),
    ) as engine:
        recorder = TraceRecorder(_geometry(engine))
        lengths = [run.warmup_tokens] if run.warmup_tokens else []
        stats = None
        for new_tokens in [*lengths, run.new_tokens]:
            output = engine.generate(
                batch.input_ids,
                batch.attention_mask,
                max_new_tokens=new_tokens,
                eos_token_id=None,
                recorder=recorder,
            )
            stats = output.stats
        assert stats is not None
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
        "counted": {
            "decode_link_bytes": stats.decode.link.moved_bytes,
            "expert_requests": stats.decode.experts.requests,
            "expert_hits": stats.decode.experts.hits,
            "prefill_link_bytes": stats.prefill.link.moved_bytes,
            "tokens_per_step": stats.tokens_per_step,
        },
    }
    return trace


def _geometry(engine: Any) -> Geometry:
    layers = engine.store.layers
    top_k = int(engine.model.config.get_text_config().num_experts_per_tok)
    return Geometry(tuple(spec.experts for spec in layers), tuple(spec.stride_bytes for spec in layers), top_k)


def parse_geometry(text: str) -> Geometry:
    """``6x64,2,3932160``: six MoE layers of 64 experts, top-2, 3,932,160 bytes per expert.

    Raises:
        TraceError: malformed.
    """
    match = re.fullmatch(r"(\d+)x(\d+),(\d+),(\d+)", text)
    if match is None:
        raise TraceError(f"--geometry {text!r}: write LAYERSxEXPERTS,TOP_K,EXPERT_BYTES, such as 6x64,2,3932160")
    return Geometry.even(*(int(part) for part in match.groups()))
