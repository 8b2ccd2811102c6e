"""Rows and hashes in bounded memory: they come back by place, whatever they came like."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.delta.layout import INDEX_ROW, Kind
from fleece.delta.pages import in_batches
from fleece.delta.spool import HashSpool, RowSpool, Spool
from fleece.extents import Extents
from fleece.tree import BlankDisk, Geometry, Growing, build, joined
from tests.unit.kit import LEAF

_ROOT = Path(__file__).parents[2]
_NUMBERED = np.dtype([("number", "<i8"), ("name", "S4")])


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(
    numbers=st.lists(st.integers(0, 1000), unique=True),
    sizes=st.lists(st.integers(1, 9), min_size=1),
    span=st.sampled_from([1, 16, 256, 4096]),
    memory=st.sampled_from([0, 40, 1 << 20]),
)
def test_rows_come_back_by_key_window_by_window(
    numbers: list[int], sizes: list[int], span: int, memory: int
) -> None:
    spool = Spool(_NUMBERED, "number", span, memory)
    at = 0
    for turn in range(len(numbers)):
        part = numbers[at : at + sizes[turn % len(sizes)]]
        at += len(part)
        spool.add(np.array([(number, b"%d" % number) for number in part], _NUMBERED))
    found = list(spool.windows())
    assert [window for window, _ in found] == sorted({number // span for number in numbers})
    for window, rows in found:
        inside = sorted(number for number in numbers if number // span == window)
        assert rows.tolist() == [(number, b"%d" % number) for number in inside]


def test_what_memory_does_not_hold_is_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _open_files()
    spool = HashSpool(16, memory=1 << 16)
    for number in range(0, 1 << 15, 8):
        spool.add_run(number, number.to_bytes(16, "little") * 8)
    assert sum(len(numbers) for _, numbers, _ in spool.windows()) == 1 << 15
    assert _open_files() == before + 1
    assert os.listdir(tmp_path) == []
    del spool
    assert _open_files() == before


def test_index_rows_come_back_by_offset() -> None:
    spool, size = RowSpool(LEAF, memory=1 << 12), 3 << 18
    offsets = random.Random(3).sample(range(size), 20_000)
    for position, offset in enumerate(offsets):
        spool.add(offset * LEAF, LEAF, position, 7, Kind.DATA)
    rows = np.concatenate(list(spool.parts()))
    expected = [(n * LEAF, LEAF, at, 7, Kind.DATA) for at, n in enumerate(offsets)]
    assert rows.tolist() == sorted(expected)
    assert rows.dtype == INDEX_ROW
    assert len(spool) == len(offsets)


class _Small(HashSpool):
    """Windows that a test's disk has many of."""

    def __init__(self, span: int, memory: int) -> None:
        super().__init__(16, memory)
        self._spool = Spool(self._row, "number", span, memory)
        self.span = span


@settings(deadline=None)
@given(
    fan_out=st.sampled_from([2, 4, 16]),
    windows=st.sampled_from([1, 2, 16]),
    leaves=st.integers(1, 3000),
    data=st.data(),
)
def test_a_tree_grows_the_same_by_windows_as_in_one_piece(
    fan_out: int, windows: int, leaves: int, data: st.DataObject
) -> None:
    geometry = Geometry(leaves * LEAF, LEAF, fan_out)
    cuts = sorted(data.draw(st.sets(st.integers(0, leaves), max_size=12)))
    kinds = data.draw(st.lists(st.sampled_from("dz-"), min_size=len(cuts), max_size=len(cuts)))
    spans = list(zip(cuts, cuts[1:], kinds, strict=False))
    zeros = Extents.of((start, end) for start, end, kind in spans if kind == "z")
    runs = [
        (start, b"".join(geometry.algorithm.digest(b"%d" % n) for n in range(start, end)))
        for start, end, kind in spans
        if kind == "d"
    ]
    whole = build(geometry, *joined(runs, 16), zeros, BlankDisk(geometry))
    make: Callable[[], _Small] = functools.partial(_Small, fan_out * windows, 100)
    held = make()
    for start, hashes in reversed(runs):
        held.add_run(start, hashes)
    growing = Growing(geometry, held, zeros, BlankDisk(geometry), make)
    parts = list(growing.levels())
    assert (growing.top, growing.root) == (whole.top, whole.root)
    for level in whole.levels:
        mine = [part for part in parts if part.level == level.level]
        assert np.array_equal(np.concatenate([part.nodes for part in mine]), level.nodes)
        assert np.array_equal(np.concatenate([part.children for part in mine]), level.children)
    assert {part.level for part in parts} == {level.level for level in whole.levels}


def test_memory_does_not_follow_the_number_of_records(tmp_path: Path) -> None:
    """A delta of 128 GiB of data, written and checked; without windows it takes 220 and 340 MiB."""
    words = ["-m", "tools.benchmark.dense", str(tmp_path / "dense.fleece"), str(1 << 37)]
    done = subprocess.run(
        [sys.executable, "-P", *words],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["write_peak_mib"] - found["import_mib"] < 130
    assert found["check_peak_mib"] - found["import_mib"] < 170


@given(st.lists(st.integers(1, 30)), st.integers(1, 10))
def test_batches_are_the_same_rows_cut_otherwise(lengths: list[int], most: int) -> None:
    total = sum(lengths)
    numbers = np.arange(total)
    parts = np.split(numbers, np.cumsum(lengths)[:-1]) if lengths else []
    batches = list(in_batches(((part, -part) for part in parts), most))
    assert [len(one) for one, _ in batches[:-1]] == [most] * (len(batches) - 1)
    assert [n for one, _ in batches for n in one.tolist()] == numbers.tolist()
    assert all(np.array_equal(one, -other) for one, other in batches)
