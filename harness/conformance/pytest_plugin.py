"""pytest plugin: one test per conformance check, for this package and any other that registers a system.

::

    @pytest.mark.conformance("my-system", option=3)
    def test_my_system(conformance_check):
        assert conformance_check.passed, conformance_check.detail

A system runs once per session and set of options; a check that does not apply is skipped with its reason.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.conformance.examine import Check

_RESULTS: pytest.StashKey[dict[str, dict[str, Check]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "conformance(system, **options): the system that conformance_check examines")
    config.stash[_RESULTS] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "conformance_check" in metafunc.fixturenames:
        from harness.conformance.examine import CHECKS

        metafunc.parametrize("conformance_check", list(CHECKS), indirect=True)


@pytest.fixture
def conformance_check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """The verdict on the marked system under this test's check; skips where the check does not apply."""
    from harness.conformance.examine import examine

    marker = request.node.get_closest_marker("conformance")
    if marker is None or len(marker.args) != 1:
        pytest.fail("mark the test with @pytest.mark.conformance('SYSTEM', option=value, ...)")
    key = json.dumps([marker.args[0], marker.kwargs], sort_keys=True)
    results = request.config.stash[_RESULTS]
    if key not in results:
        work = tmp_path_factory.getbasetemp() / "conformance"
        results[key] = {c.name: c for c in examine(marker.args[0], dict(marker.kwargs), work)}
    check = results[key][request.param]
    if check.status == "skipped":
        pytest.skip(check.detail)
    return check
