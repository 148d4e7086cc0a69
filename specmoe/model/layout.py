"""Where each expert of a model lies in a store: known from the model's shapes before anything is read or written."""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel

from specmoe.model.support import expert_modules
from specmoe.offload.store import LayerSpec, TensorSpec, round_to_pages


def plan_layers(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, LayerSpec]:
    """The layers of a store of ``model`` by experts module, in layer order; checksums are empty."""
    return {name: _plan_layer(name, module, dtype) for name, module in expert_modules(model).items()}


def _plan_layer(name: str, module: torch.nn.Module, dtype: torch.dtype) -> LayerSpec:
    number = next(int(part) for part in name.split(".") if part.isdigit())
    encoder = "encoder_" if "encoder" in name.split(".") else ""
    shapes = {parameter: tuple(tensor.shape[1:]) for parameter, tensor in module.named_parameters()}
    tensors, nbytes = _place({parameter: shapes[parameter] for parameter in sorted(shapes, reverse=True)}, dtype)
    experts = int(module.num_experts)  # type: ignore[arg-type]  # a number, where torch declares a tensor or module
    return LayerSpec(
        model_layer=number,
        module=name,
        experts=experts,
        expert_bytes=nbytes,
        stride_bytes=round_to_pages(nbytes),
        file=f"layer_{encoder}{number:03d}.bin",
        tensors=tensors,
        checksums=("",) * experts,
    )


def _place(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[tuple[TensorSpec, ...], int]:
    """Place tensors one after another, each at a multiple of 64 bytes; returns their places and all bytes."""
    specs: list[TensorSpec] = []
    end = 0
    for name, shape in shapes.items():
        start = end + -end % 64
        specs.append(TensorSpec(name, shape, start))
        end = start + math.prod(shape) * dtype.itemsize
    return tuple(specs), end
