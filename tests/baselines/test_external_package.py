"""The example system, installed with pip as a package of its own, is listed and conforms; a broken promise is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.conformance.examine import CHECKS
from tests import ROOT
from tests.baselines.builders import run_cli

EXAMPLE = ROOT / "tests" / "example_system"

# One line of the example is changed at a time: the check that must fail, the line and its replacement.
BROKEN = {
    "equal-tokens-ragged-batch": (
        "mask, new, cache = request.attention_mask,",
        "mask, new, cache = torch.ones_like(request.attention_mask),",
    ),
    "ragged-output-lengths": ("Generation(request.cut(torch.cat(new, dim=1)), ", "Generation(torch.cat(new, dim=1), "),
    "budget-kept": ("parameter.data = torch.empty(0, dtype=parameter.dtype)", "parameter.data = parameter.data"),
    "bytes-agree-with-kernel": (
        "counters.peak_expert_bytes,",
        "counters.decode_link_bytes = 10**12\n        counters.peak_expert_bytes,",
    ),
    "bad-input-refused": ("if budget is not None and budget < wanted:", "if False:"),
    "clean-shutdown": (
        "def close(self) -> None:\n",
        "def close(self) -> None:\n        __import__('subprocess').Popen(['sleep', '20'])\n",
    ),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Reference outputs, shared by the command line's conformance runs."""
    return str(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's example, installed by pip into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(source)], check=True, timeout=300)
    return target


@pytest.mark.slow
@pytest.mark.systems
class TestAnExternalPackage:
    """The guide's example, installed as a user would and driven from outside."""

    def test_is_listed(self, installed: Path) -> None:
        assert "example-reload" in run_cli("list", path=installed).stdout

    def test_conforms(self, installed: Path, work: str) -> None:
        outcome = run_cli("conformance", "example-reload", "--work", work, path=installed)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert all(name in outcome.stdout for name in CHECKS)
        assert outcome.stdout.count("passed") >= len(CHECKS) - 1  # it counts no link bytes

    @pytest.mark.parametrize("check", BROKEN)
    def test_a_broken_promise_fails_its_check(self, installed: Path, work: str, tmp_path: Path, check: str) -> None:
        line, broken = BROKEN[check]
        text = (installed / "example_system.py").read_text()
        assert line in text
        for entry in installed.glob("*.dist-info"):
            (tmp_path / entry.name).symlink_to(entry)
        (tmp_path / "example_system.py").write_text(text.replace(line, broken))
        outcome = run_cli("conformance", "example-reload", "--check", check, "--work", work, path=tmp_path)
        assert outcome.returncode == 1, outcome.stdout
        verdict = next(line for line in outcome.stdout.splitlines() if f" {check} " in line)
        assert verdict.startswith("failed"), outcome.stdout
