"""The page of options is made from the code, is current, and names a preset that tries each open choice."""

from __future__ import annotations

from harness.cli import options
from tests import ROOT


def test_the_page_of_options_is_current_and_names_a_trial_for_each_open_choice() -> None:
    page = options.markdown()
    assert (ROOT / "docs" / "options.md").read_text() == page, "run `specmoe-bench options`"
    untried = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.endswith("| – |")]
    assert set(untried) <= {"hot_decay", "prefetch_share", "ngram_min", "ngram_max", "seed"}
