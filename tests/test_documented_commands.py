"""Every command line and Python snippet of the documents is one that the package accepts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli import main as cli
from tests import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECORDS = re.compile(r"docs/records/\S+")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """(document, command line) of every `specmoe-bench` command in a console block, comments removed."""
    for document in DOCUMENTS:
        for block in blocks(document.read_text(), "console"):
            for line in block.splitlines():
                if line.startswith("specmoe-bench "):
                    yield document.relative_to(ROOT).as_posix(), re.sub(r"\s+#.*$", "", line)


def expanded(line: str) -> list[str]:
    """The arguments of a command line after the program, braces and wildcards expanded as bash does."""
    script = f'set -- {line}; shift; printf "%s\\0" "$@"'
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def command_line() -> Any:
    """The real command line with bodies that do nothing: arguments are parsed and checked, nothing runs."""
    root = typer.main.get_command(cli.application())
    without_bodies(root)
    return root


def without_bodies(command: Any) -> None:
    for child in getattr(command, "commands", {}).values():
        without_bodies(child)
        if not hasattr(child, "commands"):
            child.callback = lambda **_: None


def parse(command_line: Any, arguments: list[str]) -> None:
    """Raises ``typer.TyperException`` for an unknown command or option, or a bad value; ``typer.Exit`` after help."""
    with command_line.make_context(cli.PROGRAM, arguments) as context:
        command_line.invoke(context)


@pytest.mark.parametrize(("document", "line"), list(commands()), ids=lambda value: value)
def test_a_documented_command_parses(document: str, line: str, command_line: Any) -> None:
    arguments = expanded(line)
    assert not [path for path in arguments if RECORDS.match(path) and not (ROOT / path).exists()]
    if "--help" in arguments:
        with pytest.raises(typer.Exit):
            parse(command_line, arguments)
    else:
        parse(command_line, arguments)


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert [name for name in cli.COMMANDS if not re.search(rf"^specmoe-bench {name}\b", text, re.MULTILINE)] == []


@pytest.mark.parametrize(
    "arguments", [["run", "quick", "--no-such-option"], ["no-such-command"], ["trace", "no-such-action"]], ids=" ".join
)
def test_an_unknown_command_or_option_does_not_parse(arguments: list[str], command_line: Any) -> None:
    with pytest.raises(typer.TyperException):
        parse(command_line, arguments)


def test_the_python_snippet_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = blocks((ROOT / "README.md").read_text(), "python")
    model = tmp_path / "workloads" / "embedded"  # the engine writes its expert store beside the checkpoint
    model.mkdir(parents=True)
    for file in (ROOT / "workloads" / "embedded").iterdir():
        (model / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert "import os" in capsys.readouterr().out
