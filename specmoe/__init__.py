"""SpecMoE: lossless self-assisted speculative decoding for MoE models whose experts do not fit in device memory.

Entry point: ``SpecMoE.from_pretrained(...).generate(...)``.  The decode loop is ``specmoe.speculate.decode``.
Names are loaded on first use, so that importing ``specmoe.files`` or ``specmoe.sizes`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specmoe.engine import SpecMoE
    from specmoe.errors import BudgetError, OptionError, SpecMoEError, StoreError, UnsupportedModelError
    from specmoe.offload.store import ExpertStore
    from specmoe.options import SpecOptions
    from specmoe.queue import FinishedRequest, FinishedRequests, QueuedRequest
    from specmoe.request import GenerateOutput
    from specmoe.timeline import Timeline

_MODULES = {
    "BudgetError": "errors",
    "ExpertStore": "offload.store",
    "FinishedRequest": "queue",
    "FinishedRequests": "queue",
    "GenerateOutput": "request",
    "OptionError": "errors",
    "QueuedRequest": "queue",
    "SpecMoE": "engine",
    "SpecMoEError": "errors",
    "SpecOptions": "options",
    "StoreError": "errors",
    "Timeline": "timeline",
    "UnsupportedModelError": "errors",
}

__all__ = [
    "BudgetError",
    "ExpertStore",
    "FinishedRequest",
    "FinishedRequests",
    "GenerateOutput",
    "OptionError",
    "QueuedRequest",
    "SpecMoE",
    "SpecMoEError",
    "SpecOptions",
    "StoreError",
    "Timeline",
    "UnsupportedModelError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
