"""Tables for people: columns that line up, whatever is in them, on terminals of any width."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.cli.table import Column, table
from fleece.terminal import cells, local_time, local_times, shown

COLUMNS = (Column("NAME", gives_way=True), Column("SIZE", right=True), Column("NOTE"))

TEXTS = st.text(max_size=30)


def test_columns_line_up() -> None:
    rows = [("web1", "1 B", ""), ("数据", "10 KiB", "")]
    assert list(table(COLUMNS, rows, None)) == [
        "NAME    SIZE",
        "web1     1 B",
        "数据  10 KiB",
    ]


def test_a_column_that_has_room_to_give_is_cut() -> None:
    rows = [("a-very-long-name", "1 B", "kept")]
    assert list(table(COLUMNS, rows, 20)) == ["NAME      SIZE  NOTE", "a-very-…   1 B  kept"]


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=6), st.none() | st.integers(1, 100))
def test_a_line_is_no_wider_than_what_cannot_give_way(
    rows: list[tuple[str, str, str]], width: int | None
) -> None:
    lines = list(table(COLUMNS, rows, width))
    assert len(lines) == len(rows) + 1
    assert all(line == shown(line) for line in lines)
    if width is not None:
        firm = [max([0, *(cells(shown(row[n])) for row in rows)]) for n in (1, 2)]
        firm = [max(size, len("SIZE")) for size in firm]
        assert all(cells(line) <= max(width, 5 + 2 + firm[0] + 2 + firm[1]) for line in lines)


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("数据", 4), ("e\N{COMBINING ACUTE ACCENT}", 1), ("ｱ", 1)]
)
def test_characters_take_their_cells(text: str, width: int) -> None:
    assert cells(text) == width


def test_a_time_is_told_in_the_zone_of_who_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, told in (
        ("Europe/Berlin", "2026-11-30 18:42:58 CET"),
        ("UTC", "2026-11-30 17:42:58 UTC"),
    ):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert local_time("2026-11-30T17:42:58Z") == told
        assert local_time("2026-11-30T17:42:58") == told
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "0001-01-01T00:00:00+14:00", "9" * 30])
def test_what_is_no_time_stays_as_it_is(text: str) -> None:
    assert local_time(text) == text


def test_times_within_a_text_are_local_and_paths_stay() -> None:
    moment = "2026-11-30T18:00:00Z"
    told = f"locked until {local_time(moment)} and not before ({local_time(moment)})"
    assert local_times(f"locked until {moment} and not before ({moment})") == told
    path = f"/backup/{moment}/x and {moment}.raw"
    assert local_times(path) == path
