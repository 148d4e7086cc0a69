"""The adapter printed in docs/adding-a-baseline.md works when it is copied."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from baselines import registry
from baselines.contract import NotSupported, Request
from harness.conformance.examine import CHECKS
from tests import ROOT
from tests.baselines.builders import run_cli, setting_of
from tests.conftest import prompts, reference, system_package

GUIDE = ROOT / "docs" / "adding-a-baseline.md"
LENGTHS = (7, 1, 5)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's first Python block as a file, in a folder that registers it as an installed package would."""
    code = re.search(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert code is not None
    package = system_package(tmp_path_factory.mktemp("guide"), "my-system", "my_system")
    file = package / "my_system.py"
    file.write_text(code[1], encoding="utf-8")
    return file


@pytest.fixture
def system(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The guide's system with its default options."""
    monkeypatch.setattr(registry, "_SYSTEMS", registry.systems())
    spec = importlib.util.spec_from_file_location("my_system", adapter)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_system", module)
    spec.loader.exec_module(module)
    return registry.create("my-system", {})


def test_the_guides_adapter_decodes_ragged_rows_as_transformers_does(
    system: Any, tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder, model = tiny
    ids, mask = prompts(len(LENGTHS), seed=3)
    seen: list[str] = []
    setting = setting_of(folder, tmp_path)
    system.build(setting)
    system.prepare(setting)
    rows = system.generate(Request(ids, mask, max(LENGTHS), lambda: seen.append("prefill"), LENGTHS)).rows()
    expected = reference(model, ids, mask, max(LENGTHS))[:, ids.shape[1] :]
    assert rows == [row[:length].tolist() for row, length in zip(expected, LENGTHS, strict=True)]
    assert seen == ["prefill"]
    system.close()


def test_the_guides_adapter_refuses_bad_input_with_a_reason(system: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="option window: no such option"):
        registry.create("my-system", {"window": 4})
    with pytest.raises(NotSupported, match="convert the checkpoint"):
        system.prepare(setting_of(tmp_path, tmp_path))


@pytest.mark.slow
@pytest.mark.systems
def test_the_guides_adapter_passes_the_conformance_suite(adapter: Path, tmp_path: Path) -> None:
    outcome = run_cli("conformance", "my-system", "--work", str(tmp_path), path=adapter.parent)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert all(name in outcome.stdout for name in CHECKS)
    assert outcome.stdout.count("passed") >= len(CHECKS) - 1, outcome.stdout  # it counts no link bytes
