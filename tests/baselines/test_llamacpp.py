"""llama.cpp's driver and engine exchange requests, answers and errors; tested without llama.cpp."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import llamacpp, llamacpp_engine
from baselines.contract import NotSupported, Request, Setting
from harness.run.engines import Engines
from tests import ROOT
from tests.baselines.builders import setting_of


def _llama_with(script: str, tmp_path: Path) -> tuple[llamacpp.LlamaCppSystem, Setting]:
    """llama-cpp's driver, and a setting in which its engine is a process that runs ``script``."""
    start = Engines().start
    setting = setting_of(
        tmp_path, tmp_path, start_engine=lambda argv, **popen: start([sys.executable, "-c", script], **popen)
    )
    return llamacpp.LlamaCppSystem(llamacpp.LlamaCppSystem.Options()), setting


def _prepared_with(script: str, tmp_path: Path) -> None:
    system, setting = _llama_with(script, tmp_path)
    try:
        system.prepare(setting)
    finally:
        system.close()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"result": False}, NotSupported, "cannot load model.gguf: delete the scratch folder"),
        ({"error": "no libllama", "kind": "ImportError"}, NotSupported, r"no libllama\): pip install"),
        ({"error": "disk failed", "kind": "OSError"}, RuntimeError, "disk failed"),
    ],
)
def test_the_driver_raises_the_errors_of_the_engine(
    answer: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        _prepared_with(f"input(); print({json.dumps(answer)!r})", tmp_path)


def test_an_engine_that_ends_is_an_error_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with code 3 in 'load'"):
        _prepared_with("input(); raise SystemExit(3)", tmp_path)


COUNTING = """
import json, sys
seen = {}
def step(rows, tokens, starts):
    for row, ids, start in zip(rows, tokens, starts):
        assert start == seen.get(row, 0), (row, start, seen)
        seen[row] = start + len(ids)
    return [ids[-1] + 1 for ids in tokens]
for line in sys.stdin:
    method, arguments = json.loads(line)
    result = step(**arguments) if method == "step" else method == "load"
    print(json.dumps({"result": result}), flush=True)
"""


def test_the_driver_feeds_each_row_at_its_position_until_it_has_its_tokens(tmp_path: Path) -> None:
    """The engine counts up from each row's last token, and checks where each row's tokens start."""
    ids = torch.tensor([[0, 0, 10], [5, 6, 20], [0, 7, 30]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    seen: list[str] = []
    reported: list[int] = []
    system, setting = _llama_with(COUNTING, tmp_path)
    try:
        system.prepare(setting)
        request = Request(
            ids, mask, 4, lambda: seen.append("first"), (4, 1, 3), on_tokens=lambda row, _: reported.append(row)
        )
        generation = system.generate(request)
    finally:
        system.close()
    assert generation.rows() == [[11, 12, 13, 14], [21], [31, 32, 33]]
    assert seen == ["first"]
    assert reported == [0, 1, 2, 0, 2, 0, 2, 0]


def test_the_engine_answers_every_line_and_continues_after_errors() -> None:
    class Stub(llamacpp_engine.Engine):
        def load(self, path: str) -> bool:
            if path != "good":
                raise OSError("no such file")
            return True

    answers = io.StringIO()
    llamacpp_engine.serve(Stub(), ['["load", {"path": "bad"}]', '["load", {"path": "good"}]'], answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"error": "no such file", "kind": "OSError"},
        {"result": True},
    ]


def test_the_engine_imports_neither_torch_nor_the_harness() -> None:
    code = (
        "import contextlib, sys, baselines.llamacpp_engine\n"
        "with contextlib.suppress(ImportError):\n    import llama_cpp\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'harness') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
