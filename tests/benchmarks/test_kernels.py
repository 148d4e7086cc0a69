"""Kernels against ``F.linear`` and the memory rate, and the engine with everything resident against transformers.

Each writes its part of ``docs/records/kernels.json``.  Bars, in float32: at least 80 % of the rate at which memory is
read here at 1 to 4 rows; 1.6 times as fast as ``F.linear`` at 8 to 256 rows; a generation with all experts resident
takes at most 0.6 of the time of ``transformers.generate`` with its fastest experts implementation, at batch 1, 8, 32.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from harness.machine import environment
from harness.machine.calibrate import gemm_tflop_s, memory_read_gb_s
from harness.timestamp import now
from specmoe import SpecMoE
from specmoe.compute import measure
from specmoe.compute.table import PAIRS, ROWS, key, load
from specmoe.generation import plain_settings
from specmoe.offload.device import allocate_pages
from tests import ROOT
from workloads import models, prompts

RECORD = ROOT / "docs" / "records" / "kernels.json"
MODEL = "embedded-x32"
BATCHES, NEW_TOKENS, ROUNDS = (1, 8, 32), 64, 5
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
FOOTPRINT_BYTES, BUDGET_S = 256 << 20, 0.5
MEASURED = [pair for pair in PAIRS if torch.float16 not in pair]


def _seconds(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _kernels(dtype: torch.dtype, stored: torch.dtype) -> dict[str, Any]:
    """Milliseconds per expert in ``stored`` of the engine's chosen kernel and of ``F.linear``, by number of rows."""
    table, found = load(), {}
    weights = measure.experts(stored, FOOTPRINT_BYTES, allocate_pages)
    nbytes = sum(w.numel() * w.element_size() for w in weights[0].values())
    for rows in ROWS:
        chosen = table.choose("experts", dtype, rows, stored)
        actions = {
            "ours": measure.action("experts", chosen, rows, dtype, weights),
            "theirs": _f_linear(rows, dtype, weights),
        }
        with torch.inference_mode():
            taken = measure.times_s(actions, BUDGET_S, ROUNDS)
        ours, theirs = ([s / measure.EXPERTS for s in taken[name]] for name in ("ours", "theirs"))
        found[str(rows)] = {
            "kernel": chosen,
            "ms": round(1e3 * statistics.median(ours), 4),
            "f_linear_ms": round(1e3 * statistics.median(theirs), 4),
            "speedup": round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 3),
            "read_gb_s": round(nbytes / statistics.median(ours) / 1e9, 2),
            "gflop_s": round(6 * rows * measure.WIDTH * measure.INNER / statistics.median(ours) / 1e9, 1),
        }
    return found


def _f_linear(rows: int, dtype: torch.dtype, weights: list[measure.Weights]) -> measure.Run:
    """The same experts by ``F.linear`` alone; weights in another dtype are widened first, as torch would need it."""
    x, turn = torch.randn(rows, measure.WIDTH, dtype=dtype), cycle(weights)

    def run() -> None:
        for _ in range(measure.EXPERTS):
            one = next(turn)
            gate, up = F.linear(x, one["gate_up_proj"].to(dtype)).chunk(2, dim=-1)
            F.linear(F.silu(gate) * up, one["down_proj"].to(dtype))

    return run


def _resident(folder: Path, batch: int) -> dict[str, Any]:
    """Seconds of one generation by the engine and by transformers, in turns, and the ratio of each pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [prompt.text for prompt in prompts.select(batch, 0, models.find(MODEL).prompts)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = GenerationConfig()

    def theirs() -> None:
        model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    speeds = {}
    for name in IMPLEMENTATIONS:
        model.set_experts_implementation(name)
        theirs()
        speeds[name] = min(_seconds(theirs) for _ in range(2))
    fastest = min(speeds, key=speeds.__getitem__)
    model.set_experts_implementation(fastest)
    with SpecMoE.from_pretrained(folder, dtype=torch.float32, stored_dtype=torch.float32, gamma=0) as engine:

        def ours() -> None:
            engine.generate(ids, mask, max_new_tokens=NEW_TOKENS, **plain_settings())

        ours()  # loads every expert that these prompts use, and makes oneDNN's primitives
        pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(ROUNDS)]
    return {
        "s": round(statistics.median(a for a, _ in pairs), 4),
        "transformers_s": round(statistics.median(b for _, b in pairs), 4),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "experts_implementation": fastest,
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _write(parts: dict[str, Any]) -> None:
    """Replace parts of the record."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    RECORD.write_text(json.dumps(known | parts, indent=1) + "\n", encoding="utf-8")


@pytest.mark.benchmark
@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_kernels_reach_the_memory_rate() -> None:
    rate = memory_read_gb_s(512 << 20)
    kernels = {key("experts", dtype, stored): _kernels(dtype, stored) for stored, dtype in MEASURED}
    record = {
        "date": now(),
        "environment": environment.capture(),
        "load_average": os.getloadavg(),
        "threads": 2,
        "memory_read_gb_s": round(rate, 2),
        "gemm_tflop_s": round(gemm_tflop_s("cpu", torch.float32), 4),
        "table": load().describe(torch.float32),
        "kernels": kernels,
    }
    _write(record)
    single = kernels["experts float32"]
    assert all(single[str(rows)]["read_gb_s"] >= 0.8 * rate for rows in (1, 2, 4))
    assert all(single[str(rows)]["speedup"] >= 1.6 for rows in ROWS if rows >= 8)


@pytest.mark.benchmark
@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_the_resident_engine_beats_transformers() -> None:
    folder = models.path(MODEL)
    resident = {str(batch): _resident(folder, batch) for batch in BATCHES}
    _write({"resident": resident})
    assert all(resident[str(batch)]["ratio"] <= 0.6 for batch in BATCHES)
