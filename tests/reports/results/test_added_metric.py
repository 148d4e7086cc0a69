"""A new metric takes lines in three files, and reaches record, table, export, comparison, gate and documentation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests import ROOT

ENTRY = '''
layer_loads_per_token: Annotated[
    float | None,
    Metric(lambda s: _over(s.raw.layer_loads, s.decoded_tokens), "loads", "layer loads per token", repeats="exactly"),
] = None
"""Whole layers copied to the device per decoded token."""
'''
FIELD = "    layer_loads: int | None = None\n"
LINES = {
    "baselines/counters.py": ("    expert_hits: int | None = None\n", FIELD),
    "baselines/naive.py": (
        "        counters.decode_link_bytes = decode.moved_bytes\n",
        "        counters.layer_loads = decode.moved_bytes // self._layer_bytes\n",
    ),
    "reports/results/metrics.py": (
        '    """``modelled_memory_gb_s`` over the calibrated memory bandwidth."""\n',
        "".join(f"    {line}\n" for line in ENTRY.strip().splitlines()),
    ),
}

PROBE = '''
"""Takes one repetition through every place that shows a metric."""
import json, sys
from pathlib import Path

import torch

import baselines.naive
from baselines.contract import Generation, Request
from baselines.counters import Counters
from harness.gate.judge import EXACT
from harness.run.metrics import Weights, measured
from harness.run.repetition import Mark, raw_figures
from reports.pages.compare import compare
from reports.pages.export import frame_of
from reports.results import schema
from reports.results.aggregate import summarize
from reports.results.load import load
from reports.results.record import ResultFile
from reports.results.repetition import Repetition
from reports.wording.tables import tables

(old,) = ResultFile(Path(sys.argv[1])).read()
ids = torch.zeros(1, 4, dtype=torch.long)
request = Request(ids, torch.ones_like(ids), 4, lambda: None)
generation = Generation(ids, Counters(decode_steps=3, layer_loads=12))
marks = [Mark(float(second), 0) for second in range(3)]
raw = raw_figures(marks, generation, request, ids.tolist(), baselines.naive.NaiveSystem.card)
repetitions = [Repetition(**raw)]
cell = old.cell.model_copy(update={"batch_size": 1, "new_tokens": 4})
metrics = measured(repetitions, cell, None, None, Weights(1, 1, 1))
file = Path(sys.argv[2]) / "results.jsonl"
named = {"cell": cell, "cell_id": cell.cell_id}
ResultFile(file).append(old.model_copy(update={"metrics": metrics, "repetitions": repetitions} | named))
shown = tables(summarize(load([file])))[0]
print(json.dumps({
    "record": json.loads(file.read_text())["metrics"]["layer_loads_per_token"],
    "table": shown.rows[0][shown.headers.index("layer loads per token")].text,
    "export": frame_of([file])["layer_loads_per_token"].tolist(),
    "raw export": frame_of([file], "repetitions")["raw_layer_loads"].tolist(),
    "compared": "layer loads per token" in compare(file, file).cells[0].headers,
    "gate": "layer_loads_per_token" in EXACT,
    "documented": [line for line in schema.field_tables().splitlines() if "layer_loads_per_token" in line],
    "schema": "layer_loads_per_token" in schema.schema_text(),
}))
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe finds in a copy of the packages with the lines added."""
    root = tmp_path_factory.mktemp("changed")
    for package in ("baselines", "harness", "reports"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("specmoe", "workloads"):
        (root / package).symlink_to(ROOT / package)
    for file, (anchor, lines) in LINES.items():
        text = (root / file).read_text()
        assert text.count(anchor) == 1
        (root / file).write_text(text.replace(anchor, anchor + lines))
    (root / "probe.py").write_text(PROBE)
    done = subprocess.run(
        [sys.executable, "probe.py", str(ROOT / "tests" / "data" / "first_v1.jsonl"), str(root)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_lines_in_three_files_bring_a_counter_to_every_place_that_shows_metrics(found: dict[str, Any]) -> None:
    assert len(LINES) <= 3
    assert found["record"] == 4.0, "12 loads over 3 decoded tokens"
    assert found["table"] == "4.00"
    assert found["export"] == [4.0]
    assert found["raw export"] == [12]
    assert found["compared"]
    assert found["gate"]
    assert found["schema"]
    assert found["documented"] == [
        "| `layer_loads_per_token` | float \\| None | loads | layer loads per token "
        "| Whole layers copied to the device per decoded token. |"
    ]


@pytest.mark.parametrize("file", LINES)
def test_the_guide_shows_the_lines_that_are_tested(file: str) -> None:
    guide = (ROOT / "docs" / "adding-a-metric.md").read_text().replace("\\|", "|")
    assert file in guide
    lines = LINES[file][1].strip()
    assert (ENTRY.strip() if file.endswith("metrics.py") else lines) in guide
