"""The example script and notebook run as committed."""

from __future__ import annotations

import re
import runpy

import nbformat
import pytest
from nbclient import NotebookClient

from tests import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.usefixtures("cache")
def test_the_script_decodes_the_same_tokens_with_and_without_speculation(capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(EXAMPLES / "speculation.py"))
    script["main"]("embedded", "8")  # raises SystemExit where a token differs
    plain, speculative = capsys.readouterr().out.splitlines()
    assert float(re.search(r"([\d.]+) tok/s", plain)[1]) > 0
    assert "1.00 tokens/pass" in plain
    assert float(re.search(r"([\d.]+) tokens/pass", speculative)[1]) > 1


@pytest.mark.slow
def test_the_notebook_reads_a_result_file_and_draws_one_figure() -> None:
    notebook = nbformat.read(EXAMPLES / "results.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def test_the_notebook_uses_no_code_of_the_project() -> None:
    notebook = nbformat.read(EXAMPLES / "results.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert re.findall(r"^(?:import|from) +(\w+)", source, re.MULTILINE) == ["json", "pathlib", "pandas"]
