"""Expert arithmetic: how an expert is multiplied, by device, dtype and number of tokens."""

from specmoe.compute.expert import ExpertTraits, expert_mlp

__all__ = ["ExpertTraits", "expert_mlp"]
