"""Conversion runs at 80 % of the rate of a plain copy of the same bytes.  Writes ``docs/records/conversion.json``.

Each round drops the checkpoint from the page cache and converts it, then drops it again and reads and writes the same
bytes plainly, in an order drawn by chance. Both force what they wrote to disk.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from harness.machine import environment
from harness.timestamp import now
from reports.results.stats import bootstrap
from specmoe.model.convert import build_store
from tests import ROOT

RECORD = ROOT / "docs" / "records" / "conversion.json"
ROUNDS = 7
LAYERS = 10
HIDDEN = 1024


def write_checkpoint(folder: Path, experts: int) -> int:
    """About 1 GB in bfloat16, two layers to a shard, experts stored one by one as published models do."""
    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        moe_intermediate_size=16384 // experts,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=experts,
        num_experts_per_tok=2,
        dtype="bfloat16",
        architectures=["Qwen3MoeForCausalLM"],
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    chance = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.state_dict().items():
        found = [int(part) for part in name.split(".") if part.isdigit()]
        shard = shards.setdefault(f"model-{(found[0] // 2 if found else 0):05d}.safetensors", {})
        for key, shape in _stored(name, parameter, experts):
            shard[key] = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=chance)
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _stored(name: str, parameter: torch.Tensor, experts: int) -> list[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a parameter as published checkpoints hold it."""
    if "experts" not in name:
        return [(name, tuple(parameter.shape))]
    base, rows, columns = name.rpartition(".")[0], *parameter.shape[1:]
    if name.endswith("down_proj"):
        return [(f"{base}.{i}.down_proj.weight", (rows, columns)) for i in range(experts)]
    parts = ("gate_proj", "up_proj")
    return [(f"{base}.{i}.{part}.weight", (rows // 2, columns)) for i in range(experts) for part in parts]


def drop(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for file in folder.glob("*.safetensors"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def convert(folder: Path, out: Path) -> None:
    build_store(folder, out)


def copy(folder: Path, out: Path) -> None:
    """Read and write in blocks of 1 MiB with nothing in between."""
    out.mkdir()
    block = memoryview(bytearray(1 << 20))
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as source, (out / file.name).open("wb", buffering=0) as target:
            while count := source.readinto(block):
                target.write(block[:count])
            os.fsync(target.fileno())


@pytest.mark.benchmark
@pytest.mark.slow
@pytest.mark.parametrize("experts", [16, 64])
def test_conversion_runs_at_80_percent_of_a_plain_copy(experts: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    nbytes = write_checkpoint(folder, experts)
    chance = random.Random(1)
    seconds: dict[str, list[float]] = {"convert": [], "copy": []}
    cpu_s: dict[str, list[float]] = {"convert": [], "copy": []}
    for _ in range(ROUNDS):
        for work in chance.sample([convert, copy], 2):
            drop(folder)
            started, cpu = time.perf_counter(), time.process_time()
            work(folder, tmp_path / "out")
            seconds[work.__name__].append(time.perf_counter() - started)
            cpu_s[work.__name__].append(time.process_time() - cpu)
            shutil.rmtree(tmp_path / "out")
    ratio = bootstrap([plain / converted for plain, converted in zip(seconds["copy"], seconds["convert"], strict=True)])
    facts = environment.capture()
    _record(
        f"{experts} experts per layer",
        {
            "date": now(),
            "environment": {name: facts[name] for name in ("cpu", "cores", "kernel", "python", "git_revision")},
            "bytes": nbytes,
            "rounds": ROUNDS,
            "rate_over_plain_copy": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
            "median_gb_s": {name: nbytes / statistics.median(s) / 1e9 for name, s in seconds.items()},
            "median_cpu_s": {name: statistics.median(s) for name, s in cpu_s.items()},
        },
    )
    assert ratio.high is not None
    assert ratio.high > 0.8, "slower than 80 % beyond doubt"


def _record(name: str, entry: dict[str, object]) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"what": "rate of conversion over a plain copy"}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps({**record, name: entry}, indent=2) + "\n")
