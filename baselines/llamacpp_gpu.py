"""Where llama.cpp keeps which weights: as arguments of its loader, by device and slow tier.

On a GPU the layers are in its memory and the experts' tensors in host memory, as llama.cpp's users run mixtures of
experts (``-ngl 999 --cpu-moe``).  llama.cpp multiplies a few rows by such experts on the CPU, and copies their weights
to the GPU for many rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from baselines.contract import NotSupported

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""llama.cpp's own pattern of ``--cpu-moe``."""
HOST = "CPU"
"""The one buffer that ``override_tensor`` may name: host memory."""


class Options(Protocol):
    """What a user chooses, by llama.cpp's names."""

    n_gpu_layers: int
    n_cpu_moe: int | None
    override_tensor: str | None


def load_arguments(options: Options, device: str, slow_tier: str) -> dict[str, Any]:
    """Keyword arguments of ``llamacpp_engine.Engine.load`` besides the path.

    Raises:
        NotSupported: a slow tier that llama.cpp does not take experts from on this device.
    """
    if device == "cpu":
        if slow_tier != "disk":
            raise NotSupported(f"llama-cpp maps its file on a CPU, the slow tier is {slow_tier}: set slow_tier: disk")
        return {}
    return {
        "gpu_layers": options.n_gpu_layers,
        "gpu": int(device.partition(":")[2] or 0),
        "in_host_memory": host_patterns(options),
        "mapped": slow_tier == "disk",
    }


def host_patterns(options: Options) -> list[str]:
    """Patterns of the tensors that stay in host memory: the given ones, else experts of the first layers, or of all."""
    if options.override_tensor is not None:
        return list(overrides(options.override_tensor))
    if options.n_cpu_moe is None:
        return [EXPERTS]
    return [rf"blk\.{layer}{EXPERTS}" for layer in range(options.n_cpu_moe)]


def overrides(text: str) -> Mapping[str, str]:
    """Patterns and buffers of llama.cpp's ``--override-tensor``, such as ``ffn_up_exps=CPU,ffn_down_exps=CPU``.

    Raises:
        ValueError: no ``PATTERN=CPU``.
    """
    pairs = dict(part.rpartition("=")[::2] for part in text.split(","))
    if not all(pairs) or set(pairs.values()) != {HOST}:
        raise ValueError(f"override_tensor {text!r}: give PATTERN={HOST}, several with commas between them")
    return pairs
