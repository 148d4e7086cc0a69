"""Every Mixture-of-Experts family of the installed transformers is exact or refused early, as the coverage table says.

A family's tiny random model generates greedily with and without drafts, for a ragged batch of three, with sdpa and
eager attention, and must give the tokens of transformers' own ``generate``; in bfloat16 every parameter and buffer must
have the dtype that ``from_pretrained`` gives it.  A refusal is one short line with the expected reason, before the
expert store is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

from tests import families
from tests.specmoe.model import coverage
from tests.specmoe.model.coverage import EXPECTED, OPEN, Row
from tests.specmoe.model.measure import EXACT, Outcome, measure

LONGEST_MESSAGE = 300


@lru_cache(maxsize=1)  # the claims about one family follow each other
def measured(family: str) -> Outcome:
    return measure(family, EXPECTED[family].has_model)


def claims() -> Iterator[Any]:
    """Each (family, claim) of the table; a known defect is expected to fail until it is fixed."""
    for family, row in EXPECTED.items():
        for claim in row.claims():
            reason = OPEN.get(claim, {}).get(family)
            marks = [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if reason else []
            yield pytest.param(family, claim, marks=marks, id=f"{family}-{claim}")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "claim"), list(claims()))
def test_the_table_is_true(family: str, claim: str) -> None:
    row, outcome = EXPECTED[family], measured(family)
    if row.refused:
        _check_refusal(row, outcome)
    elif claim == "dtypes":
        assert outcome.dtypes == []
    else:
        assert outcome.refusal is None
        assert outcome.tokens.get(claim) == EXACT
        assert set(outcome.tokens) == set(row.attention), "transformers has other attention implementations for it"


def _check_refusal(row: Row, outcome: Outcome) -> None:
    assert outcome.refusal is not None, f"no longer refused, measured {outcome.tokens}: change its row in coverage.py"
    assert row.refused in outcome.refusal
    assert not outcome.wrote_store, "refused only after the expert store was written"
    assert len(outcome.refusal) < LONGEST_MESSAGE
    assert "\n" not in outcome.refusal


def test_every_family_of_the_installed_transformers_has_a_row() -> None:
    missing = sorted({*families.moe_families(), *families.VARIANTS} - set(EXPECTED))
    assert not missing, (
        f"transformers has Mixture-of-Experts families without a row: {missing}. For each, run "
        "`python -m tests.specmoe.model.coverage measure NAME`, add small values to tests/families/shapes.py if its "
        "model is too large, a row to EXPECTED in tests/specmoe/model/coverage.py (exact, or refused with the reason), "
        "and run `python -m tests.specmoe.model.coverage` to rewrite docs/families.md"
    )


def test_every_row_is_a_family_of_the_installed_transformers() -> None:
    assert {families.model_type_of(family) for family in EXPECTED} <= set(families.moe_families())


def test_known_defects_name_claims_of_the_table() -> None:
    for claim, reasons in OPEN.items():
        for family in reasons:
            assert claim in EXPECTED[family].claims()


def test_the_committed_table_is_up_to_date() -> None:
    assert coverage.PAGE.read_text() == coverage.page(), (
        "docs/families.md is stale: run `python -m tests.specmoe.model.coverage`"
    )
