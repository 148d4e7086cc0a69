"""A system keeps its colour and marker in every figure."""

from __future__ import annotations

from reports.figures.style import assign


def test_a_system_keeps_its_colour_among_any_others() -> None:
    alone = assign([("specmoe", "specmoe")])
    crowd = assign([("specmoe", "specmoe"), ("caching", "caching"), ("caching 10%", "caching"), ("new", "new")])
    assert alone["specmoe"] == crowd["specmoe"]
    assert len({look.color for look in crowd.values()}) == len({look.marker for look in crowd.values()}) == 4


def test_caches_of_a_share_look_the_same_whatever_else_is_shown() -> None:
    shares = [("caching 10%", "caching"), ("caching 25%", "caching")]
    alone = [assign([share])[share[0]] for share in shares]
    among = assign([*shares, ("caching", "caching"), ("caching LFU", "caching"), ("new", "new")])
    assert [among[title] for title, _ in shares] == alone
    assert len({(look.color, look.marker) for look in among.values()}) == 5


def test_variants_of_a_system_differ_in_colour_and_marker() -> None:
    looks = assign([(f"specmoe γ={gamma}", "specmoe") for gamma in (3, 5, 7)]).values()
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == 3
