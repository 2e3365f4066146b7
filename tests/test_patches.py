"""A patch of git as rows: numbers, sides, limits, and text that stays text."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occ_app.hub.pages import chart, patches

PATCH = b"""diff --git a/a.py b/a.py
index 1..2 100644
--- a/a.py
+++ b/a.py
@@ -1,4 +1,5 @@ def first():
 one
-two
-three
+TWO
+THREE
+more
 four
@@ -10 +11 @@
-ten
\\ No newline at end of file
+ten
"""


def texts(part: bytes, limit: int = 100) -> list[tuple[str, int | None, int | None, str]]:
    made = patches.parse(part, "a.txt", limit)
    return [(line.sign, line.old, line.new, str(line.html)) for hunk in made.hunks for line in hunk.lines]


def test_lines_have_the_numbers_of_their_sides() -> None:
    assert texts(PATCH) == [
        (" ", 1, 1, "one"),
        ("-", 2, None, "two"),
        ("-", 3, None, "three"),
        ("+", None, 2, "TWO"),
        ("+", None, 3, "THREE"),
        ("+", None, 4, "more"),
        (" ", 4, 5, "four"),
        ("-", 10, None, "ten"),
        ("+", None, 11, "ten"),
    ]
    assert [hunk.head for hunk in patches.parse(PATCH, "a.txt", 100).hunks] == ["def first():", ""]


def test_a_removed_line_is_beside_the_one_that_replaces_it() -> None:
    first, second = patches.parse(PATCH, "a.txt", 100).hunks
    sides = [(left and left.old, right and right.new) for left, right in first.pairs]
    assert sides == [(1, 1), (2, 2), (3, 3), (None, 4), (4, 5)]
    assert [(left and left.old, right and right.new) for left, right in second.pairs] == [(10, 11)]


def test_a_line_that_looks_like_a_head_is_a_line() -> None:
    part = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n--- a/etc/passwd\n+++ b/etc/passwd\n \n"
    assert [(sign, text) for sign, _, _, text in texts(part)] == [
        ("-", "-- a/etc/passwd"),
        ("+", "++ b/etc/passwd"),
        (" ", ""),
    ]


def test_lines_beyond_the_limit_are_counted() -> None:
    made = patches.parse(PATCH, "a.txt", 3)
    assert (sum(len(hunk.lines) for hunk in made.hunks), made.omitted) == (3, 6)


def test_colours_end_where_they_would_take_long() -> None:
    hunk = "@@ -1 +1 @@\n" + "+import os\n" * 100
    part = ("diff --git a/x.py b/x.py\n" + hunk * 10).encode()
    made = patches.parse(part, "x.py", 10_000, 2_500)
    assert made.coloured == 1800
    assert ["<span" in str(hunk.lines[0].html) for hunk in made.hunks] == [True] * 2 + [False] * 8


@pytest.mark.parametrize("language", ["x.py", "x.txt", "x.html"])
def test_markup_and_control_characters_of_a_file_are_text(language: str) -> None:
    line = "+<script>alert('\x1b[31m')</script>\u202e\r"
    made = patches.parse(f"diff --git a/x b/x\n@@ -0,0 +1 @@\n{line}\n".encode(), language, 10)
    (shown,) = [str(line.html) for hunk in made.hunks for line in hunk.lines]
    plain = re.sub(r"</?span[^>]*>", "", shown)
    assert "<" not in plain
    assert "^[[31m" in plain
    assert "\u27e8U+202E\u27e9" in plain
    assert plain.endswith("^M")


def test_each_file_gets_its_own_part() -> None:
    def entry(path: str, old: str | None = None) -> dict[str, Any]:
        return {"path": path, "old_path": old}

    other = PATCH.replace(b"a.py", b"b.py")
    entries = [entry("a.py"), entry("b.py")]
    assert patches.split(PATCH + other, entries) == [PATCH, other]
    assert patches.split(other, entries) == [b"", other]
    assert patches.split(b"", entries) == [b"", b""]


_TEXTS = st.text(st.sampled_from("ab <>&'\"/\\@+-{}()=;#\t\r\x0c\x1b\u202e\u2028\xa0é"), max_size=20)


@given(st.lists(st.tuples(st.sampled_from("+- "), _TEXTS), max_size=20))
def test_no_text_makes_a_tag_or_loses_a_line(lines: list[tuple[str, str]]) -> None:
    part = "diff --git a/x b/x\n@@ -1 +1 @@\n" + "".join(f"{sign}{text}\n" for sign, text in lines)
    made = patches.parse(part.encode(), "x.js", 10_000)
    shown = [line for hunk in made.hunks for line in hunk.lines]
    assert [line.sign for line in shown] == [sign for sign, _ in lines]
    for line in shown:
        assert not re.search(r"<(?!/?span\b)", str(line.html))
    for hunk in made.hunks:
        pairs = list(hunk.pairs)
        assert [line for line, _ in pairs if line is not None] == [each for each in hunk.lines if each.sign != "+"]
        assert [line for _, line in pairs if line is not None] == [each for each in hunk.lines if each.sign != "-"]


def test_a_chart_has_a_bar_for_each_day_up_to_a_round_value() -> None:
    made = chart.of_days({"2026-01-02": 3.2, "2026-01-03": 0.8, "2025-01-01": 99.0}, date(2026, 1, 3), 3)
    assert [bar.day for bar in made.bars] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert made.top == 5
    assert [bar.height for bar in made.bars] == [
        0.0,
        pytest.approx(chart.HEIGHT * 0.64),
        pytest.approx(chart.HEIGHT * 0.16),
    ]
    assert all(bar.y + bar.height == pytest.approx(chart.HEIGHT) for bar in made.bars)
    assert chart.of_days({}, date(2026, 1, 3), 7).top == 0


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_the_top_of_a_chart_is_at_most_two_and_a_half_times_the_highest_bar(value: float) -> None:
    top = chart.of_days({"2026-01-01": value}, date(2026, 1, 1), 1).top
    assert value * 0.99999 <= top <= value * 2.5001
