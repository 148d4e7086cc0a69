"""A new swept setting is one line in each of three files, and reaches the adapter; cell ids of old results stay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reports.results.record import Cell
from tests import ROOT

FIELD = "    readahead_bytes: int | None = None\n"
LINES = {
    "harness/plan/experiment.py": (
        "    seed: int = 0\n",
        "    readahead_bytes: Swept[int | None] = Field(default=[None])\n",
    ),
    "reports/results/record.py": ("    request_seed: int = 0\n", FIELD),
    "baselines/contract.py": ("    threads: int\n", FIELD),
}

PROBE = '''
"""Plans an experiment that sweeps the new setting, and carries out its cells as a worker process does."""
import json, sys
from pathlib import Path
from typing import ClassVar

import torch

from baselines import contract, registry
from harness.plan.experiment import plan, validate
from harness.plan.sizes import ExpertSizes
from harness.run.job import Job, Paths
from harness.run.worker import work


@registry.register
class Probe:
    card: ClassVar = contract.CapabilityCard("probe", "p", "p", grain="nothing", knows_budget=False)
    Options: ClassVar = contract.SystemOptions

    def __init__(self, options): ...
    def build(self, setting): ...
    def close(self): ...

    def prepare(self, setting):
        raise contract.NotSupported(str(setting.readahead_bytes))


experiment = validate(json.loads(sys.argv[1]), "probe")
sizes = ExpertSizes(100, {"float32": 1000}, "float32")
for number, planned in enumerate(plan(experiment, sizes)):
    folder = Path(sys.argv[2]) / str(number)
    here = dict.fromkeys(("model", "store", "scratch", "reference"), folder)
    job = Job(action="measure", cell=planned.cell, paths=Paths(**here, result=folder / "answer.json"))
    work(job.model_dump_json())
    print(planned.cell.cell_id, json.loads((folder / "answer.json").read_text())["error"])
'''


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with the three lines added."""
    root = tmp_path_factory.mktemp("changed")
    for package in ("baselines", "harness", "reports"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("specmoe", "workloads"):
        (root / package).symlink_to(ROOT / package)
    for file, (anchor, line) in LINES.items():
        text = (root / file).read_text()
        assert text.count(anchor) == 1
        (root / file).write_text(text.replace(anchor, anchor + line))
    (root / "probe.py").write_text(PROBE)
    return root


@pytest.mark.slow
def test_three_lines_bring_a_swept_setting_to_the_adapter(changed: Path, tmp_path: Path) -> None:
    experiment = {
        "name": "probe",
        "model": "embedded",
        "systems": [{"system": "probe"}],
        "batch_sizes": [1],
        "readahead_bytes": [None, 4096, 65536],
    }
    done = subprocess.run(
        [sys.executable, "probe.py", json.dumps(experiment), str(tmp_path)],
        cwd=changed,
        env=os.environ | {"PYTHONPATH": str(changed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cells = [line.split() for line in done.stdout.splitlines()]
    assert [setting for _, setting in cells] == ["None", "4096", "65536"]
    assert len({cell_id for cell_id, _ in cells}) == 3
    known = Cell(
        system="probe",
        model="embedded",
        batch_size=1,
        new_tokens=32,
        expert_budget_bytes=25_000,
        process_limit_bytes=900_025_000,
        warmup_tokens=4,
    )
    assert cells[0][0] == known.cell_id, "a cell without the setting keeps the id it had before the setting existed"


@pytest.mark.parametrize("file", LINES)
def test_the_guide_shows_the_lines_that_are_tested(file: str) -> None:
    guide = (ROOT / "docs" / "adding-a-setting.md").read_text()
    assert LINES[file][1].strip() in guide
    assert file in guide
