"""llama.cpp's driver and engine exchange requests, answers and errors; tested without llama.cpp."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baselines import llamacpp, llamacpp_engine
from baselines.contract import NotSupported
from harness.run.engines import Engines
from tests import ROOT
from tests.baselines.builders import setting_of


def _llama_with(script: str, tmp_path: Path) -> Any:
    """llama-cpp's driver with an engine process that runs ``script``."""
    start = Engines().start
    setting = setting_of(
        tmp_path, tmp_path, start_engine=lambda argv, **popen: start([sys.executable, "-c", script], **popen)
    )
    system = llamacpp.LlamaCppSystem(llamacpp.LlamaCppSystem.Options())
    try:
        system.prepare(setting)
    finally:
        system.close()
    return system


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
        _llama_with(f"input(); print({json.dumps(answer)!r})", tmp_path)


def test_an_engine_that_ends_is_an_error_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with code 3 in 'load'"):
        _llama_with("input(); raise SystemExit(3)", tmp_path)


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
