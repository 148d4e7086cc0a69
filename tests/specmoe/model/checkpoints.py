"""Variants of a saved tiny model, and comparison of what is loaded from one with transformers' own load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.model.convert import build_store
from specmoe.model.load_plan import Group, Keys
from specmoe.model.support import expert_modules
from specmoe.model.wrappers import is_left_out
from specmoe.offload.device import allocate_pages, host_bytes
from specmoe.offload.sources import DiskSource

Tensors = dict[str, torch.Tensor]


def edit(folder: Path, change: Callable[[Tensors], Tensors], **config: Any) -> None:
    """Replace the tensors of a saved model by what ``change`` makes of them, and set fields of its config."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def to_block_fp8(tensors: Tensors, block: int = 16) -> Tensors:
    """Every projection as float8_e4m3fn with one float32 scale per ``block`` x ``block`` values."""
    found: Tensors = {}
    for key, tensor in tensors.items():
        if not key.endswith(("_proj.weight", "in_proj_qkvz.weight")) and "_proj_with_mqa.weight" not in key:
            found[key] = tensor
            continue
        rows, columns = tensor.shape
        padded = torch.nn.functional.pad(tensor, (0, -columns % block, 0, -rows % block))
        blocks = padded.unflatten(0, (-1, block)).unflatten(2, (-1, block))  # [R, m, C, n]
        scales = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-6) / 448
        values = (blocks / scales).flatten(2).flatten(0, 1)[:rows, :columns]
        found[key] = values.to(torch.float8_e4m3fn)
        found[f"{key}_scale_inv"] = scales[:, 0, :, 0].contiguous()
    return found


def to_mxfp4(tensors: Tensors, seed: int = 0) -> Tensors:
    """Random MXFP4 blocks and scales in place of gpt-oss experts' matrices ([E, in, out] -> [E, out, in / 32, 16])."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for key, tensor in tensors.items():
        if not key.endswith(("gate_up_proj", "down_proj")):
            found[key] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = (experts, outputs, inputs // 32, 16)
        found[f"{key}_blocks"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        found[f"{key}_scales"] = torch.randint(118, 126, shape[:-1], dtype=torch.uint8, generator=generator)
    return found


def differences(folder: Path, dtype: torch.dtype, scratch: Path, **loading: Any) -> list[str]:
    """Parameters and buffers whose dtype or value is not that of ``from_pretrained(folder, dtype, **loading)``."""
    config = AutoConfig.from_pretrained(folder)
    autos = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForImageTextToText)
    auto = next(auto for auto in autos if type(config) in auto._model_mapping)
    expected = auto.from_pretrained(folder, dtype=dtype, **loading)
    shell = build_shell(folder, dtype)
    Checkpoint(folder, shell).load_non_experts(torch.device("cpu"))
    found = {**_tensors(shell), **stored_experts(folder, dtype, scratch)}
    wanted = {name: t for name, t in _stacked(_tensors(expected)).items() if not is_left_out(config, name)}
    wanted = _as_loaded(shell, wanted)
    assert type(shell) is type(expected)
    assert expert_modules(shell)
    return [n for n in found.keys() | wanted.keys() if not _same(found.get(n), wanted.get(n))]


def stored_experts(folder: Path, dtype: torch.dtype, scratch: Path) -> Tensors:
    """The experts of a store built from ``folder``, as [E, ...] tensors by parameter name."""
    store = build_store(folder, scratch / f"store-{dtype}", dtype)
    source = DiskSource(store)
    found: dict[str, list[torch.Tensor]] = {}
    for layer, spec in enumerate(store.layers):
        for expert in range(spec.experts):
            buffer = allocate_pages(spec.stride_bytes)
            source.read(layer, expert, host_bytes(buffer))
            for name, tensor in store.tensors(layer, buffer).items():
                found.setdefault(f"{spec.module}.{name}", []).append(tensor.clone())
    source.close()
    return {name: torch.stack(tensors) for name, tensors in found.items()}


_EXPERT = re.compile(r"(.*experts)\.expert_(\d+)\.(fc1|fc2|wi|wo)\.(weight|bias)")
_STACKED = {"fc1": "up_proj", "wi": "up_proj", "fc2": "down_proj", "wo": "down_proj"}


def _stacked(tensors: Tensors) -> Tensors:
    """Experts that are modules of their own as [E, ...] tensors, named as this engine names them."""
    found: Tensors = {}
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        expert = _EXPERT.fullmatch(name)
        if expert is None:
            found[name] = tensor
            continue
        suffix = "_bias" if expert[4] == "bias" else ""
        stacks.setdefault(f"{expert[1]}.{_STACKED[expert[3]]}{suffix}", {})[int(expert[2])] = tensor
    return found | {name: torch.stack([stack[i] for i in sorted(stack)]) for name, stack in stacks.items()}


def _as_loaded(shell: PreTrainedModel, tensors: Tensors) -> Tensors:
    """transformers' tensors by the names and in the shapes of ``shell``, whose family may have modules of its own."""
    keys, ours = Keys(shell, None), _tensors(shell)
    same = {name: tensor for name, tensor in tensors.items() if name in ours}
    groups: dict[str, tuple[Group, Tensors]] = {}
    for name in tensors.keys() - same.keys():
        target, pattern = keys.place(name)
        groups.setdefault(target, (keys.group(target, pattern), {}))[1][pattern or "weight"] = tensors[name]
    for group, sources in groups.values():
        same |= group.convert(shell, {pattern: [tensor] for pattern, tensor in sources.items()})
    for name in expert_modules(shell):
        module = shell.get_submodule(name)
        if getattr(module, "may_skip", False):  # transformers has rows for experts without weights
            same |= {f"{name}.{n}": same[f"{name}.{n}"][: module.num_experts] for n, _ in module.named_parameters()}
    return same


def _tensors(model: PreTrainedModel) -> Tensors:
    """Every parameter and buffer; experts of a shell are on ``meta``."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _same(found: torch.Tensor | None, wanted: torch.Tensor | None) -> bool:
    if found is None or wanted is None or found.is_meta:
        return False
    return found.dtype == wanted.dtype and torch.equal(found, wanted)


def rearranged(model: Path, folder: Path, shard_of: Callable[[str, int], str]) -> Path:
    """The same weights in shards named by ``shard_of`` (key, place in the order of keys)."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*", "*store*"))
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for place, (key, tensor) in enumerate(sorted(load_file(model / "model.safetensors").items())):
        shards.setdefault(f"{shard_of(key, place)}.safetensors", {})[key] = tensor
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
