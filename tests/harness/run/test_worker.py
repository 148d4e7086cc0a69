"""A worker imports nothing heavy before its job arrives, and no reporting library at all: both would be measured."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from baselines import registry
from harness.run.worker import noting_buffered_reads, unproven
from specmoe.errors import BufferedReadsWarning
from tests import ROOT


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("harness.run.__main__", ("torch", "numpy", "pydantic", "transformers", "baselines", "reports", "specmoe")),
        ("harness.run.worker", ("pandas", "matplotlib", "seaborn", "jinja2", "omegaconf")),
    ],
)
def test_a_worker_carries_only_what_its_cell_needs(module: str, absent: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_buffered_reads_are_noted_in_the_record_and_other_warnings_are_only_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with noting_buffered_reads() as notes:
            for _ in range(2):
                warnings.warn("store: direct reads (O_DIRECT) fail", BufferedReadsWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)
    assert notes == ["store: direct reads (O_DIRECT) fail"] * 2
    assert [str(warning.message) for warning in shown] == [*notes, "something else"]


def test_a_system_on_a_device_that_it_was_only_written_for_is_noted() -> None:
    card = registry.systems()["naive"].card
    assert unproven(card, "cpu") == []
    (note,) = unproven(card, "cuda:1")
    assert note.startswith("naive was written for cuda:1 and had not been run there")
