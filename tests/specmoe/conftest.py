"""An expert store shared by the tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from specmoe import ExpertStore
from specmoe.model.convert import open_or_build


@pytest.fixture(scope="session")
def store(tiny: tuple[Path, PreTrainedModel]) -> ExpertStore:
    """The store of the random Qwen3-MoE ``tiny``; tests must not damage it."""
    return open_or_build(tiny[0], tiny[0] / "store")
