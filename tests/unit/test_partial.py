"""A delta that was cut anywhere: what is proven of it stays, and a writer goes on behind it."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.delta.partial import PartialDelta, Proven
from fleece.errors import DeltaError
from fleece.fileblob import named_file
from fleece.tree import BlankDisk, NodeSource
from tests.unit.kit import (
    LEAF,
    Change,
    History,
    OpenChain,
    Stored,
    full_check,
    histories,
    read_back,
    store_history,
    write_delta,
)


def _proven(path: Path) -> Proven:
    with PartialDelta(named_file(path)) as left:
        return left.proven()


def _positions(proven: Proven) -> list[int]:
    """Of its records, in the order of the file."""
    return sorted(at for part in proven.rows.parts() for at in part["position"].tolist())


def _go_on(stored: list[Stored], seed: int) -> None:
    """Resume the newest delta as an engine does, and check it as if it had never been cut."""
    newest = stored[-1]
    proven = _proven(newest.path)
    assert proven.head == newest.head
    with contextlib.ExitStack() as stack:
        base: NodeSource = BlankDisk(newest.head.geometry)
        if stored[:-1]:
            base = stack.enter_context(OpenChain([item.path for item in stored[-2::-1]]))
        sink = stack.enter_context(newest.path.open("r+b"))
        sink.truncate(proven.end)
        sink.seek(proven.end)
        summary, _ = write_delta(
            sink, newest.head, base, newest.disk, newest.dirty, seed, proven=proven
        )
    assert summary.root == newest.summary.root
    assert summary.stored_bytes == newest.path.stat().st_size
    paths = [item.path for item in reversed(stored)]
    full_check(paths)
    with OpenChain(paths) as chain:
        assert read_back(chain) == newest.disk


@given(
    history=histories(), where=st.floats(0, 1), garbage=st.binary(max_size=300), seed=st.integers()
)
def test_a_writer_goes_on_behind_any_cut(
    history: History,
    where: float,
    garbage: bytes,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    stored = store_history(tmp_path_factory.mktemp("cut"), history)
    with PartialDelta(named_file(stored[-1].path)) as whole:
        first = whole.records_start
    path = stored[-1].path
    content = path.read_bytes()
    cut = first + round(where * (len(content) - first))
    path.write_bytes(content[:cut] + garbage)
    _go_on(stored, seed)


@pytest.fixture
def one(tmp_path: Path) -> list[Stored]:
    """A full of eight leaves in one-leaf records, two of them zeros."""
    steps = ((Change(0, 5 * LEAF, 1), Change(6 * LEAF, 7 * LEAF + 9, 2)),)
    return store_history(tmp_path, History(8 * LEAF, 2, steps), longest=1)


def test_all_records_of_a_finished_delta_are_proven(one: list[Stored]) -> None:
    proven = _proven(one[0].path)
    assert proven.extents() == one[0].dirty
    _go_on(one, 1)


def test_any_flipped_byte_ends_what_is_proven(one: list[Stored]) -> None:
    """Nothing behind it is kept, and what is before it is."""
    content = one[0].path.read_bytes()
    whole = _proven(one[0].path)
    starts = _positions(whole)
    for position in random.Random(1).sample(range(starts[0], len(content)), 60):
        harmed = bytearray(content)
        harmed[position] ^= 4
        one[0].path.write_bytes(harmed)
        before = sum(start <= position for start in starts)
        kept = before if position >= whole.end else before - 1
        assert len(_proven(one[0].path).rows) == kept
        _go_on(one, position)


def test_a_record_of_another_file_is_not_proven(one: list[Stored], tmp_path: Path) -> None:
    """It is whole, and its place in the file is right; only the file is another one."""
    (tmp_path / "other").mkdir()
    other = store_history(tmp_path / "other", History(8 * LEAF, 2, ((Change(0, LEAF, 3),),)))
    end = _positions(_proven(one[0].path))[2]
    head = one[0].path.read_bytes()[:end]
    with PartialDelta(named_file(other[0].path)) as delta:
        start = delta.records_start
    one[0].path.write_bytes(head + other[0].path.read_bytes()[start:])
    assert len(_proven(one[0].path).rows) == 2
    _go_on(one, 2)


def test_a_file_without_a_whole_header_is_nothing(one: list[Stored]) -> None:
    content = one[0].path.read_bytes()
    for length in (0, 5, 100, _positions(_proven(one[0].path))[0] - 1):
        one[0].path.write_bytes(content[:length])
        with pytest.raises(DeltaError):
            PartialDelta(named_file(one[0].path))
