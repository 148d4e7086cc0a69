"""Time of a piece of work on a machine: a roofline per operation, plus launch costs."""

from __future__ import annotations

from dataclasses import dataclass

from harness.projection.hardware import Hardware
from harness.projection.models import ModelSizes


@dataclass(frozen=True)
class Cost:
    """Times of one model on one machine; ``context`` is the mean number of tokens in a row's KV cache."""

    hardware: Hardware
    model: ModelSizes
    context: int = 0

    def roofline_s(self, nbytes: float, flops: float) -> float:
        """Memory traffic and arithmetic overlap: the slower one counts."""
        hardware = self.hardware
        return max(nbytes / (hardware.memory_gb_s.value * 1e9), flops / (hardware.gemm_tflop_s.value * 1e12))

    def layer_s(self, layer: int, tokens: int, rows: int) -> float:
        """A layer without its routed experts, for ``tokens`` tokens of ``rows`` rows."""
        params = self.model.dense_params[layer]
        keys = rows * self.context * self.model.kv_bytes
        work = self.roofline_s(params * self.model.weight_bytes + keys, 2 * params * tokens)
        return self.hardware.layer_launch_s.value + work

    def expert_s(self, tokens: int) -> float:
        """One routed expert on its tokens; 0 without tokens."""
        if tokens == 0:
            return 0.0
        work = self.roofline_s(self.model.expert_bytes, 2 * self.model.expert_params * tokens)
        return self.hardware.expert_launch_s.value + work

    def head_s(self, tokens: int) -> float:
        """The output projection, and bookkeeping per token."""
        params = self.model.head_params
        work = self.roofline_s(params * self.model.weight_bytes, 2 * params * tokens)
        return work + tokens * self.hardware.token_s.value

    def transfer_s(self) -> float:
        """One expert across the link."""
        hardware = self.hardware
        return hardware.link_latency_s.value + self.model.expert_bytes / (hardware.link_gb_s.value * 1e9)
