"""Quantised checkpoints: block FP8 and MXFP4 are dequantised, other methods are refused by name.

The arithmetic is that of transformers' own dequantised load (``FineGrainedFP8Config(dequantize=True)`` and
``Mxfp4Config(dequantize=True)``).  The one difference is a matrix that ends within a block: transformers rejects
most of those, here the block size of the config says which scale each value has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import FineGrainedFP8Config, Mxfp4Config, PreTrainedConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from specmoe.errors import UnsupportedModelError

# How the keys of other methods end: what a checkpoint without a quantization_config is recognised by.
_SUFFIXES = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".SCB": "bitsandbytes int8",
    ".absmax": "bitsandbytes 4-bit",
    ".quant_map": "bitsandbytes 4-bit",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or ModelOpt",
}


class BlockDequantize(Fp8Dequantize):  # type: ignore[misc]
    """transformers' FP8 dequantisation, also for matrices that are no whole number of blocks."""

    def _dequantize_one(
        self, quantized: torch.Tensor, scales: torch.Tensor, output_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Weights [..., R, C] times their scales [..., ceil(R / m), ceil(C / n)] for blocks of m x n."""
        block = self.hf_quantizer.quantization_config.weight_block_size
        if block is not None and scales.ndim >= 2 and quantized.dtype.is_floating_point:
            (rows, columns), grid = quantized.shape[-2:], tuple(scales.shape[-2:])
            padding = (-columns % block[1], -rows % block[0])
            uneven = any(padding) and grid != (1, 1)
            if uneven and grid == (-(-rows // block[0]), -(-columns // block[1])):
                padded = torch.nn.functional.pad(quantized.to(torch.float32), (0, padding[0], 0, padding[1]))
                whole: torch.Tensor = super()._dequantize_one(padded, scales, output_dtype)
                return whole[..., :rows, :columns].contiguous()
        plain: torch.Tensor = super()._dequantize_one(quantized, scales, output_dtype)
        return plain


class _BlockFp8Quantizer(FineGrainedFP8HfQuantizer):  # type: ignore[misc]
    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": BlockDequantize}


def make_quantizer(config: PreTrainedConfig, keys: Iterable[str]) -> Any:
    """transformers' quantizer that dequantises the weights of a checkpoint, or None if they are not quantised.

    Args:
        config: the model's config, with or without a ``quantization_config``.
        keys: all keys of the checkpoint.

    Raises:
        UnsupportedModelError: a quantisation method other than block FP8 and MXFP4.
    """
    keys = list(keys)
    settings = _settings(config)
    method = _method(settings)
    if method in (None, "fp8") and any(key.endswith(("weight_scale_inv", ".qscale_weight")) for key in keys):
        method = "fp8"
    if method in (None, "mxfp4") and any(key.endswith(("_proj_blocks", "_proj.blocks")) for key in keys):
        method = "mxfp4"
    if method is None:
        found = next((name for suffix, name in _SUFFIXES.items() if any(k.endswith(suffix) for k in keys)), None)
        if found is not None:
            raise UnsupportedModelError(_refusal(found))
        return None
    if method == "fp8":
        return _BlockFp8Quantizer(_fp8_config(settings.get("weight_block_size", (128, 128))), pre_quantized=True)
    if method == "mxfp4":
        return Mxfp4HfQuantizer(Mxfp4Config(dequantize=True), pre_quantized=True)
    raise UnsupportedModelError(_refusal(method))


def check_method(config: PreTrainedConfig) -> None:
    """Check the method that a config declares.

    Raises:
        UnsupportedModelError: a quantisation method other than block FP8 and MXFP4.
    """
    method = _method(_settings(config))
    if method not in (None, "fp8", "mxfp4"):
        raise UnsupportedModelError(_refusal(method))


def _fp8_config(block: Any) -> FineGrainedFP8Config:
    try:
        return FineGrainedFP8Config(dequantize=True, weight_block_size=tuple(block) if block else None)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"weight_block_size in the quantization_config is {str(block)[:60]!r}, not two positive integers: correct "
            "config.json"
        ) from error


def _refusal(method: str) -> str:
    return (
        f"the checkpoint is quantised with {method}, which is not supported (block FP8 and MXFP4 are): load it with "
        "transformers, call model.dequantize() and save it with save_pretrained, or use the unquantised checkpoint"
    )


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The ``quantization_config`` of a config or of its text part; empty if there is none."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings is not None:
            return dict(settings if isinstance(settings, dict) else settings.to_dict())
    return {}


def _method(settings: dict[str, Any]) -> str | None:
    if not settings:
        return None
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return f"bitsandbytes {'int8' if settings.get('load_in_8bit') else '4-bit'}"
    method = settings.get("quant_method")
    return str(getattr(method, "value", method or "an unnamed method"))
