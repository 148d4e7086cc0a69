"""SpecMoE: lossless self-assisted speculative decoding for MoE models whose experts do not fit.

The decode loop is ``speculate.decode``; ``SpecMoE.from_pretrained(...).generate(...)`` is the way in.
"""

from specmoe.engine import GenerateOutput, SpecMoE
from specmoe.errors import BudgetError, SpecMoEError, StoreError, UnsupportedModelError
from specmoe.store import ExpertStore

__all__ = [
    "BudgetError",
    "ExpertStore",
    "GenerateOutput",
    "SpecMoE",
    "SpecMoEError",
    "StoreError",
    "UnsupportedModelError",
]
