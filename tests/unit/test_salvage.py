"""Salvage and partial restore: damage costs what it hit and no more, and nothing stale passes.

The judge is the disk's true content at each point, kept while the deltas are written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import fleece
from fleece.delta import record
from fleece.delta.layout import Kind, Tag
from fleece.delta.salvage import Survey
from fleece.delta.writer import DeltaWriter
from fleece.engine.restore.salvage import lost_extents, survey
from fleece.extents import Extents
from fleece.store.init import init
from fleece.store.loose import open_delta, open_wreck
from fleece.store.store import Store
from fleece.tree import BlankDisk
from tests.fuzz.target import survey_of
from tests.rig.process import LIMIT, run_checked
from tests.unit.kit import (
    LEAF,
    Change,
    History,
    Stored,
    full_check,
    header,
    histories,
    naive_levels,
    naive_root,
    records_of,
    resized_disks,
    store_history,
    store_states,
    write_delta,
)

_SEED = st.integers(0, 1 << 30)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _store_of(folder: Path, stored: list[Stored]) -> Store:
    """A store with these deltas."""
    store = init(folder / "store")
    for item in stored:
        place = folder / "store" / "web" / item.path.stem
        place.mkdir(parents=True)
        shutil.copy(item.path, place / "vda.fleece")
    return store


def _path(store: Store, number: int) -> Path:
    return Path(store.where) / "web" / str(number) / "vda.fleece"


def _survey(path: Path) -> Survey:
    with open_wreck(path) as wreck:
        return survey(wreck)


def _content(path: Path, found: Survey) -> dict[tuple[int, int], bytes]:
    """What a file gives for each row that was proven."""
    given: dict[tuple[int, int], bytes] = {}
    with open_wreck(path) as wreck:
        for row in found.rows.tolist():
            offset, length, position, _, kind = row
            data = bytes(length)
            if kind == Kind.DATA:
                said, frame = wreck.record_at(*row)
                data = wreck.unpack(said, frame, zstandard.ZstdDecompressor())
            assert position or kind == Kind.ZERO
            given[offset, offset + length] = data
    return given


def _harm(item: Stored, times: int, chance: random.Random) -> None:
    """Harm a delta anywhere behind its header, some times over."""
    with open_delta(item.path) as delta:
        start = delta.records_start
    raw = bytearray(item.path.read_bytes())
    if times and chance.random() < 0.2:
        records = records_of(item.path)
        chance.shuffle(records)
        raw[start : start + sum(map(len, records))] = b"".join(records)
    for _ in range(times):
        at = chance.randint(start, len(raw))
        end = min(len(raw), at + chance.choice((1, 16, 200, 2000)))
        match chance.choice(("flip", "blank", "cut", "gone", "noise", "foreign")):
            case "flip":
                raw[at:end] = bytes(byte ^ 0x10 for byte in raw[at:end])
            case "blank":
                raw[at:end] = bytes(end - at)
            case "cut":
                del raw[at:]
            case "gone":
                del raw[at:end]
            case "noise":
                raw[at:end] = chance.randbytes(end - at)
            case "foreign":
                raw[at:at] = chance.randbytes(300)
    item.path.write_bytes(raw)


# ---- what a wreck proves ---------------------------------------------------------------------


@settings(max_examples=150)
@given(histories(), _SEED)
def test_what_a_damaged_delta_proves_is_true_and_the_rest_is_told(
    history: History, seed: int
) -> None:
    chance = random.Random(seed)
    with _folder() as folder:
        for item in store_history(folder, history, seed):
            _harm(item, chance.randint(0, 3), chance)
            _check_survey(item, _survey(item.path))


def _check_survey(item: Stored, found: Survey) -> None:
    for (start, end), data in _content(item.path, found).items():
        assert data == item.disk[start:end]
    held, lost, uncertain = found.held(), found.lost, found.uncertain
    assert item.dirty.subtract(held.union(lost).union(uncertain)) == Extents.empty()
    assert held.union(lost).subtract(item.dirty) == Extents.empty()
    assert held.intersect(lost.union(uncertain)) == Extents.empty()
    assert lost.intersect(uncertain) == Extents.empty()


@settings(max_examples=60)
@given(histories())
def test_of_a_whole_delta_nothing_is_lost(history: History) -> None:
    with _folder() as folder:
        for item in store_history(folder, history):
            found = _survey(item.path)
            assert found.held() == item.dirty
            assert (found.lost, found.uncertain) == (Extents.empty(), Extents.empty())


@pytest.fixture
def chain(tmp_path: Path) -> list[Stored]:
    """A full of eight leaves, all data but leaf 7, and an incremental of leaves 1, 2 and 5."""
    first = tuple(Change(n * LEAF, (n + 1) * LEAF, n + 1) for n in range(7))
    second = tuple(Change(n * LEAF, (n + 1) * LEAF, 0x80 + n) for n in (1, 2))
    zeroed = Change(5 * LEAF, 6 * LEAF, 0)
    history = History(8 * LEAF, 2, (first, (*second, zeroed)))
    return store_history(tmp_path, history, longest=1)


def _leaves(*numbers: int) -> Extents:
    return Extents.of((n * LEAF, (n + 1) * LEAF) for n in numbers)


def _row(path: Path, leaf: int) -> tuple[int, int]:
    """Where the record of a leaf and its zstd frame begin in a file."""
    with open_delta(path) as delta:
        (row,) = (row for row in delta.rows().tolist() if row[0] == leaf * LEAF)
        found, _ = delta.record_at(*row)
    size = 8 + int.from_bytes(path.read_bytes()[row[2] + 4 : row[2] + 8], "little")
    assert found.offset == leaf * LEAF
    return row[2], row[2] + size


def _flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("part", [0, 1], ids=["its RECORD frame", "its zstd frame"])
@pytest.mark.parametrize("leaf", range(7))
def test_damage_in_a_record_costs_that_record_and_no_more(
    leaf: int, part: int, chain: list[Stored]
) -> None:
    path = chain[0].path
    _flip(path, _row(path, leaf)[part] + 12)
    found = _survey(path)
    assert (found.lost, found.uncertain) == (_leaves(leaf), Extents.empty())


def test_a_damaged_zero_record_costs_nothing_because_the_index_tells_of_it(
    chain: list[Stored],
) -> None:
    path = chain[1].path
    _flip(path, _row(path, 5)[0] + 40)
    found = _survey(path)
    assert found.held() == _leaves(1, 2, 5)
    assert (found.lost, found.uncertain) == (Extents.empty(), Extents.empty())


def test_an_incremental_that_lost_its_end_is_uncertain_wherever_no_record_is_left(
    chain: list[Stored],
) -> None:
    path = chain[1].path
    last = max(_row(path, leaf)[0] for leaf in (1, 2))
    os.truncate(path, last)
    found = _survey(path)
    assert len(found.rows) == 1
    assert found.lost == Extents.empty()
    assert found.uncertain == Extents.whole(8 * LEAF).subtract(found.held())


def test_all_records_that_the_footer_counts_leave_nothing_uncertain_even_without_an_index(
    chain: list[Stored],
) -> None:
    path = chain[1].path
    with open_delta(path) as delta:
        position = delta.footer.directory_position
    frame = _row(path, 1)[1]
    _flip(path, position + 20)
    _flip(path, frame + 2)
    found = _survey(path)
    assert (found.lost, found.uncertain) == (_leaves(1), Extents.empty())


def test_a_record_that_is_gone_with_its_index_row_leaves_all_uncertain(
    chain: list[Stored],
) -> None:
    path = chain[1].path
    with open_delta(path) as delta:
        (page,) = (page for page in delta.pages if page.tag is Tag.INDEX)
    _flip(path, _row(path, 1)[0] + 20)
    _flip(path, page.position + 30)
    found = _survey(path)
    assert found.held() == _leaves(2, 5)
    assert (found.lost, found.uncertain) == (Extents.empty(), _leaves(1, 3, 4, 6, 7))


def test_a_full_that_lost_its_end_has_lost_whatever_no_record_covers(chain: list[Stored]) -> None:
    path = chain[0].path
    os.truncate(path, _row(path, 7)[0])
    found = _survey(path)
    assert (found.lost, found.uncertain) == (_leaves(7), Extents.empty())


@pytest.mark.parametrize("part", [0, 1], ids=["its RECORD frame", "its zstd frame"])
def test_bytes_that_went_missing_hide_neither_the_records_nor_the_index_behind_them(
    part: int, chain: list[Stored]
) -> None:
    path = chain[1].path
    place = _row(path, 1)[part]
    raw = path.read_bytes()
    path.write_bytes(raw[: place + 3] + raw[place + 10 :])
    found = _survey(path)
    assert (found.lost, found.uncertain) == (_leaves(1), Extents.empty())


def test_a_delta_among_the_disks_own_data_is_not_taken_for_the_file(tmp_path: Path) -> None:
    """A guest may keep deltas on its disk; damage must not let their records in."""
    inner = _full_of(tmp_path / "inner", b"x" * LEAF, number=76).read_bytes()
    disk = inner.ljust(2 * LEAF, b"\1")
    uncompressed = (
        b"\x28\xb5\x2f\xfd\xa0"
        + (2 * LEAF).to_bytes(4, "little")
        + (2 * LEAF << 3 | 1).to_bytes(3, "little")
        + disk
    )
    outer, head = tmp_path / "outer", header(2 * LEAF)
    with outer.open("wb") as file:
        writer = DeltaWriter(file, head, BlankDisk(head.geometry))
        writer.data(0, 2 * LEAF, b"".join(naive_levels(disk, 2)[0]), uncompressed)
        writer.finish()
    full_check([outer])
    assert inner in outer.read_bytes()
    _flip(outer, outer.read_bytes().index(disk) + 2 * LEAF - 1)
    found = _survey(outer)
    assert (len(found.rows), found.lost) == (0, Extents.whole(2 * LEAF))


def _full_of(path: Path, disk: bytes, number: int = 77) -> Path:
    """A full of a disk, in one record; its UUID is a number."""
    head = dataclasses.replace(header(len(disk)), file_id=uuid.UUID(int=number))
    with path.open("wb") as file:
        write_delta(file, head, BlankDisk(head.geometry), disk, Extents.whole(len(disk)), 0, 1000)
    return path


def test_records_of_one_file_that_contradict_each_other_prove_nothing(tmp_path: Path) -> None:
    """Two files with one UUID: nothing tells which of their records are the delta's."""
    one = _full_of(tmp_path / "one", b"1" * 2 * LEAF)
    other = _full_of(tmp_path / "other", b"2" * 2 * LEAF)
    shape = header(2 * LEAF).geometry
    both = records_of(other)[0]
    size = record.size_of(Kind.DATA, 2 * LEAF, shape)
    forged = record.parse(both[:size], shape, "test")._replace(sequence=1)
    one.write_bytes(one.read_bytes() + record.pack(forged, shape) + both[size:])
    found = _survey(one)
    assert (len(found.rows), found.lost) == (0, Extents.whole(2 * LEAF))


