"""Function-preserving widening of routed experts: larger experts with the same routing and tokens.

Every intermediate neuron of an expert is replicated ``factor`` times and its output weights are divided by
``factor``.  The activation of each replica is the same and the down projection sums the replicas, so the expert's
function is unchanged.  With a power of two the division is exact, also in bfloat16, and only the order of summation,
and so its rounding, can differ.  Routers, attention and embeddings are copied unchanged, and so are shared experts and
dense layers unless their width is the routed experts' by the family's config (Llama 4's shared expert, NLLB-MoE's dense
layers): these are widened too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from specmoe.files import folder_appears
from specmoe.model.shards import checkpoint_files, open_shard


@dataclass(frozen=True)
class Widening:
    """How a family's experts are widened.

    Attributes:
        widths: the config fields that hold the experts' width, and no other matrix's that stays as it is.
        up: keys of tensors with an intermediate dimension of inputs' products (gate and up projections, their biases).
        down: keys of tensors that sum over the intermediate dimension.
    """

    widths: tuple[str, ...]
    up: re.Pattern[str]
    down: re.Pattern[str]


def _linear(width: str) -> Widening:
    """Experts as modules of linear layers; Mixtral's w1, w3 and w2 are gate, up and down."""
    return Widening(
        (width,),
        re.compile(r"\.experts\.\d+\.(gate_proj|up_proj|w1|w3)\.weight$"),
        re.compile(r"\.experts\.\d+\.(down_proj|w2)\.weight$"),
    )


FAMILIES = {
    "qwen2_moe": _linear("moe_intermediate_size"),
    "qwen3_moe": _linear("moe_intermediate_size"),
    "mixtral": _linear("intermediate_size"),
    "olmoe": _linear("intermediate_size"),
    "nllb-moe": Widening(
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        re.compile(r"\.ffn\.(experts\.expert_\d+\.)?fc1\.(weight|bias)$"),
        re.compile(r"\.ffn\.(experts\.expert_\d+\.)?fc2\.weight$"),
    ),
    # [E, H, 2 I] with gate before up, and [E, I, H]; the shared expert's are linear layers.
    "llama4_text": Widening(
        ("intermediate_size",),
        re.compile(r"\.feed_forward\.(experts\.gate_up_proj|shared_expert\.(gate_proj|up_proj)\.weight)$"),
        re.compile(r"\.feed_forward\.(experts\.down_proj|shared_expert\.down_proj\.weight)$"),
    ),
}
"""By model type."""
VERSION = 2
"""Of what is written: changes whenever ``inflated`` would make other files of the same source."""
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def widen(family: Widening, key: str, weight: torch.Tensor, factor: int) -> torch.Tensor:
    """Replicate the intermediate neurons of an expert's tensor; other tensors are returned as they are.

    Of linear layers [I, H] and biases [I] become ``factor`` times longer in I, and [H, I] divided by ``factor``; of all
    experts in one tensor [E, H, 2 I] (gate before up) and [E, I, H] do.
    """
    if family.up.search(key):
        return weight.repeat_interleave(factor, dim=2 if weight.ndim == 3 else 0)
    if family.down.search(key):
        return (weight / factor).repeat_interleave(factor, dim=1)
    return weight


def inflated(source: Path, out: Path, factor: int, dtype: torch.dtype | None = None) -> Path:
    """Write the widened model to ``out`` unless it exists; returns ``out``.

    ``dtype`` is that of the weights; default bfloat16, else float16, where it holds every value exactly, else float32.
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
    config = json.loads((source / "config.json").read_text())
    family = _family(config, source)
    dtype = dtype or _exact_dtype(source, family, factor)
    with folder_appears(out) as partial:
        _write_shards(source, partial, family, factor, dtype)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            if (source / name).exists():
                shutil.copy(source / name, partial / name)
        _write_config(config, source, partial, family, factor, dtype)
    return out


def _exact_dtype(source: Path, family: Widening, factor: int) -> torch.dtype:
    """bfloat16 or float16, the first that holds every widened value exactly; float32 where neither does."""
    exact = [torch.bfloat16, torch.float16]
    for file in checkpoint_files(source):
        opened = open_shard(file)
        for key in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
            divided = opened.get_tensor(key).float() / (factor if family.down.search(key) else 1)
            exact = [dtype for dtype in exact if torch.equal(divided.to(dtype).float(), divided)]
    return next(iter(exact), torch.float32)


def _write_shards(source: Path, out: Path, family: Widening, factor: int, dtype: torch.dtype) -> None:
    place: dict[str, tuple[str, Any]] = {}  # key -> (shard to write, opened file to read from)
    for file in checkpoint_files(source):
        opened = open_shard(file)
        for key in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
            layer = _LAYER.search(key)
            place[key] = (f"model-layer-{int(layer[1]):03d}.safetensors" if layer else "model-rest.safetensors", opened)
    if not any(family.down.search(key) and ".experts." in key for key in place):
        raise ValueError(f"{source} has no per-expert gate, up and down projections to widen: name another checkpoint")
    total = 0
    for shard in sorted({name for name, _ in place.values()}):
        tensors = {}
        for key, (name, opened) in place.items():
            if name == shard:
                tensors[key] = widen(family, key, opened.get_tensor(key).to(dtype), factor).contiguous()
                total += tensors[key].nbytes
        save_file(tensors, out / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": {key: shard for key, (shard, _) in place.items()}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_config(
    config: dict[str, Any], source: Path, out: Path, family: Widening, factor: int, dtype: torch.dtype
) -> None:
    widths = {field: config[field] * factor for field in family.widths}
    origin = {"dtype": str(dtype).removeprefix("torch."), "inflated_from": {"model": source.name, "factor": factor}}
    (out / "config.json").write_text(json.dumps(config | widths | origin, indent=2) + "\n")


def _family(config: dict[str, Any], source: Path) -> Widening:
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"{source} is a {name} model: only {', '.join(FAMILIES)} can be widened")
    return FAMILIES[name]


def main() -> None:
    """``python -m workloads.inflate OUT --factor 32``."""
    parser = argparse.ArgumentParser(prog="python -m workloads.inflate", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=Path(__file__).parent / "embedded")
    parser.add_argument("--factor", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the narrowest exact one")
    args = parser.parse_args()
    print(inflated(args.source, args.out, args.factor, getattr(torch, args.dtype) if args.dtype else None))


if __name__ == "__main__":
    main()
