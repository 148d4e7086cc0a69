"""The target model: checkpoint reading, conversion of experts, the hook into transformers, the KV cache."""

from specmoe.model.checkpoint import Checkpoint, build_shell, expert_modules
from specmoe.model.convert import build_store, open_or_build
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.pass_state import Pass, PassState

__all__ = [
    "Checkpoint",
    "Pass",
    "PassState",
    "RaggedCache",
    "build_shell",
    "build_store",
    "expert_modules",
    "open_or_build",
]
