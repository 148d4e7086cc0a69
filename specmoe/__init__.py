"""SpecMoE: lossless self-assisted speculative decoding for MoE models whose experts do not fit.

The decode loop is ``speculate.decode``; ``SpecMoE.from_pretrained(...).generate(...)`` is the way in.
"""

from specmoe.engine import GenerateOutput, SpecMoE
from specmoe.errors import BudgetError, OptionError, SpecMoEError, StoreError, UnsupportedModelError
from specmoe.offload.store import ExpertStore
from specmoe.options import SpecOptions
from specmoe.timeline import Timeline

__all__ = [
    "BudgetError",
    "ExpertStore",
    "GenerateOutput",
    "OptionError",
    "SpecMoE",
    "SpecMoEError",
    "SpecOptions",
    "StoreError",
    "Timeline",
    "UnsupportedModelError",
]
