"""The files of a build: one safetensors shard per finished layer, in the format of the finished model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from specmoe.files import replacing, write_text
from workloads.smollm2.streams import Streams
from workloads.smollm2.upcycle import ExpertWeights

STREAMS = "streams.safetensors"
INDEX = "model.safetensors.index.json"


def _prefix(layer: int) -> str:
    return f"model.layers.{layer}."


@dataclass(frozen=True)
class Work:
    """The folder of an unfinished build; files appear under their names only when complete."""

    folder: Path

    def shard(self, layer: int) -> Path:
        return self.folder / f"model-layer-{layer:03d}.safetensors"

    def report(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03d}.json"

    def finished_layers(self) -> int:
        """Number of consecutive layers, from the first, that have a shard."""
        layer = 0
        while self.shard(layer).exists():
            layer += 1
        return layer

    def save_layer(self, model: LlamaForCausalLM, layer: int, weights: ExpertWeights, report: dict[str, Any]) -> None:
        """Write the report, then the shard (bfloat16): the dense layer's attention and norms, router and experts."""
        write_text(self.report(layer), json.dumps(report) + "\n")
        dense = {
            _prefix(layer) + key: value
            for key, value in model.model.layers[layer].state_dict().items()
            if not key.startswith("mlp.")
        }
        _save({**dense, **_expert_tensors(layer, weights)}, self.shard(layer))

    def load_layer(self, layer: int) -> ExpertWeights:
        """Router and experts of a finished layer, float32."""
        tensors = load_file(self.shard(layer))
        block = _prefix(layer) + "block_sparse_moe."
        router = tensors[block + "gate.weight"].float()
        parts = {
            name: torch.stack([tensors[f"{block}experts.{e}.{name}.weight"].float() for e in range(len(router))])
            for name in ("w1", "w2", "w3")
        }
        return ExpertWeights(router, torch.cat([parts["w1"], parts["w3"]], dim=1), parts["w2"])

    def save_streams(self, streams: Streams, layers: int) -> None:
        """Save the streams in front of layer number ``layers``."""
        _save({"dense": streams.dense, "experts": streams.experts}, self.folder / STREAMS, {"layers": str(layers)})

    def load_streams(self) -> tuple[Streams, int] | None:
        """The saved streams and the number of layers before them; None if there are none."""
        file = self.folder / STREAMS
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as opened:
            layers = int(opened.metadata()["layers"])
            return Streams(opened.get_tensor("dense"), opened.get_tensor("experts")), layers

    def save_rest(self, model: LlamaForCausalLM) -> None:
        """Write embeddings and last norm, and the index over all shards."""
        rest = {
            "model.embed_tokens.weight": model.model.embed_tokens.weight,
            "model.norm.weight": model.model.norm.weight,
        }
        _save(rest, self.folder / "model-rest.safetensors")
        weight_map: dict[str, str] = {}
        for file in sorted(self.folder.glob("model-*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                weight_map |= dict.fromkeys(opened.keys(), file.name)
        total = sum(file.stat().st_size for file in self.folder.glob("model-*.safetensors"))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(self.folder / INDEX, json.dumps(index, indent=1) + "\n")


def _expert_tensors(layer: int, weights: ExpertWeights) -> dict[str, Tensor]:
    """Tensors with the keys of Mixtral's checkpoints: w1 gate, w2 down, w3 up, one matrix per expert."""
    block = _prefix(layer) + "block_sparse_moe."
    tensors = {block + "gate.weight": weights.router}
    for expert in range(weights.num_experts):
        gate, up = weights.gate_up_proj[expert].chunk(2)
        parts = {"w1": gate, "w2": weights.down_proj[expert], "w3": up}
        tensors |= {f"{block}experts.{expert}.{name}.weight": part for name, part in parts.items()}
    return {key: value.bfloat16().contiguous() for key, value in tensors.items()}


def _save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    with replacing(file) as partial:
        save_file(tensors, partial, metadata={"format": "pt", **(metadata or {})})
