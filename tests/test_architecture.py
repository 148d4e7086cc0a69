"""The import rules of the architecture hold: who may import whom, and no import circle anywhere."""

import subprocess
import sys

from tests import ROOT


def test_import_contracts_are_kept() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]


def test_reading_results_does_not_load_torch() -> None:
    program = "import sys, reports, reports.pages.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
