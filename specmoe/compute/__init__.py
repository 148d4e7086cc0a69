"""Arithmetic: how experts and linear layers are multiplied, by device, dtype and number of rows."""

from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.routed import Routed
from specmoe.compute.table import KernelTable

__all__ = ["ExpertKernels", "ExpertTraits", "KernelTable", "Routed", "expert_mlp"]
