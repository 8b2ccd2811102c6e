"""The names of what is made in QEMU: found again, told from others', and short enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.source.qemu.names import PointNames
from fleece.source.segments import Segment
from fleece.source.workfolder import PREFIX

_MOST_NODE_NAME = 31
_MOST_BITMAP_NAME = 1023

_chains = st.text("0123456789abcdef", min_size=8, max_size=8)
_points = st.text("0123456789abcdef", min_size=10, max_size=10)
_sequences = st.integers(0, 10**12)
_tags = st.none() | st.text("0123456789abcdef", min_size=16, max_size=16)
_segments = st.builds(Segment, _chains, _sequences, _sequences, _points, _tags)


@given(_segments)
def test_a_segment_is_found_again_by_its_bitmaps_name(segment: Segment) -> None:
    assert Segment.parse(segment.bitmap) == segment


@given(_segments)
def test_a_segments_name_begins_with_ours_and_fits_qemu(segment: Segment) -> None:
    assert segment.bitmap.startswith(PREFIX)
    assert len(segment.bitmap) <= _MOST_BITMAP_NAME


@given(_segments, _segments)
def test_different_segments_have_different_names(one: Segment, other: Segment) -> None:
    assert (one == other) == (one.bitmap == other.bitmap)


@given(st.text())
def test_any_name_is_ours_or_nobodys_and_never_an_error(name: str) -> None:
    found = Segment.parse(name)
    assert found is None or name.startswith(PREFIX)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fleece-",
        "delta",
        "bitmap0",
        "fleece-0123abcd",
        "fleece-0123abcd-000001-000000",
        "fleece-0123abcd-000001-000000-00000000aa-",
        "Fleece-0123abcd-000001-000000-00000000aa",
        "fleece-0123ABCD-000001-000000-00000000aa",
        "fleece-0123abcd-1-000000-00000000aa",
        "fleece-0123abcd-000001-000000-00000000aa\n",
        " fleece-0123abcd-000001-000000-00000000aa",
        "fleece-0123abcd-000001-000000-00000000aabb",
    ],
)
def test_names_that_only_look_like_a_segments_are_not_ours(name: str) -> None:
    assert Segment.parse(name) is None


def test_a_name_with_digits_of_another_script_is_not_ours() -> None:
    assert (
        Segment.parse("fleece-0123abcd-00000\N{ARABIC-INDIC DIGIT ONE}-000000-00000000aa") is None
    )


def test_a_name_with_more_zeros_than_we_write_is_not_ours() -> None:
    """Else the name that is removed would not be the name that was found."""
    name = "fleece-0123abcd-0000001-000000-00000000aa"
    found = Segment.parse(name)
    assert found is None or found.bitmap == name


@given(_chains, _points, st.integers(0, 9999))
def test_every_node_name_fits_qemu(chain: str, point: str, number: int) -> None:
    names = PointNames(chain, point)
    for name in (names.overlay(number), names.overlay_file(number), names.filter(number)):
        assert len(name.encode()) <= _MOST_NODE_NAME


@given(_chains, _points, st.integers(0, 9999), st.integers(0, 9999))
def test_no_two_things_of_a_point_share_a_name(
    chain: str, point: str, one: int, other: int
) -> None:
    names = PointNames(chain, point)
    made = [
        make(number)
        for number in {one, other}
        for make in (names.overlay, names.overlay_file, names.filter, names.job, names.export)
    ]
    assert len(set(made)) == len(made)
    assert all(name.startswith(f"{PREFIX}{chain}-{point}") for name in made)
