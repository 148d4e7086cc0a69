"""One cache folder for all tests of the adapters."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores and compiled operators are made once in a session."""
    os.environ.setdefault("SPECMOE_CACHE", str(tmp_path_factory.getbasetemp() / "adapters-cache"))
