"""Function-preserving widening of routed experts: larger experts with the same routing and tokens.

Every intermediate neuron of an expert is replicated ``factor`` times and its output weights are divided by
``factor``.  SiLU(gate) * up is the same for each replica and the down projection sums the replicas, so the
expert's function is unchanged.  With a power of two the division is exact, and only the order of summation, and
so its rounding, can differ.  Routers, shared experts, dense layers, attention and embeddings are copied unchanged.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from specmoe.files import folder_appears
from specmoe.model.checkpoint import checkpoint_files, open_shard

_EXPERT = re.compile(r"\.experts\.\d+\.(?P<matrix>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
_DOWN = ("down_proj", "w2")  # Mixtral's w1, w3 and w2 are gate, up and down
_WIDTH = {
    "qwen2_moe": "moe_intermediate_size",
    "qwen3_moe": "moe_intermediate_size",
    "mixtral": "intermediate_size",
    "olmoe": "intermediate_size",
}
"""The config field that holds only the width of routed experts, by model type."""
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def widen(matrix: str, weight: torch.Tensor, factor: int) -> torch.Tensor:
    """Replicate an expert matrix's intermediate neurons.

    ``gate_proj`` and ``up_proj`` (``w1`` and ``w3``) [I, H] become [factor * I, H]; ``down_proj`` (``w2``) [H, I]
    becomes [H, factor * I] with weights divided by ``factor``.
    """
    if matrix in _DOWN:
        return (weight / factor).repeat_interleave(factor, dim=1)
    return weight.repeat_interleave(factor, dim=0)


def inflated(source: Path, out: Path, factor: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write the widened model to ``out`` unless it exists; returns ``out``.

    It writes one safetensors shard per layer, so it needs the memory of one layer.  The folder appears under its name
    only when complete.

    Raises:
        ValueError: the factor is not a power of two, or the source is of an unsupported family or has no per-expert
            weights.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor {factor} is not a power of two, so widening would not be exact: use 2, 4, 8, ...")
    if (out / "config.json").exists():
        return out
    _width_field(json.loads((source / "config.json").read_text()), source)
    with folder_appears(out) as partial:
        _write_shards(source, partial, factor, dtype)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            if (source / name).exists():
                shutil.copy(source / name, partial / name)
        _write_config(source, partial, factor, dtype)
    return out


def _write_shards(source: Path, out: Path, factor: int, dtype: torch.dtype) -> None:
    place: dict[str, tuple[str, Any]] = {}  # key -> (shard to write, opened file to read from)
    for file in checkpoint_files(source):
        opened = open_shard(file)
        for key in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
            layer = _LAYER.search(key)
            place[key] = (f"model-layer-{int(layer[1]):03d}.safetensors" if layer else "model-rest.safetensors", opened)
    if not any(_EXPERT.search(key) for key in place):
        raise ValueError(f"{source} has no per-expert gate, up and down projections to widen: name another checkpoint")
    total = 0
    for shard in sorted({name for name, _ in place.values()}):
        tensors = {}
        for key, (name, opened) in place.items():
            if name == shard:
                weight = opened.get_tensor(key).to(dtype)
                match = _EXPERT.search(key)
                tensors[key] = widen(match["matrix"], weight, factor).contiguous() if match else weight
                total += tensors[key].nbytes
        save_file(tensors, out / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": {key: shard for key, (shard, _) in place.items()}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_config(source: Path, out: Path, factor: int, dtype: torch.dtype) -> None:
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config[_width_field(config, source)] *= factor
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["inflated_from"] = {"model": source.name, "factor": factor}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _width_field(config: dict[str, Any], source: Path) -> str:
    family = config.get("model_type")
    if family not in _WIDTH:
        raise ValueError(f"{source} is a {family} model: only {', '.join(_WIDTH)} can be widened")
    return _WIDTH[family]


def main() -> None:
    """``python -m workloads.inflate OUT --factor 32``."""
    parser = argparse.ArgumentParser(prog="python -m workloads.inflate", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=Path(__file__).parent / "embedded")
    parser.add_argument("--factor", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    print(inflated(args.source, args.out, args.factor, getattr(torch, args.dtype)))


if __name__ == "__main__":
    main()
