"""Which pages a look-up needs, compared with a plain walk over all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.delta.layout import Tag
from fleece.delta.pages import Page, PageTable
from fleece.errors import DeltaError


def page(first: int, last: int) -> Page:
    """A page of the directory that spans these keys."""
    return Page(Tag.INDEX, 0, 1, first, last, 0, 0, b"")


@st.composite
def tables(draw: st.DrawFn) -> list[Page]:
    """Pages in order, apart from one another."""
    bounds = sorted(draw(st.sets(st.integers(0, 60), max_size=12)))
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    return [page(first, last) for first, last in pairs]


@given(listed=tables(), low=st.integers(0, 61), length=st.integers(1, 30))
def test_pages_are_found_as_a_walk_over_all_would(
    listed: list[Page], low: int, length: int
) -> None:
    table, high = PageTable(listed, "x"), low + length
    holding = [one for one in listed if one.first < high and one.last >= low]
    assert [*table.spanning(low, high)] == holding
    # A page's last range may reach up to where the next page begins.
    ends = [*(one.first for one in listed[1:]), 1 << 60]
    touching = [
        one for one, end in zip(listed, ends, strict=False) if one.first < high and end > low
    ]
    assert [*table.reaching(low, high)] == touching


@given(listed=tables(), keys=st.lists(st.integers(0, 61)))
def test_the_page_below_a_key_is_the_last_that_begins_there(
    listed: list[Page], keys: list[int]
) -> None:
    found = PageTable(listed, "x").below(np.array(keys, np.int64))
    assert found.tolist() == [sum(one.first <= key for one in listed) - 1 for key in keys]


def test_pages_that_are_not_in_order_are_refused() -> None:
    good = [page(0, 5), page(6, 9), page(10, 12)]
    PageTable(good, "x")
    for one, two in itertools.combinations(range(3), 2):
        wrong = [*good]
        wrong[one], wrong[two] = wrong[two], wrong[one]
        with pytest.raises(DeltaError, match="out of order"):
            PageTable(wrong, "x")
    with pytest.raises(DeltaError, match="out of order"):
        PageTable([page(0, 6), page(6, 9)], "x")
