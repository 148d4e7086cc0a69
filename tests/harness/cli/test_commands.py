"""A command is one module; help comes without heavy imports, and a wrong command or option is one line and code 2."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.cli
from harness.cli import main as cli
from tests import ROOT
from tests.reports.records import experiment, write

GREET = '''
from typing import Annotated

import typer


def command(name: str, times: Annotated[int, typer.Option(help="How often.")] = 1) -> int:
    """Greet someone."""
    print(f"hello {name}" * times)
    return 1 if times == 0 else 0
'''
NOT_COMMANDS = {"__main__", "arguments", "main"}


@pytest.fixture
def add_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Adds a command as a developer would: a module in the package, and its name in the list."""

    def add(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setattr(harness.cli, "__path__", [*harness.cli.__path__, str(tmp_path)])
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, name))
        monkeypatch.delitem(sys.modules, f"harness.cli.{name}", raising=False)

    return add


def test_a_command_costs_one_module_and_its_name(
    add_command: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    add_command("greet", GREET)
    assert cli.main(["--help"]) == 0
    assert "greet        Greet someone." in capsys.readouterr().out
    assert cli.main(["greet", "--help"]) == 0
    assert "How often.  [default: 1]" in capsys.readouterr().out
    assert cli.main(["greet", "Ada", "--times", "2"]) == 0
    assert capsys.readouterr().out == "hello Adahello Ada\n"
    assert cli.main(["greet", "Ada", "--times", "0"]) == 1, "the number that a command returns is the exit code"


def test_the_example_of_the_guide_works(
    add_command: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (ROOT / "docs" / "adding-a-command.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    add_command("cells", code)
    results = str(ROOT / "docs" / "records" / "full" / "quick.jsonl")
    assert cli.main(["cells", results]) == 0
    assert int(capsys.readouterr().out) > 1


def test_every_module_of_the_package_is_a_command() -> None:
    modules = {module.name for module in pkgutil.iter_modules(harness.cli.__path__)}
    assert modules - NOT_COMMANDS == set(cli.COMMANDS)


def test_help_imports_neither_torch_nor_pandas() -> None:
    heavy = ("torch", "transformers", "pandas", "matplotlib", "numpy", "yaml", "specmoe", "baselines")
    code = f"""
import sys
from harness.cli.main import main
assert main(["--help"]) == main(["run", "--help"]) == 0
assert main(["run", "quick", "--nothing"]) == 2
print("loaded:", *[name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_bare_command_and_a_bare_group_list_what_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert cli.main(["trace"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in ("record", "record-cells", "make", "show", "replay"))


def test_the_version_is_that_of_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "version", lambda name: f"1.2.3 of {name}")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "specmoe-bench 1.2.3 of specmoe-bench\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_plain_text_and_says_what_the_command_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: specmoe-bench {name} ")
    assert "Raises:" not in text
    assert text.isascii(), "no box drawing, no colours"
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reprot"], "No such command 'reprot'. Did you mean 'report'"),
        (["--debug", "reprot"], "No such command 'reprot'. Did you mean 'report'"),
        (["trace", "rekord"], "(see specmoe-bench trace --help)"),
        (["run"], "nothing to run: name a preset, a suite or a YAML file, or systems with --system NAME"),
        (["run", "quick", "--batch", "1,many"], "--batch many: give numbers from 1 on, such as --batch 1,8"),
        (["run", "quick", "--system", "cachng"], "'quick' has no system 'cachng', did you mean 'caching'?"),
        (["run", "quick", "--option", "gamma=2"], "write --set systems.0.options.gamma=VALUE"),
        (["run", "quick", "--only", "quick"], "select in it with --system and --batch"),
        (["run", "--system", "specmo"], "unknown system 'specmo'"),
        (["check"], "nothing to compare with: give --against BASELINE, or --floor 0.97 with --results FILE"),
        (["run", "quick", "--rounds", "5"], "No such option: --rounds"),
        (["run", "quick", "--executor", "slurm"], "'slurm' is not one of 'local', 'ray'"),
        (["generate", "x", "--gamma", "many"], "'--gamma'"),
        (["generate", "x", "--option", "substitution"], "write it as key=value, such as substitution=drop"),
        (["generate", "x", "--option", "gama=2"], "option gama: no such option, use one of gamma, "),
        (["conformance", "specmoe", "--option", "gamma=["], "the value is not YAML"),
        (["conformance", "specmoe", "--option", "gama=2"], "option gama: no such option (options: gamma, "),
        (["generate", "x", "--trace", "t.json"], "No such option: --trace"),
    ],
)
def test_a_wrong_command_option_or_value_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("specmoe-bench: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_an_interrupted_command_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.machine.doctor.examine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert "finished cells are kept" in capsys.readouterr().err


def test_options_of_a_system_are_read_as_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def examine(system: str, options: dict[str, Any], work: Path, only: list[str]) -> list[Any]:
        seen.extend((system, options, only))
        return []

    monkeypatch.setattr("harness.conformance.examine.examine", examine)
    given = ["--option", "window=8", "--option", "policy=lru", "--option", "share=0.5", "--check", "equal-tokens"]
    assert cli.main(["conformance", "specmoe", *given]) == 0
    assert seen == ["specmoe", {"window": 8, "policy": "lru", "share": 0.5}, ["equal-tokens"]]


@pytest.mark.slow
def test_a_timeline_of_generate_can_be_drawn(tmp_path: Path, cache: Path) -> None:
    timeline, figure = tmp_path / "timeline.json", tmp_path / "timeline.png"
    assert cli.main(["generate", "import os", "--max-new-tokens", "12", "--timeline", str(timeline)]) == 0
    assert cli.main(["timeline", str(timeline), "--out", str(figure), "--cycles", "1"]) == 0
    assert figure.stat().st_size > 1000


WARNS = '''
import warnings


def command() -> None:
    """Warn."""
    warnings.warn("a damaged\\nline", stacklevel=1)
'''


def test_a_warning_is_one_plain_line(
    add_command: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    add_command("warns", WARNS)
    assert cli.main(["warns"]) == 0
    assert capsys.readouterr().err == "specmoe-bench: warning: a damaged line\n"


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    command = [sys.executable, "-m", "harness.cli", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_readers_of_results_take_the_folder_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "results.jsonl", *experiment([8, 9, 8], [4, 4, 4]))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert cli.main(["report", a]) == 0
    assert (tmp_path / "a" / "tables.json").exists(), "the report lies in the folder itself"
    assert cli.main(["compare", a, b]) == 0
    assert cli.main(["export", a, "--out", str(tmp_path / "t.json")]) == 0
    assert len(json.loads((tmp_path / "t.json").read_text())) == 6
    assert cli.main(["check", "--against", a, "--results", b]) == 3, "three rounds decide nothing"
    said = capsys.readouterr()
    assert said.err == ""
    assert "3 of at least 6 rounds" in said.out


def test_a_command_writes_nowhere_that_it_was_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["options"]) == 0
    assert "# Options of the algorithm" in capsys.readouterr().out
    assert cli.main(["ablation", str(ROOT / "docs" / "records" / "ablation-counts.jsonl")]) == 2
    assert "'--out'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
