"""A timeline file becomes a picture of its cycles; any other file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.figures.cycle_timeline import draw_timeline
from reports.results.load import ReportError
from specmoe import Timeline


def test_cycles_of_a_timeline_are_drawn(tmp_path: Path) -> None:
    timeline = Timeline()
    for cycle in range(4):
        timeline.add("cycle", "gamma 2, 1 rows", cycle, cycle + 1)
        timeline.add("compute", "draft step", cycle, cycle + 0.3)
        timeline.add("compute", "verify", cycle + 0.3, cycle + 0.9)
        timeline.add("link", "layer 0 expert 1", cycle + 0.1, cycle + 0.5)
    timeline.save(tmp_path / "timeline.json")
    picture = draw_timeline(tmp_path / "timeline.json", tmp_path / "out.png", cycles=2)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ReportError, match="generate more tokens"):
        draw_timeline(tmp_path / "timeline.json", tmp_path / "out.png", skip=4)


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"traceEvents": [{"ph": "X"}]})])
def test_a_file_that_is_not_a_timeline_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "timeline.json").write_text(content)
    with pytest.raises(ReportError, match="is not a timeline"):
        draw_timeline(tmp_path / "timeline.json", tmp_path / "out.png")
