"""Whether QEMU still knows what was written since a point: known exactly, or lost and said so."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.source.base import Since, Unknown
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.segments import Bitmap, Segment, disk_tag, next_segment, written_since

_CHAIN = "0123abcd"
_OTHER = "deadbeef"
_DISK = "vda"
_TAG = disk_tag(_DISK)


def _point(sequence: int) -> str:
    return f"{sequence:010x}"


def _bitmap(
    sequence: int, previous: int, chain: str = _CHAIN, tag: str | None = _TAG, **state: Any
) -> Bitmap:
    """A healthy segment that records, but for `state`."""
    name = Segment(chain, sequence, previous, _point(sequence), tag).bitmap
    healthy = Bitmap(name, 65536, 0, True, False, True, False)
    return dataclasses.replace(healthy, **state)


def _disk(*bitmaps: Bitmap) -> GuestDisk:
    return GuestDisk(_DISK, "node", 1 << 30, "qcow2", False, True, None, bitmaps)


def _since(sequence: int, *bitmaps: Bitmap) -> Since | Unknown:
    return written_since(_disk(*bitmaps), _CHAIN, sequence, _point(sequence))


def _lost(result: Since | Unknown) -> str:
    assert isinstance(result, Unknown)
    return result.reason


def test_one_recording_segment_from_the_point_on_is_all_that_is_needed() -> None:
    only = _bitmap(3, 2)
    assert _since(3, only) == Since((only.name,))


def test_a_point_is_followed_by_its_own_segment_and_all_later_ones() -> None:
    line = [_bitmap(3, 2, recording=False), _bitmap(5, 3, recording=False), _bitmap(6, 5)]
    assert _since(3, *line) == Since(tuple(bitmap.name for bitmap in line))
    assert _since(5, *line) == Since(tuple(bitmap.name for bitmap in line[1:]))


@given(st.permutations(range(4)))
def test_the_order_in_which_qemu_lists_bitmaps_does_not_matter(order: list[int]) -> None:
    line = [_bitmap(n + 1, n, recording=n == 3) for n in range(4)]
    names = tuple(bitmap.name for bitmap in line)
    assert _since(1, *(line[at] for at in order)) == Since(names)


def test_what_happened_before_the_point_does_not_matter() -> None:
    broken = _bitmap(1, 0, inconsistent=True, recording=False)
    stray = _bitmap(2, 0, busy=True)
    good = _bitmap(4, 3)
    assert _since(4, broken, stray, good) == Since((good.name,))


def test_without_any_bitmap_nothing_is_known() -> None:
    assert "no bitmap" in _lost(_since(1))


def test_other_peoples_bitmaps_and_other_chains_say_nothing() -> None:
    foreign = Bitmap("libvirt-checkpoint", 65536, 0, True, False, True, False)
    assert "no bitmap" in _lost(_since(1, foreign, _bitmap(1, 0, chain=_OTHER)))


def test_other_chains_segments_do_not_break_a_line() -> None:
    good = _bitmap(1, 0)
    noise = _bitmap(2, 9, chain=_OTHER, busy=True, inconsistent=True, recording=False)
    assert _since(1, good, noise) == Since((good.name,))


def test_a_segment_of_the_same_number_that_began_at_another_point_is_not_taken() -> None:
    twin = dataclasses.replace(_bitmap(3, 2), name=Segment(_CHAIN, 3, 2, "ffffffffff", _TAG).bitmap)
    assert _point(3) in _lost(_since(3, twin))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("tag", "names", "words"),
    [
        (disk_tag("vdb"), ("vda", "vdb"), "those of disk vdb: "),
        (disk_tag("vdb"), ("vda",), "those of another disk: "),
        (None, ("vda",), "of an early fleece"),
    ],
)
def test_another_disks_segment_breaks_the_line_wherever_it_is(
    place: int, tag: str | None, names: tuple[str, ...], words: str
) -> None:
    line = [_bitmap(n + 1, n, tag=tag if n == place else _TAG, recording=n == 2) for n in range(3)]
    found = written_since(_disk(*line), _CHAIN, 1, _point(1), names)
    assert words in _lost(found)


def test_another_disks_older_segment_does_not_matter() -> None:
    older, good = _bitmap(1, 0, tag=disk_tag("vdb"), recording=False), _bitmap(2, 1)
    assert _since(2, older, good) == Since((good.name,))


def test_a_point_that_only_another_disks_segments_are_near_is_lost_to_the_exchange() -> None:
    found = written_since(_disk(_bitmap(1, 0, tag=disk_tag("vdb"))), _CHAIN, 2, _point(2), ("vdb",))
    assert "exchanged" in _lost(found)


def test_a_segment_that_was_removed_from_the_middle_is_missed() -> None:
    reason = _lost(_since(1, _bitmap(1, 0, recording=False), _bitmap(3, 2)))
    assert "is gone" in reason
    assert _bitmap(1, 0).name in reason


def test_a_first_segment_that_was_removed_is_missed() -> None:
    assert "no bitmap" in _lost(_since(1, _bitmap(2, 1), _bitmap(3, 2)))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("state", "word"), [({"inconsistent": True}, "inconsistent"), ({"busy": True}, "in use")]
)
def test_a_bitmap_that_cannot_be_read_breaks_the_line_wherever_it_is(
    place: int, state: dict[str, Any], word: str
) -> None:
    line = [_bitmap(n + 1, n, recording=n == 2) for n in range(3)]
    line[place] = dataclasses.replace(line[place], **state)
    reason = _lost(_since(1, *line))
    assert word in reason
    assert line[place].name in reason


def test_a_last_segment_that_does_not_record_has_missed_writes() -> None:
    line = [_bitmap(1, 0), _bitmap(2, 1, recording=False)]
    assert "no bitmap has recorded" in _lost(_since(1, *line))


def test_a_new_segment_follows_the_newest_one_that_is_there() -> None:
    disk = _disk(_bitmap(1, 0), _bitmap(4, 1), _bitmap(9, 0, chain=_OTHER))
    assert next_segment(disk, _CHAIN, 5, _point(5)) == Segment(_CHAIN, 5, 4, _point(5), _TAG)


def test_a_disks_first_segment_follows_none() -> None:
    assert next_segment(_disk(), _CHAIN, 1, _point(1)).previous == 0


@given(st.sets(st.integers(1, 30), min_size=2, max_size=8), st.data())
def test_any_line_that_points_make_is_known_and_any_hole_in_it_is_noticed(
    sequences: set[int], data: st.DataObject
) -> None:
    """Segments as `next_segment` makes them; then one of them is removed."""
    bitmaps: list[Bitmap] = []
    for sequence in sorted(sequences):
        made = next_segment(_disk(*bitmaps), _CHAIN, sequence, _point(sequence))
        bitmaps = [dataclasses.replace(old, recording=False) for old in bitmaps]
        bitmaps.append(_bitmap(sequence, made.previous))
    first, last = min(sequences), max(sequences)
    assert _since(first, *bitmaps) == Since(tuple(bitmap.name for bitmap in bitmaps))
    gone = data.draw(st.sampled_from(sorted(sequences)), "removed")
    left = [b for b in bitmaps if b.segment is not None and b.segment.sequence != gone]
    after = _since(first, *left)
    assert isinstance(after, Unknown)
    if gone not in (first, last):
        assert "is gone" in after.reason


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({}, "recording"),
        ({"recording": False}, "disabled"),
        ({"busy": True}, "busy"),
        ({"busy": True, "inconsistent": True}, "inconsistent"),
    ],
)
def test_a_bitmaps_state_is_one_word(state: dict[str, Any], word: str) -> None:
    assert _bitmap(1, 0, **state).state == word
