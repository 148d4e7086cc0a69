"""`specmoe-bench trace`: traces are made, shown and replayed from the command line, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from specmoe.offload.store import ExpertStore
from tests import ROOT

RECORDS = ROOT / "docs" / "records"


def test_a_trace_is_made_shown_and_replayed_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "trace.parquet")
    assert cli.main(["trace", "make", file, "--rows", "4", "--new-tokens", "12", "--geometry", "2x16,2,4096"]) == 0
    assert cli.main(["trace", "show", file]) == 0
    assert "2 MoE layers of 16 experts, top-2" in capsys.readouterr().out
    assert cli.main(["trace", "replay", file, "--expert-budget", "50%", "--option", "gamma=5"]) == 0
    assert "hit rate" in capsys.readouterr().out
    assert cli.main(["trace", "replay", file]) == 2
    assert "--expert-budget" in capsys.readouterr().err
    assert cli.main(["trace", "make", file, "--skew", "much"]) == 2


def test_a_replay_refuses_options_that_a_trace_already_decided(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(next((RECORDS / "traces").glob("embedded-x32-b8-t32-g5-*.parquet")))
    assert cli.main(["trace", "replay", file, "--option", "gamma=2"]) == 2
    said = capsys.readouterr().err
    assert "the trace holds passes of gamma=5" in said
    assert "trace record FILE --option gamma=2" in said
    assert cli.main(["trace", "replay", file, "--option", "gamma=5", "--option", "placement=lru"]) == 0


def test_replaying_a_committed_trace_needs_no_model(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a replay opened an expert store")

    monkeypatch.setattr(ExpertStore, "open", refuse)
    file = next((RECORDS / "traces").glob("embedded-x32-b8-t32-g5-*.parquet"))
    assert cli.main(["trace", "replay", str(file)]) == 0
    assert "call 1: 1228 expert requests" in capsys.readouterr().out