def test_what_the_device_cannot_read_counts_as_damage(chain: list[Stored]) -> None:
    path = chain[0].path
    bad = _row(path, 3)[1] + 5
    real = os.pread

    def broken(file: int, length: int, position: int) -> bytes:
        if position <= bad < position + length:
            raise OSError(5, "Input/output error")
        return real(file, length, position)

    with mock.patch("fleece.delta.wreck._BLOCK", 16), mock.patch("os.pread", broken):
        found = _survey(path)
    assert found.lost == _leaves(3)


def test_a_search_asks_in_every_window_whether_it_is_to_go_on(chain: list[Stored]) -> None:
    path = chain[0].path
    with path.open("ab") as file:
        file.write(b"\1" * (3 << 20))
    asked: list[int] = []
    with open_wreck(path) as wreck:
        assert len([*wreck.remnants(lambda: asked.append(1))]) == 8
    assert len(asked) >= 3

    def stop() -> None:
        raise fleece.Interrupted

    with open_wreck(path) as wreck, pytest.raises(fleece.Interrupted):
        [*wreck.remnants(stop)]


def test_holes_are_not_searched(chain: list[Stored], tmp_path: Path) -> None:
    """Two records, 8 TiB of holes, the other records, and 4 TiB of holes: days, byte by byte."""
    path = chain[0].path
    raw, (at, _) = path.read_bytes(), _row(path, 2)
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(8 << 40)
        file.write(raw[at:])
        file.truncate(12 << 40)
    words = ("salvage", str(path), "-o", str(tmp_path / "new"))
    command = [sys.executable, "-m", "fleece", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
    found = _survey(tmp_path / "new")
    assert found.held() == Extents.whole(8 * LEAF)


# ---- the salvaged file -----------------------------------------------------------------------


@settings(max_examples=80)
@given(histories(), _SEED)
def test_a_salvaged_file_holds_what_the_wreck_proved_and_is_nobodys_delta(
    history: History, seed: int
) -> None:
    chance = random.Random(seed)
    with _folder() as folder:
        for item in store_history(folder, history, seed):
            _harm(item, chance.randint(0, 2), chance)
            before = _survey(item.path)
            new = folder / f"{item.path.name}-new"
            if len(before.rows) == 0 and before.lost.union(before.uncertain) != Extents.empty():
                with pytest.raises(fleece.DeltaError, match="nothing in it can be proven"):
                    fleece.salvage(str(item.path), str(new))
                assert not new.exists()
                continue
            result = fleece.salvage(str(item.path), str(new))
            after = _survey(new)
            _check_survey(dataclasses.replace(item, path=new), after)
            assert (after.lost, after.uncertain) == (before.lost, before.uncertain)
            assert _content(new, after) == _content(item.path, before)
            told = Extents.of((e.offset, e.offset + e.length) for e in result.lost)
            assert told == before.lost.union(before.uncertain)
            assert result.root in (None, item.summary.root.hex())
            subprocess.run(["zstd", "-tq", new], check=True)
            with pytest.raises(fleece.DeltaError, match="salvaged"):
                open_delta(new)


def test_a_salvaged_file_that_is_damaged_itself_can_be_salvaged_again(
    chain: list[Stored], tmp_path: Path
) -> None:
    path, new, newer = chain[1].path, tmp_path / "new", tmp_path / "newer"
    _flip(path, _row(path, 1)[1])
    fleece.salvage(str(path), str(new))
    same = tmp_path / "same"
    assert fleece.salvage(str(new), str(same)).lost == _lost_leaves(1)
    assert same.read_bytes() == new.read_bytes()
    with open_wreck(new) as wreck:
        (place,) = (item.position for item in wreck.remnants() if item.record.offset == 2 * LEAF)
    _flip(new, place + 30)
    result = fleece.salvage(str(new), str(newer))
    assert result.lost == _lost_leaves(1, 2)
    assert result.root == chain[1].summary.root.hex()


def _lost_leaves(*numbers: int) -> tuple[fleece.LostExtent, ...]:
    return lost_extents(_leaves(*numbers), Extents.empty())


def test_a_salvaged_file_is_no_point_no_parent_and_no_proof(
    chain: list[Stored], tmp_path: Path
) -> None:
    store = _store_of(tmp_path, chain)
    path = _path(store, 1)
    _flip(path, _row(path, 3)[1])
    fleece.salvage(str(path), str(tmp_path / "new"))
    os.replace(tmp_path / "new", path)
    catalogue = store.catalogue()
    assert [p.id for p in catalogue.points] == [chain[1].head.point.id]
    with pytest.raises(fleece.StoreError, match=r"is not in the store .*salvaged"):
        catalogue.line(catalogue.points[0].disk("vda"))
    errors = fleece.verify_store(catalogue).errors
    assert any("salvaged" in error for error in errors)
    for point in ("latest", chain[0].head.point.id):
        with pytest.raises(fleece.StoreError):
            fleece.restore(store, point, "vda", str(tmp_path / "target"))
    done = subprocess.run(
        [sys.executable, "tools/read_delta.py", tmp_path / "raw", path],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs another reader" in done.stderr


def test_salvage_never_writes_over_the_damaged_file_nor_unasked_over_another(
    chain: list[Stored], tmp_path: Path
) -> None:
    path = chain[0].path
    raw = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for target in (path, tmp_path / "link"):
        with pytest.raises(fleece.UsageError, match="another than the damaged one"):
            fleece.salvage(str(path), str(target), force=True)
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    with pytest.raises(fleece.TargetError, match="exists already"):
        fleece.salvage(str(path), str(other))
    assert (path.read_bytes(), other.read_bytes()) == (raw, b"mine")


def test_a_header_with_more_than_a_bit_wrong_is_one_clear_error(
    chain: list[Stored], tmp_path: Path
) -> None:
    _flip(chain[0].path, 100)
    _flip(chain[0].path, 101)
    with pytest.raises(fleece.DeltaError, match="without a header nothing of it can be read"):
        fleece.salvage(str(chain[0].path), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [0, 1], ids=["the full", "the child"])
def test_one_wrong_bit_anywhere_costs_at_most_one_record(number: int, chain: list[Stored]) -> None:
    path = chain[number].path
    raw = path.read_bytes()
    whole = _survey(path).held().total
    with path.open("r+b", buffering=0) as file:
        for at, byte in [*enumerate(raw)][number::2]:
            os.pwrite(file.fileno(), bytes([byte ^ 1 << at // 2 % 8]), at)
            with open_wreck(path) as wreck:
                found = survey_of(wreck)
            os.pwrite(file.fileno(), bytes([byte]), at)
            lost = found.lost.total
            assert (lost, found.held().total) in ((0, whole), (LEAF, whole - LEAF)), at
            assert found.uncertain == Extents.empty(), at


# ---- partial restore -------------------------------------------------------------------------


@settings(max_examples=150)
@given(histories(most_steps=5), _SEED)
def test_a_partial_restore_writes_nothing_that_is_not_the_disks_and_tells_what_it_lost(
    history: History, seed: int
) -> None:
    with _folder() as folder:
        _restore_harmed(folder, store_history(folder, history, seed), random.Random(seed))


@settings(max_examples=150)
@given(resized_disks(), _SEED)
def test_nor_of_a_disk_that_was_cut_and_grown(disks: list[bytes], seed: int) -> None:
    with _folder() as folder:
        _restore_harmed(folder, store_states(folder, disks, 4), random.Random(seed))


def _restore_harmed(folder: Path, stored: list[Stored], chance: random.Random) -> None:
    for item in stored:
        if chance.random() < 0.5:
            _harm(item, chance.randint(1, 2), chance)
    store = _store_of(folder, stored)
    gone = chance.randrange(len(stored)) if chance.random() < 0.3 else -1
    wanted = stored[-1] if chance.random() < 0.7 else chance.choice(stored)
    if gone >= 0 and stored[gone] is not wanted:
        _path(store, gone + 1).unlink()
    target = folder / "target"
    result = fleece.restore_partial(store, wanted.head.point.id, "vda", str(target))
    _check_partial(wanted, target, result)


def _check_partial(item: Stored, target: Path, result: fleece.PartialResult) -> None:
    expected = bytearray(item.disk)
    for part in result.lost:
        expected[part.offset : part.offset + part.length] = bytes(part.length)
    assert target.read_bytes() == expected
    assert result.root == naive_root(bytes(expected), item.head.fan_out).hex()
    assert result.point_root in (None, item.summary.root.hex())
    assert result.whole == (expected == item.disk and not result.lost and bool(result.point_root))


@settings(max_examples=60)
@given(histories(), _SEED)
def test_of_a_sound_chain_a_partial_restore_is_whole(history: History, seed: int) -> None:
    with _folder() as folder:
        stored = store_history(folder, history, seed)
        target = folder / "target"
        store = _store_of(folder, stored)
        result = fleece.restore_partial(store, "latest", "vda", str(target))
        assert result.whole
        assert target.read_bytes() == stored[-1].disk


@settings(max_examples=60)
@given(resized_disks())
def test_so_it_is_of_one_that_was_cut_and_grown(disks: list[bytes]) -> None:
    with _folder() as folder:
        target = folder / "target"
        store = _store_of(folder, store_states(folder, disks, 4))
        assert fleece.restore_partial(store, "latest", "vda", str(target)).whole
        assert target.read_bytes() == disks[-1]


# ---- what exactly is lost --------------------------------------------------------------------


def _partial(
    store: Store, tmp_path: Path, point: str = "latest"
) -> tuple[fleece.PartialResult, bytes]:
    target = tmp_path / "target"
    result = fleece.restore_partial(
        store, point, "vda", str(target), options=fleece.RestoreOptions(force=True)
    )
    return result, target.read_bytes()


@pytest.fixture
def store(chain: list[Stored], tmp_path: Path) -> Store:
    return _store_of(tmp_path / "made", chain)


def test_an_older_content_never_stands_in_for_a_lost_one(
    store: Store, chain: list[Stored], tmp_path: Path
) -> None:
    path = _path(store, 2)
    _flip(path, _row(path, 1)[1])
    result, content = _partial(store, tmp_path)
    assert result.lost == _lost_leaves(1)
    assert content[LEAF : 2 * LEAF] == bytes(LEAF), "not what the full has there"
    _check_partial(chain[1], tmp_path / "target", result)


def test_an_older_content_never_stands_in_where_no_tree_is_left_either(
    store: Store, chain: list[Stored], tmp_path: Path
) -> None:
    path = _path(store, 2)
    _flip(path, _row(path, 1)[1])
    with open_delta(path) as delta:
        first_page = delta.pages[0].position
    os.truncate(path, first_page)
    result, _ = _partial(store, tmp_path)
    uncertain = lost_extents(Extents.empty(), _leaves(0, 3, 4, 6, 7))
    assert result.lost == tuple(sorted(_lost_leaves(1) + uncertain, key=lambda e: e.offset))
    _check_partial(chain[1], tmp_path / "target", result)


def test_what_only_an_older_point_needed_is_not_missed(
    store: Store, chain: list[Stored], tmp_path: Path
) -> None:
    path = _path(store, 1)
    for leaf in (1, 2, 5):
        _flip(path, _row(path, leaf)[1])
    result, content = _partial(store, tmp_path)
    assert result.whole
    assert content == chain[1].disk
    assert _partial(store, tmp_path, chain[0].head.point.id)[0].lost == _lost_leaves(1, 2, 5)


def test_a_damaged_tree_costs_nothing_while_the_records_give_its_root(
    store: Store, tmp_path: Path
) -> None:
    for number in (1, 2):
        with open_delta(_path(store, number)) as delta:
            page = delta.pages[0]
        _flip(_path(store, number), page.position + 30)
    assert _partial(store, tmp_path)[0].whole


def test_what_was_written_again_as_it_was_is_found_in_the_older_delta(tmp_path: Path) -> None:
    whole = Change(0, 4 * LEAF, 7)
    stored = store_history(tmp_path, History(4 * LEAF, 2, ((whole,), (whole,))), longest=1)
    store = _store_of(tmp_path, stored)
    path = _path(store, 2)
    _flip(path, _row(path, 2)[1])
    assert _partial(store, tmp_path)[0].whole


def test_a_missing_delta_costs_only_what_it_alone_held(tmp_path: Path) -> None:
    """The newest delta's tree proves what the missing one did not touch, out of the full."""
    every = tuple(Change(n * LEAF, (n + 1) * LEAF, n + 1) for n in range(8))
    middle = (Change(2 * LEAF, 3 * LEAF, 99),)
    last = (Change(7 * LEAF, 8 * LEAF, 100),)
    stored = store_history(tmp_path, History(8 * LEAF, 2, (every, middle, last)), longest=1)
    store = _store_of(tmp_path, stored)
    _path(store, 2).unlink()
    result, content = _partial(store, tmp_path)
    # The lists of nodes over leaves 0 to 3 were in the missing delta alone.
    told = [(part.offset // LEAF, part.length // LEAF, part.reason) for part in result.lost]
    assert told == [(0, 4, fleece.Loss.UNCERTAIN)]
    assert content[4 * LEAF :] == stored[2].disk[4 * LEAF :]


@pytest.mark.parametrize("number", [1, 2])
def test_a_salvaged_file_in_the_store_serves_as_well_as_the_damaged_one(
    number: int, store: Store, tmp_path: Path
) -> None:
    path = _path(store, number)
    _flip(path, _row(path, 2)[1])
    damaged = _partial(store, tmp_path)
    fleece.salvage(str(path), str(tmp_path / "new"))
    os.replace(tmp_path / "new", path)
    assert _partial(store, tmp_path) == damaged


def test_a_point_whose_root_nothing_tells_is_not_called_whole(
    store: Store, chain: list[Stored], tmp_path: Path
) -> None:
    os.truncate(_path(store, 2), chain[1].summary.stored_bytes - 1)
    os.truncate(_path(store, 1), chain[0].summary.stored_bytes - 1)
    full, content = _partial(store, tmp_path, chain[0].head.point.id)
    assert content == chain[0].disk
    assert full.whole, "the child's header names the root"
    _path(store, 2).unlink()
    alone, content = _partial(store, tmp_path)
    assert content == chain[0].disk
    assert (alone.lost, alone.point_root, alone.whole) == ((), None, False)


def test_where_no_header_is_left_there_is_nothing_to_restore(
    store: Store, chain: list[Stored], tmp_path: Path
) -> None:
    os.truncate(_path(store, 2), 100)
    with pytest.raises(fleece.StoreError, match="nothing is left of disk vda at point"):
        _partial(store, tmp_path, chain[1].head.point.id)
    assert not (tmp_path / "target").exists()


# ---- the command line ------------------------------------------------------------------------


def _fleece(*words: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "fleece", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_salvages_and_restores_in_part(
    store: Store, chain: list[Stored], tmp_path: Path
) -> None:
    path, new, target = _path(store, 2), tmp_path / "new", tmp_path / "out.qcow2"
    _flip(path, _row(path, 1)[1])
    code, out, _ = _fleece("salvage", path, "-o", new, "--json")
    result = json.loads(out.splitlines()[-1])
    lost = [{"offset": LEAF, "length": LEAF, "reason": "lost"}]
    assert (code, result["ok"], result["lost"]) == (0, True, lost)
    assert result["root"] == chain[1].summary.root.hex()
    code, out, err = _fleece("salvage", path, "-o", new)
    assert (code, out) == (7, "")
    assert err.startswith("fleece: ")
    code, out, _ = _fleece("salvage", path, "-o", new, "--force")
    assert code == 0
    assert out.splitlines()[0] == f"lost: bytes {LEAF} to {2 * LEAF - 1}"

    assert _fleece("restore", store.where, "latest", "vda", target)[0] == 5
    assert not target.exists()
    code, out, _ = _fleece(
        "restore", Path(store.where), "latest", "vda", target, "--partial", "--json"
    )
    result = json.loads(out.splitlines()[-1])
    assert (code, result["ok"], result["exit_code"], result["lost"]) == (6, False, 6, lost)
    raw = tmp_path / "raw"
    raw.write_bytes(chain[1].disk[:LEAF] + bytes(LEAF) + chain[1].disk[2 * LEAF :])
    run_checked("qemu-img", "compare", "-f", "qcow2", "-F", "raw", target, raw)

    whole = chain[0].head.point.id
    code, out, _ = _fleece(
        "restore", Path(store.where), whole, "vda", tmp_path / "whole", "--partial"
    )
    assert code == 0
    assert "nothing is lost" in out
    assert (tmp_path / "whole").read_bytes() == chain[0].disk


def test_info_shows_what_a_salvaged_file_holds_and_lacks(
    chain: list[Stored], tmp_path: Path
) -> None:
    path, new = chain[1].path, tmp_path / "new"
    _flip(path, _row(path, 1)[1])
    fleece.salvage(str(path), str(new))
    code, out, _ = _fleece("info", new, "--json")
    said = json.loads(out)
    assert code == 0
    assert said["salvaged"] is True
    assert (said["root"], said["records"]) == (chain[1].summary.root.hex(), 2)
    assert said["lost"] == [{"offset": LEAF, "length": LEAF, "reason": "lost"}]
