"""Delta files: what is written is read back, and what was harmed is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.delta import footer, pages, record
from fleece.delta import header as header_module
from fleece.delta.chain import Chain, check_link
from fleece.delta.header import Header, ParentRef, PointRef
from fleece.delta.identity import GuestIdentity
from fleece.delta.layout import (
    INDEX_ROW,
    MAX_DIRECTORY,
    MAX_FRAME,
    MAX_PAGE,
    MAX_RECORD,
    Kind,
    Tag,
    directory_row,
    seal,
    unseal,
)
from fleece.delta.reader import DeltaReader
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter
from fleece.errors import DeltaError, StoreError, UsageError
from fleece.extents import Extents
from fleece.hashing import XXH3_128, Buffer
from fleece.store.loose import open_delta
from fleece.tree import BlankDisk, Geometry, Level
from tests.unit.kit import (
    LEAF,
    Change,
    History,
    OpenChain,
    Stored,
    check_newest,
    full_check,
    header,
    histories,
    naive_levels,
    naive_root,
    read_back,
    reassembled,
    records_of,
    store_history,
    write_delta,
)

_HUGE = (1 << 64) - 1


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for one example; `tmp_path` would be one for all of them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def _page_size(rows: int) -> Iterator[None]:
    """Pages of a few rows, so that small deltas have many."""
    with (
        mock.patch.object(pages, "INDEX_PAGE_ROWS", rows),
        mock.patch.object(pages, "TREE_PAGE_NODES", rows),
    ):
        yield


# ---- round trips -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(histories(), st.sampled_from([1, 2, 65536]), st.integers(0, 99))
def test_every_point_of_a_history_is_read_back_from_its_chain(
    history: History, page: int, seed: int
) -> None:
    with _folder() as folder, _page_size(page):
        stored = store_history(folder, history, seed)
        for count in range(1, len(stored) + 1):
            newest = stored[count - 1]
            with OpenChain([item.path for item in reversed(stored[:count])]) as chain:
                assert read_back(chain) == newest.disk
                assert chain.root == naive_root(newest.disk, history.fan_out)
        full_check([item.path for item in reversed(stored)])


@settings(max_examples=60)
@given(histories(), st.sampled_from([1, 2, 65536]))
def test_the_map_gives_each_leaf_to_the_newest_delta_that_has_it(
    history: History, page: int
) -> None:
    with _folder() as folder, _page_size(page):
        newest_first = list(reversed(store_history(folder, history)))
        with OpenChain([item.path for item in newest_first]) as chain:
            picture = chain.map()
            owner = bytearray(b"\xff" * history.size)
            for start, end, who in zip(
                picture.start.tolist(), picture.end.tolist(), picture.owner.tolist(), strict=True
            ):
                owner[start:end] = bytes([who]) * (end - start)
            expected = bytearray(b"\xff" * history.size)
            for who, item in reversed(list(enumerate(newest_first))):
                for start, end in item.dirty:
                    expected[start:end] = bytes([who]) * (end - start)
            assert owner == expected
            halves = picture.extents(zero=True), picture.extents(zero=False)
            assert halves[0].union(halves[1]) == Extents.whole(history.size)
            assert len(halves[0].intersect(halves[1])) == 0


@settings(max_examples=60)
@given(histories(most_leaves=40), st.sampled_from([1, 3, 65536]))
def test_the_chains_tree_is_the_tree_of_the_disk_from_scratch(history: History, page: int) -> None:
    with _folder() as folder, _page_size(page):
        stored = store_history(folder, history)
        levels = naive_levels(stored[-1].disk, history.fan_out)
        with OpenChain([item.path for item in reversed(stored)]) as chain:
            assert chain.top == levels[-1][0]
            for level in range(1, chain.geometry.height + 1):
                nodes = np.arange(len(levels[level]))
                flat = chain.children(level, nodes).reshape(-1, 16)
                below = levels[level - 1]
                assert [bytes(one) for one in flat[: len(below)]] == below
                zero = chain.geometry.zeros[level - 1]
                assert all(bytes(one) == zero for one in flat[len(below) :])
                every_other = flat.reshape(-1, history.fan_out, 16)[::2]
                assert np.array_equal(chain.children(level, nodes[::2]), every_other)


@settings(max_examples=15)
@given(histories())
def test_zstd_itself_tests_a_delta_and_unpacks_its_data(history: History) -> None:
    with _folder() as folder:
        for item in store_history(folder, history):
            subprocess.run(["zstd", "-q", "-t", "--", item.path], check=True)
            done = subprocess.run(
                ["zstd", "-q", "-dc", "--", item.path], check=True, capture_output=True
            )
            assert done.stdout == item.data


@settings(max_examples=30)
@given(histories(most_steps=2))
def test_footer_and_summary_count_what_the_delta_holds(history: History) -> None:
    with _folder() as folder:
        for item in store_history(folder, history):
            with open_delta(item.path) as delta:
                last, summary = delta.footer, item.summary
                assert (last.root, last.data_bytes, last.zero_bytes) == (
                    summary.root,
                    summary.data_bytes,
                    summary.zero_bytes,
                )
                assert delta.length == summary.stored_bytes == item.path.stat().st_size
                assert delta.extents() == item.dirty
                assert delta.extents(Kind.DATA).total == summary.data_bytes == len(item.data)
                assert delta.extents(Kind.ZERO).total == summary.zero_bytes
                assert delta.header == item.head


def test_zeros_are_stored_as_zeros_and_not_left_out(tmp_path: Path) -> None:
    history = History(2 * LEAF, 2, ((Change(0, 2 * LEAF, 7),), (Change(0, LEAF, 0),)))
    stored = store_history(tmp_path, history)
    with open_delta(stored[1].path) as delta:
        assert list(delta.extents(Kind.ZERO)) == [(0, LEAF)]
        assert len(delta.extents(Kind.DATA)) == 0


def test_zero_ranges_that_touch_become_one_record(tmp_path: Path) -> None:
    head = header(9 * LEAF)
    with (tmp_path / "d").open("wb") as sink:
        writer = DeltaWriter(sink, head, BlankDisk(head.geometry))
        for leaf in (8, 0, 4, 2, 6, 1, 3, 7, 5):
            writer.zero(leaf * LEAF, LEAF)
        writer.finish()
    with open_delta(tmp_path / "d") as delta:
        assert delta.footer.records == 1
        assert list(delta.extents(Kind.ZERO)) == [(0, 9 * LEAF)]


def test_a_full_of_a_huge_blank_disk_is_a_small_file(tmp_path: Path) -> None:
    size = (16 << 40) + 4096 + 512
    head = header(size, fan_out=16)
    with (tmp_path / "d").open("wb") as sink:
        writer = DeltaWriter(sink, head, BlankDisk(head.geometry))
        writer.zero(0, size)
        summary = writer.finish()
    assert summary.stored_bytes < 16 * 1024
    full_check([tmp_path / "d"])


# ---- sinks -----------------------------------------------------------------------------------

_SAMPLE = bytes(LEAF) + b"a" * LEAF + bytes(range(256)) * 16 + b"tail"


def _sample_delta(sink: Sink) -> None:
    head = header(len(_SAMPLE))
    whole = Extents.whole(len(_SAMPLE))
    write_delta(sink, head, BlankDisk(head.geometry), _SAMPLE, whole, longest=1)


class _Trickle:
    """A raw stream that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self._sizes = itertools.cycle([1, 3, 7])

    def write(self, data: Buffer) -> int:
        part = bytes(data)[: next(self._sizes)]
        self.taken += part
        return len(part)


class _Whole:
    """A stream that takes all that it is given."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: Buffer) -> int:
        self.taken += bytes(data)
        return len(data)


def test_a_delta_is_the_same_through_any_sink(tmp_path: Path) -> None:
    with (tmp_path / "d").open("wb") as file:
        _sample_delta(file)
    expected = (tmp_path / "d").read_bytes()
    trickle, whole = _Trickle(), _Whole()
    _sample_delta(trickle)
    _sample_delta(whole)
    assert bytes(trickle.taken) == bytes(whole.taken) == expected


def test_a_delta_can_be_written_into_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    got: list[bytes] = []

    def drain() -> None:
        with open(reading, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=drain)
    reader.start()
    with open(writing, "wb", buffering=0) as pipe:
        _sample_delta(pipe)
    reader.join()
    (tmp_path / "d").write_bytes(got[0])
    full_check([tmp_path / "d"])


def test_an_error_of_the_sink_is_the_writers_error() -> None:
    class Full:
        def write(self, data: Buffer) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        _sample_delta(Full())


@pytest.mark.parametrize("taken", [None, 0], ids=["would block", "took nothing"])
def test_a_sink_that_takes_nothing_is_an_error_and_neither_a_loss_nor_an_endless_loop(
    taken: int | None,
) -> None:
    """A raw stream that does not block says None when it took nothing."""

    class Stuck:
        def write(self, data: Buffer) -> int | None:
            return taken

    with pytest.raises(StoreError, match="takes no bytes"):
        _sample_delta(Stuck())


def test_a_range_that_is_written_twice_is_refused() -> None:
    head = header(4 * LEAF)
    writer = DeltaWriter(_Whole(), head, BlankDisk(head.geometry))
    writer.zero(0, 4 * LEAF)
    data = b"x" * LEAF
    leaves = b"".join(naive_levels(data, 2)[0])
    writer.data(LEAF, LEAF, leaves, zstandard.compress(data))
    with pytest.raises(DeltaError, match="written twice"):
        writer.finish()


def test_records_can_be_appended_by_many_threads(tmp_path: Path) -> None:
    count = 64
    disk = b"".join(bytes([n + 1]) * LEAF for n in range(count))
    head = header(len(disk), fan_out=16)
    with (tmp_path / "d").open("wb") as sink:
        writer = DeltaWriter(sink, head, BlankDisk(head.geometry))
        hashes = naive_levels(disk, 16)[0]

        def work(first: int) -> None:
            for leaf in range(first, count, 4):
                data = disk[leaf * LEAF : (leaf + 1) * LEAF]
                writer.data(leaf * LEAF, LEAF, hashes[leaf], zstandard.compress(data))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert writer.finish().root == naive_root(disk, 16)
    full_check([tmp_path / "d"])


# ---- incomplete and foreign files ------------------------------------------------------------


def test_a_delta_without_its_footer_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "d"
    head = header(len(_SAMPLE))
    with path.open("wb") as sink:
        DeltaWriter(sink, head, BlankDisk(head.geometry)).zero(0, LEAF)
    with pytest.raises(DeltaError, match="incomplete"):
        open_delta(path)
    with path.open("wb") as sink:
        _sample_delta(sink)
    raw = path.read_bytes()
    path.write_bytes(raw[: -footer.size_of(XXH3_128)])
    with pytest.raises(DeltaError, match="incomplete"):
        open_delta(path)


def test_what_follows_the_footer_makes_a_delta_invalid(tmp_path: Path) -> None:
    with (tmp_path / "d").open("wb") as sink:
        _sample_delta(sink)
        sink.write(b"\0")
    with pytest.raises(DeltaError, match="incomplete or cut"):
        open_delta(tmp_path / "d")


@pytest.mark.parametrize("content", [b"", b"x", b"QFI\xfb" + bytes(9999), bytes(9999)])
def test_other_files_are_no_deltas(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(DeltaError, match="not a fleece delta"):
        open_delta(tmp_path / "d")


def test_what_cannot_be_opened_is_a_delta_error(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="not a regular file"):
        open_delta(tmp_path)
    with pytest.raises(DeltaError, match="cannot be read"):
        open_delta(tmp_path / "not there")


def test_a_file_that_fails_while_it_is_read_is_a_delta_error(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, length: int, position: int) -> bytes:
        raise OSError(5, "Input/output error")

    with open_delta(sample) as delta:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(DeltaError, match=r"cannot be read \(Input/output error\)"):
            delta.rows()


# ---- links -----------------------------------------------------------------------------------


def _pair(folder: Path, **changes: Any) -> tuple[DeltaReader, DeltaReader]:
    """A full, and a delta whose header says that it builds on it, but for the changes given."""
    size = 2 * LEAF
    full = header(size)
    with (folder / "full").open("wb") as sink:
        root = write_delta(sink, full, BlankDisk(full.geometry), bytes(size), Extents.whole(size))[
            0
        ].root
    child = header(size, 2, ParentRef(full.point.id, root.hex(), size))
    child = dataclasses.replace(child, **changes)
    with (folder / "child").open("wb") as sink:
        write_delta(sink, child, BlankDisk(child.geometry), bytes(size), Extents.whole(size))
    return open_delta(folder / "child"), open_delta(folder / "full")


def _parent(point: str = f"{1:010x}", size: int = 2 * LEAF, root: str | None = None) -> ParentRef:
    return ParentRef(point, root or naive_root(bytes(2 * LEAF), 2).hex(), size)


def test_a_delta_links_to_the_state_that_it_names(tmp_path: Path) -> None:
    child, full = _pair(tmp_path)
    with child, full:
        check_link(child, full)
        assert Chain([child, full]).root == child.footer.root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disk": "vdb", "disks": ("vdb",)}, "does not build on"),
        ({"guest": "other"}, "does not build on"),
        ({"chain": "deadbeef"}, "does not build on"),
        ({"parent": _parent(point="ffffffff")}, "does not build on"),
        ({"parent": _parent(root="00" * 16)}, "builds on another state"),
        ({"parent": _parent(size=LEAF)}, "builds on another state"),
        ({"leaf_size": 2 * LEAF}, "another shape"),
        ({"fan_out": 4}, "another shape"),
    ],
)
def test_a_delta_does_not_link_to_another(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    child, full = _pair(tmp_path, **changes)
    with child, full:
        with pytest.raises(DeltaError, match=message):
            check_link(child, full)
        with pytest.raises(DeltaError, match=message):
            Chain([child, full])


def test_a_full_links_to_nothing(tmp_path: Path) -> None:
    child, full = _pair(tmp_path)
    with child, full, pytest.raises(DeltaError, match="does not build on"):
        check_link(full, child)


def test_a_chain_must_reach_down_to_a_full(tmp_path: Path) -> None:
    child, full = _pair(tmp_path)
    with child, full, pytest.raises(DeltaError, match="its parent is missing"):
        Chain([child])


def test_a_chain_that_does_not_cover_its_disk_has_no_map(tmp_path: Path) -> None:
    head = header(2 * LEAF)
    with (tmp_path / "d").open("wb") as sink:
        writer = DeltaWriter(sink, head, BlankDisk(head.geometry))
        writer.zero(0, LEAF)
        writer.finish()
    with OpenChain([tmp_path / "d"]) as chain, pytest.raises(DeltaError, match="in none of its"):
        chain.map()
    with pytest.raises(DeltaError, match="lacks parts of the disk"):
        full_check([tmp_path / "d"])


# ---- hostile headers -------------------------------------------------------------------------


def _framed(text: bytes, version: int = 1, code: int = 1, incompatible: int = 0) -> bytes:
    """A HEADER frame around any text, sealed as it must be."""
    fixed = header_module._FIXED.pack(
        b"fleece delta v1\n", version, code, 0, incompatible, 0, len(text)
    )
    return seal(Tag.HEADER, fixed + text, XXH3_128)


_UUID = "f1eece00-0000-4000-8000-000000000001"


def _good() -> dict[str, Any]:
    parent = ParentRef("00000001", "ab" * 16, 99)
    head = dataclasses.replace(header(99, 2, parent), identity=GuestIdentity(_UUID, "web"))
    return dict(header_module._to_json(head))


def test_a_header_round_trips() -> None:
    for head in (
        header(0),
        header(1 << 60, 7, ParentRef("0123456789", "00" * 16, 5), fan_out=256),
        header(1, guest="Gästé ✓ 日本", disk="a/b c", disks=("a/b c", "x")),
        dataclasses.replace(header(1), granularity=65536, producer={"qemu": "7.2.0"}, level=-5),
        dataclasses.replace(header(1), identity=GuestIdentity(None, "wéb")),
        dataclasses.replace(header(1), identity=GuestIdentity(_UUID, None)),
        dataclasses.replace(header(1), identity=GuestIdentity(_UUID, "web")),
    ):
        frame = header_module.pack(head)
        assert header_module.parse(frame, "test") == head
        assert header_module.frame_length(frame[:12], "test") == len(frame)


def test_the_headers_text_is_json_that_a_person_can_read() -> None:
    frame = header_module.pack(header(99, disk="wörld"))
    text = frame[frame.index(b"{") : frame.rindex(b"}") + 1].decode()
    assert json.loads(text)["disk"] == "wörld"
    assert '\n "disk": "wörld",\n' in text


def _with(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return change


_WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "no file id": lambda fields: fields.pop("file"),
    "a file id that is none": _with("file", value="../../etc/passwd"),
    "a chain id with a slash": _with("chain", value="../01234567"),
    "an id in capitals": _with("chain", value="0123ABCD"),
    "an id that is too short": _with("point", "id", value="0123"),
    "an id that is too long": _with("point", "id", value="0" * 41),
    "an id with a line end": _with("point", "id", value="01234567\n"),
    "a guest with a line end": _with("guest", value="a\nb"),
    "a guest with an escape": _with("guest", value="\x1b[2J"),
    "a guest with a lone surrogate": _with("guest", value="\ud800"),
    "a guest with a text direction": _with("guest", value="a\u202eb"),
    "a guest of no letters": _with("guest", value=""),
    "a guest that is too long": _with("guest", value="x" * 1025),
    "a guest that is a number": _with("guest", value=5),
    "a disk that is a list": _with("disk", value=["vda"]),
    "a disk that is not among the disks": _with("disks", value=["vdb"]),
    "no disks": _with("disks", value=[]),
    "disks that are a text": _with("disks", value="vda"),
    "too many disks": _with("disks", value=["vda"] * 4097),
    "a negative size": _with("size", value=-1),
    "a size past all bounds": _with("size", value=(1 << 60) + 1),
    "a size that is a fraction": _with("size", value=99.0),
    "a size that is true": _with("size", value=True),
    "a size that is a text": _with("size", value="99"),
    "a size that is infinite": _with("size", value=float("inf")),
    "a size of thousands of digits": _with("size", value=10**4000),
    "a negative sequence": _with("point", "sequence", value=-1),
    "a sequence past all bounds": _with("point", "sequence", value=(1 << 62) + 1),
    "a point that is nothing": _with("point", value=None),
    "a parent that is a text": _with("parent", value="00000001"),
    "an incremental without a parent": _with("parent", value=None),
    "a full with a parent": _with("mode", value="full"),
    "a mode that there is not": _with("mode", value="other"),
    "a parent's root of no hex": _with("parent", "root", value="zz" * 16),
    "a parent's root that is too short": _with("parent", "root", value="ab" * 15),
    "leaves that are too small": _with("leaf_size", value=512),
    "leaves that are too large": _with("leaf_size", value=1 << 21),
    "leaves of no power of two": _with("leaf_size", value=4097),
    "a fan-out of one": _with("fan_out", value=1),
    "a fan-out that is too large": _with("fan_out", value=512),
    "a fan-out of no power of two": _with("fan_out", value=3),
    "another hash than announced": _with("hash", value="md5"),
    "another compression": _with("compression", "name", value="lz4"),
    "a level past all bounds": _with("compression", "level", value=1 << 40),
    "a granularity of nothing": _with("granularity", value=0),
    "a producer that is a list": _with("producer", value=[]),
    "a producer with numbers": _with("producer", value={"qemu": 7}),
    "a producer with an escape": _with("producer", value={"\x1b": "x"}),
    "an identity that is a text": _with("identity", value="web"),
    "an identity of nothing": _with("identity", value={}),
    "an identity of nothing known": _with("identity", value={"serial": "1"}),
    "a UUID that is none": _with("identity", "uuid", value="web"),
    "a UUID without hyphens": _with("identity", "uuid", value=_UUID.replace("-", "")),
    "a UUID in capitals": _with("identity", "uuid", value=_UUID.upper()),
    "a UUID that is nothing": _with("identity", "uuid", value=None),
    "a guest's own name with an escape": _with("identity", "name", value="\x1b[2J"),
    "a guest's own name that is a number": _with("identity", "name", value=5),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_a_header_that_makes_no_sense_is_refused(wrong: str) -> None:
    fields = _good()
    header_module.parse(_framed(json.dumps(fields).encode()), "test")
    _WRONG[wrong](fields)
    with pytest.raises(DeltaError, match="is not valid"):
        header_module.parse(_framed(json.dumps(fields).encode()), "test")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{}",
        b'"\xff"',
        b"9" * 100_000,
        b"{} {}",
        b"NaN",
    ],
    ids=lambda text: repr(text[:10]),
)
def test_a_header_whose_text_is_no_header_is_refused(text: bytes) -> None:
    with pytest.raises(DeltaError, match="is not valid"):
        header_module.parse(_framed(text), "test")


def test_a_header_may_say_more_than_this_version_knows() -> None:
    fields = _good() | {"a later field": {"x": [1]}}
    assert header_module.parse(_framed(json.dumps(fields).encode()), "test").guest == "web"


@pytest.mark.parametrize("unknown", [{"version": 2}, {"code": 9}, {"incompatible": 1 << 31}])
def test_a_header_from_the_future_is_refused_with_a_hint(unknown: dict[str, int]) -> None:
    frame = _framed(json.dumps(_good()).encode(), **unknown)
    with pytest.raises(DeltaError, match="a newer fleece may read it"):
        header_module.parse(frame, "test")


def test_a_header_frame_that_is_too_long_is_not_even_read(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(_framed(b" " * (1 << 20)))
    with pytest.raises(DeltaError, match="not a fleece delta"):
        open_delta(tmp_path / "d")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.data())
def test_any_value_in_any_field_of_a_header_is_taken_or_refused(data: st.DataObject) -> None:
    fields = _good()
    where = data.draw(st.sampled_from(["", "point", "parent", "compression", "identity"]))
    inner = fields[where] if where else fields
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(_json)
    _taken_or_refused(lambda: header_module.parse(_framed(json.dumps(fields).encode()), "test"))


def _taken_or_refused(function: Callable[[], object]) -> None:
    """Run something on hostile bytes: a DeltaError is fine, any other exception is not."""
    with suppress(DeltaError):
        function()


# ---- hostile frames, sealed as they must be --------------------------------------------------

_u16 = st.sampled_from([0, 1, 2, 256, 65535])
_u32 = st.sampled_from([0, 1, 2, LEAF, (1 << 20) + 1, (1 << 32) - 1])
_u64 = st.sampled_from(
    [0, 1, 2, 3, LEAF, 2 * LEAF, 3 * LEAF, 1 << 20, 1 << 60, 1 << 63, _HUGE - LEAF + 1, _HUGE]
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.fleece"
    with path.open("wb") as sink:
        _sample_delta(sink)
    return path


@settings(max_examples=300)
@given(st.integers(0, 3), st.integers(0, 3), _u16, _u32, _u64, _u64, _u64, st.integers(0, 5))
def test_any_numbers_in_a_record_are_taken_within_the_disk_or_refused(
    kind: int, second: int, count: int, frame: int, seq: int, offset: int, length: int, leaves: int
) -> None:
    geometry = Geometry(3 * LEAF + 5, LEAF, 2)
    fixed = record._FIXED.pack(kind, second, count, frame, bytes(16), seq, offset, length)
    sealed = seal(Tag.RECORD, fixed + bytes(32 + 16 * leaves), XXH3_128)
    try:
        found = record.parse(sealed, geometry, "test")
    except DeltaError:
        return
    assert 0 < found.length <= geometry.size - found.offset
    assert found.frame_length <= (2 << 20)
    assert len(found.leaves) == (16 * -(-found.length // LEAF) if found.kind is Kind.DATA else 0)


_index_changes = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2), st.sampled_from(["offset", "length", "position"]), _u64),
        st.tuples(st.integers(0, 2), st.just("frame_length"), _u32),
        st.tuples(st.integers(0, 2), st.just("kind"), st.sampled_from([0, 1, 2, 7, _HUGE >> 32])),
    ),
    max_size=3,
)


@settings(max_examples=150)
@given(_index_changes, st.booleans(), st.sampled_from([1, 65536]))
def test_any_numbers_in_the_index_are_taken_or_refused(
    sample: Path, changes: list[tuple[int, str, int]], ordered: bool, page: int
) -> None:
    with open_delta(sample) as delta:
        true = delta.rows()
    rows = true.copy()
    for row, field, value in changes:
        rows[field][row] = value
    if ordered:
        rows.sort(order="offset")
    with _folder() as folder, _page_size(page):
        forged = folder / "d"
        forged.write_bytes(reassembled(sample, records_of(sample), rows))
        _taken_or_refused(lambda: _read(forged))
        if np.array_equal(rows, true):
            full_check([forged])
        else:
            _must_fail([forged], f"an index of {rows}")


def _read(path: Path) -> bytes:
    with OpenChain([path]) as chain:
        return read_back(chain)


_page_row = st.tuples(
    st.sampled_from([b"FTRE", b"FIDX", b"FREC", b"\0\0\0\0"]), _u32, *[_u64] * 5, st.just(bytes(16))
)


@settings(max_examples=200)
@given(st.lists(_page_row, max_size=3))
def test_any_numbers_in_the_directory_are_taken_or_refused(
    sample: Path, rows: list[tuple[Any, ...]]
) -> None:
    geometry = header(len(_SAMPLE)).geometry
    listed = seal(
        Tag.DIRECTORY, np.array(rows, directory_row(XXH3_128)).tobytes(), geometry.algorithm
    )
    with _folder() as folder:
        raw = sample.read_bytes()
        with open_delta(sample) as delta:
            old = delta.footer
        last = dataclasses.replace(old, directory_length=len(listed), directory_hash=listed[-16:])
        forged = folder / "d"
        forged.write_bytes(raw[: old.directory_position] + listed + footer.pack(last, XXH3_128))
        _taken_or_refused(lambda: _read(forged))
        with pytest.raises(DeltaError):
            full_check([forged])


@settings(max_examples=200)
@given(st.lists(_u64, min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_any_numbers_in_the_footer_are_taken_or_refused(
    sample: Path, numbers: list[int], changed: list[bool]
) -> None:
    names = (
        "directory_position",
        "directory_length",
        "records",
        "data_bytes",
        "zero_bytes",
        "frame_bytes",
    )
    with open_delta(sample) as delta:
        true = delta.footer
    chosen: dict[str, Any] = {
        name: number for name, number, change in zip(names, numbers, changed, strict=True) if change
    }
    false = dataclasses.replace(true, **chosen)
    raw = sample.read_bytes()[: -footer.size_of(XXH3_128)]
    with _folder() as folder:
        (folder / "d").write_bytes(raw + footer.pack(false, XXH3_128))
        if false == true:
            full_check([folder / "d"])
        else:
            with pytest.raises(DeltaError):
                full_check([folder / "d"])


@given(st.binary(max_size=50), st.sampled_from(list(Tag)), st.sampled_from(list(Tag)))
def test_a_frame_gives_its_body_only_whole_and_under_its_own_tag(
    body: bytes, tag: Tag, asked: Tag
) -> None:
    frame = seal(tag, body, XXH3_128)
    assert bytes(unseal(frame, tag, XXH3_128, "test")) == body
    if asked is not tag:
        with pytest.raises(DeltaError, match=f"no {asked.name} frame where one must be"):
            unseal(frame, asked, XXH3_128, "test")
    for length in range(len(frame)):
        with pytest.raises(DeltaError):
            unseal(frame[:length], tag, XXH3_128, "test")
    with pytest.raises(DeltaError, match="where one must be"):
        unseal(frame + b"x", tag, XXH3_128, "test")


@given(st.binary(max_size=200), st.sampled_from(list(Tag)))
def test_any_bytes_in_a_sealed_frame_are_taken_or_refused(body: bytes, tag: Tag) -> None:
    frame = seal(tag, body, XXH3_128)
    geometry = Geometry(3 * LEAF, LEAF, 2)
    page = pages.Page(Tag.TREE, 1, 1, 0, 0, 0, len(frame), frame[-16:])
    index = dataclasses.replace(page, tag=Tag.INDEX, level=0)
    for parse in (
        lambda: header_module.parse(frame, "test"),
        lambda: record.parse(frame, geometry, "test"),
        lambda: footer.parse(frame, XXH3_128, "test"),
        lambda: pages.parse_directory(frame, geometry, 9999, "test"),
        lambda: pages.parse_tree(frame, page, geometry, "test"),
        lambda: pages.parse_index(frame, index, geometry, "test"),
    ):
        _taken_or_refused(parse)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "a page that cannot be"),
        ({"length": MAX_PAGE + 1}, "a page that cannot be"),
        ({"position": 9999}, "a page that cannot be"),
        ({"position": _HUGE}, "a page that cannot be"),
        ({"level": 3}, "outside the disk"),
        ({"first": 5}, "outside the disk"),
        ({"last": 3 * LEAF}, "outside the disk"),
    ],
    ids=repr,
)
def test_a_page_of_impossible_measures_is_never_read(wrong: dict[str, Any], message: str) -> None:
    geometry = Geometry(3 * LEAF, LEAF, 2)
    page = pages.Page(Tag.TREE, 2, 1, 0, 0, 100, 500, bytes(16))
    assert pages.parse_directory(pages.pack_directory([page], geometry), geometry, 9999, "") == [
        page
    ]
    forged = pages.pack_directory([dataclasses.replace(page, **wrong)], geometry)
    with pytest.raises(DeltaError, match=message):
        pages.parse_directory(forged, geometry, 9999, "")


def _index_page(rows: list[tuple[int, ...]], **wrong: Any) -> pages.IndexRows:
    """The rows of an INDEX page, read back; `wrong` is what the directory says otherwise of it."""
    geometry = Geometry(3 * LEAF, LEAF, 2)
    ((frame, page),) = pages.index_pages([np.array(rows, INDEX_ROW)], geometry)
    return pages.parse_index(frame, dataclasses.replace(page, **wrong), geometry, "")


_ROW = (LEAF, LEAF, 500, 30, Kind.DATA)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((LEAF, 0, 500, 30, Kind.DATA), "out of bounds"),
        ((LEAF, LEAF, 500, MAX_FRAME + 1, Kind.DATA), "out of bounds"),
        ((LEAF, LEAF, 500, 30, 3), "out of bounds"),
        ((0, MAX_RECORD + LEAF, 500, 30, Kind.DATA), "out of bounds"),
        ((LEAF, 2 * LEAF + 1, 500, 0, Kind.ZERO), "outside the disk"),
        ((_HUGE, LEAF, 500, 0, Kind.ZERO), "outside the disk"),
        ((LEAF, _HUGE, 500, 0, Kind.ZERO), "outside the disk"),
    ],
)
def test_an_index_row_of_impossible_measures_is_refused(row: tuple[int, ...], message: str) -> None:
    assert _index_page([_ROW]).tolist() == [_ROW]
    with pytest.raises(DeltaError, match=message):
        _index_page([row])


def test_an_index_page_must_be_the_one_that_the_directory_lists() -> None:
    with pytest.raises(DeltaError, match="does not match the directory"):
        _index_page([_ROW], hash=bytes(16))
    with pytest.raises(DeltaError, match="not what the directory says"):
        _index_page([_ROW], count=2)
    for wrong in ({"first": 0}, {"last": 0}):
        with pytest.raises(DeltaError, match="out of order"):
            _index_page([_ROW], **wrong)
    with pytest.raises(DeltaError, match="out of order"):
        _index_page([_ROW, (0, LEAF, 900, 30, Kind.DATA)])
    with pytest.raises(DeltaError, match="out of order"):
        _index_page([_ROW, _ROW])


def test_a_directory_that_is_too_large_is_never_read(sample: Path) -> None:
    with open_delta(sample) as delta:
        last = dataclasses.replace(delta.footer, directory_length=MAX_DIRECTORY + 1)
    with pytest.raises(DeltaError, match="larger than any can be"):
        footer.parse(footer.pack(last, XXH3_128), XXH3_128, "test")


def _unpacked(sample: Path, frame: bytes) -> bytes:
    """What the reader makes of a zstd frame for a record of a leaf of the letter a."""
    with open_delta(sample) as delta:
        found = record.Record(
            Kind.DATA,
            delta.header.file_id,
            0,
            LEAF,
            LEAF,
            len(frame),
            delta.footer.header_hash,
            XXH3_128.digest(frame),
            naive_levels(b"a" * LEAF, 2)[0][0],
        )
        return delta.unpack(found, frame, zstandard.ZstdDecompressor())


@pytest.mark.parametrize("said", [True, False], ids=["size announced", "size not announced"])
def test_a_bomb_in_a_record_is_not_unpacked(said: bool, sample: Path) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=said).compress(bytes(64 << 20))
    with pytest.raises(DeltaError, match="announces the wrong size"):
        _unpacked(sample, bomb)


_RIGHT = zstandard.ZstdCompressor(write_checksum=True).compress(b"a" * LEAF)


@pytest.mark.parametrize(
    "frame",
    [b"", b"garbage", _RIGHT[:-1], _RIGHT[:8], _RIGHT + b"x", _RIGHT + _RIGHT, b"a" * LEAF],
    ids=["nothing", "garbage", "cut", "cut short", "more", "twice", "not compressed"],
)
def test_what_is_not_exactly_one_zstd_frame_is_not_unpacked(frame: bytes, sample: Path) -> None:
    assert _unpacked(sample, _RIGHT) == b"a" * LEAF
    with pytest.raises(DeltaError, match=r"compressed data .* \(disk vda, byte 4096\)"):
        _unpacked(sample, frame)


@pytest.mark.parametrize("page", [1, 65536], ids=["across pages", "within a page"])
def test_an_index_whose_ranges_overlap_is_refused(page: int, sample: Path, tmp_path: Path) -> None:
    with open_delta(sample) as delta:
        rows = delta.rows().copy()
    rows["length"][0] += LEAF
    with _page_size(page):
        (tmp_path / "d").write_bytes(reassembled(sample, records_of(sample), rows))
        with open_delta(tmp_path / "d") as delta, pytest.raises(DeltaError, match="overlap"):
            delta.rows()


# ---- harm ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """A chain of two deltas of a disk of two leaves and a tail, with data and zeros in both."""
    history = History(
        2 * LEAF + 100,
        2,
        (
            (Change(0, 5, 1), Change(2 * LEAF, 2 * LEAF + 100, 2)),
            (Change(LEAF, 2 * LEAF, 3), Change(2 * LEAF, 2 * LEAF + 100, 0)),
        ),
    )
    stored = store_history(tmp_path_factory.mktemp("small"), history, longest=1)
    for item in stored:
        with open_delta(item.path) as delta:
            assert set(delta.rows()["kind"].tolist()) == {Kind.DATA, Kind.ZERO}
    full_check([stored[1].path, stored[0].path])
    return stored


def _must_fail(paths: list[Path], what: str) -> None:
    try:
        check_newest(paths)
    except DeltaError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: {error!r} is no DeltaError") from error
    raise AssertionError(f"{what}: the check passed")


@pytest.mark.parametrize("number", [0, 1], ids=["the full", "the child"])
@pytest.mark.parametrize("flip", [0xFF, None], ids=["all bits", "one bit"])
def test_a_flip_in_any_byte_of_a_chain_is_found(
    small: list[Stored], number: int, flip: int | None, tmp_path: Path
) -> None:
    raw = small[number].path.read_bytes()
    harmed = tmp_path / "harmed"
    harmed.write_bytes(raw)
    paths = [harmed] if number == 0 else [harmed, small[0].path]
    with harmed.open("r+b", buffering=0) as file:
        for at, byte in enumerate(raw):
            os.pwrite(file.fileno(), bytes([byte ^ (flip or 1 << at % 8)]), at)
            _must_fail(paths, f"byte {at} flipped")
            os.pwrite(file.fileno(), bytes([byte]), at)
    full_check(paths)


@pytest.mark.parametrize("number", [0, 1], ids=["the full", "the child"])
def test_a_cut_at_any_length_is_found(small: list[Stored], number: int, tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    harmed.write_bytes(small[number].path.read_bytes())
    paths = [harmed] if number == 0 else [harmed, small[0].path]
    for length in range(harmed.stat().st_size - 1, -1, -1):
        os.truncate(harmed, length)
        _must_fail(paths, f"cut to {length} bytes")


def test_the_parents_harm_is_found_when_the_child_is_checked(
    small: list[Stored], tmp_path: Path
) -> None:
    raw = bytearray(small[0].path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    (tmp_path / "full").write_bytes(raw)
    with pytest.raises(DeltaError):
        full_check([small[1].path, tmp_path / "full"])


def test_the_two_files_of_a_chain_cannot_take_each_others_place(small: list[Stored]) -> None:
    _must_fail([small[0].path, small[1].path], "parent and child exchanged")
    _must_fail([small[1].path], "only the child")
    _must_fail([small[1].path, small[1].path], "twice the child")
    _must_fail([small[0].path, small[0].path], "twice the full")


def _tampered(records: list[bytes], foreign: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Every way to move whole records about, each of them still intact."""
    count = range(len(records))
    for a, b in itertools.combinations(count, 2):
        swapped = list(records)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield f"records {a} and {b} swapped", swapped
    for a in count:
        yield f"record {a} dropped", records[:a] + records[a + 1 :]
        for b in range(len(records) + 1):
            yield f"record {a} doubled at {b}", [*records[:b], records[a], *records[b:]]
        for n, other in enumerate(foreign):
            yield f"{n} spliced over {a}", [*records[:a], other, *records[a + 1 :]]
            yield f"{n} spliced in at {a}", [*records[:a], other, *records[a:]]
    yield "no records", []
    yield "all records foreign", foreign


@pytest.mark.parametrize("number", [0, 1], ids=["the full", "the child"])
@pytest.mark.parametrize("consistent", [False, True], ids=["as it is", "index and footer forged"])
def test_records_that_were_moved_dropped_doubled_or_spliced_in_are_found(
    small: list[Stored], number: int, consistent: bool, tmp_path: Path
) -> None:
    """Even if index, directory and footer were made again to fit: records know their place."""
    path = small[number].path
    own, foreign = records_of(path), records_of(small[1 - number].path)
    assert len(own) >= 2
    raw = path.read_bytes()
    start = raw.index(own[0])
    end = start + sum(map(len, own))
    harmed = tmp_path / "harmed"
    paths = [harmed] if number == 0 else [harmed, small[0].path]
    harmed.write_bytes(reassembled(path, own))
    full_check(paths)
    for what, records in _tampered(own, foreign):
        if consistent:
            harmed.write_bytes(reassembled(path, records))
        else:
            harmed.write_bytes(raw[:start] + b"".join(records) + raw[end:])
        _must_fail(paths, what)


def test_a_last_record_that_was_forged_whole_is_found_by_the_root(
    small: list[Stored], tmp_path: Path
) -> None:
    """Own hash, place in the line, index and footer all fit; the zeros have become data."""
    path, geometry = small[0].path, small[0].head.geometry
    own = records_of(path)
    old = record.parse(own[-1], geometry, path)
    assert (old.kind, old.offset, old.length) == (Kind.ZERO, LEAF, LEAF)
    data = bytes([9]) * LEAF
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    forged = old._replace(
        kind=Kind.DATA,
        frame_length=len(frame),
        frame_hash=XXH3_128.digest(frame),
        leaves=naive_levels(data, 2)[0][0],
    )
    harmed = tmp_path / "harmed"
    harmed.write_bytes(reassembled(path, [*own[:-1], record.pack(forged, geometry) + frame]))
    subprocess.run(["zstd", "-q", "-t", "--", harmed], check=True)
    with pytest.raises(DeltaError, match="the root is not what the records"):
        full_check([harmed])


def _split(both: bytes) -> tuple[bytes, bytes]:
    """A record's own frame, and the zstd frame that follows it."""
    size = 8 + int.from_bytes(both[4:8], "little")
    return both[:size], both[size:]


def _chained(records: list[bytes], first: bytes, geometry: Geometry) -> list[bytes]:
    """Records whose hashes of the record before are made to fit, from the header's hash on."""
    made: list[bytes] = []
    previous = first
    for both in records:
        own, frame = _split(both)
        found = record.parse(own, geometry, "test")._replace(previous=previous)
        own = record.pack(found, geometry)
        previous = own[-16:]
        made.append(own + frame)
    return made


def test_data_that_its_own_leaf_hashes_do_not_fit_is_found(
    small: list[Stored], tmp_path: Path
) -> None:
    """What a compressor that corrupts would write: every hash of the file holds, the data not."""
    path, geometry = small[0].path, small[0].head.geometry
    own = records_of(path)
    old = record.parse(_split(own[0])[0], geometry, path)
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(bytes([9]) * old.length)
    forged = old._replace(frame_length=len(frame), frame_hash=XXH3_128.digest(frame))
    records = _chained([record.pack(forged, geometry) + frame, *own[1:]], old.previous, geometry)
    harmed = tmp_path / "harmed"
    harmed.write_bytes(reassembled(path, records))
    for read in (lambda: full_check([harmed]), lambda: _read(harmed)):
        with pytest.raises(DeltaError, match="data does not match its leaf hashes"):
            read()


def test_an_index_that_points_to_another_record_is_refused_by_every_reader(
    sample: Path, tmp_path: Path
) -> None:
    with open_delta(sample) as delta:
        rows = delta.rows().copy()
    data = np.flatnonzero(rows["kind"] == Kind.DATA)[:2]
    for field in ("position", "frame_length"):
        rows[field][data] = rows[field][data[::-1]]
    harmed = tmp_path / "harmed"
    harmed.write_bytes(reassembled(sample, records_of(sample), rows))
    with pytest.raises(DeltaError, match="a record is not what the index says"):
        _read(harmed)


def _lied(tree: tuple[Level, ...]) -> Iterator[tuple[Level, ...]]:
    """Trees that are not what the records give."""
    first = tree[0]
    children = first.children.copy()
    children[0, 0, 0] ^= 1
    yield (dataclasses.replace(first, children=children), *tree[1:])
    yield (dataclasses.replace(first, nodes=first.nodes[:1], children=children[:1]), *tree[1:])
    yield tree[1:]
    yield tree[:-1]
    yield ()


def test_a_tree_that_lies_is_found(small: list[Stored], tmp_path: Path) -> None:
    """Its pages, directory and footer sealed as they must be; the next backup would build on it."""
    harmed = tmp_path / "harmed"
    path, own = small[0].path, records_of(small[0].path)
    with open_delta(path) as delta:
        tree = tuple(delta.tree_page(page) for page in delta.pages if page.tag is Tag.TREE)
    harmed.write_bytes(reassembled(path, own, levels=tree))
    full_check([harmed])
    for lie in _lied(tree):
        harmed.write_bytes(reassembled(path, own, levels=lie))
        with pytest.raises(DeltaError, match="the tree"):
            full_check([harmed])


@pytest.mark.parametrize("padding", [(b"evil", b""), (b"", b"evil")])
def test_bytes_hidden_between_pages_and_directory_are_found(
    padding: tuple[bytes, bytes], small: list[Stored], tmp_path: Path
) -> None:
    harmed = tmp_path / "harmed"
    harmed.write_bytes(reassembled(small[0].path, records_of(small[0].path), padding=padding))
    with pytest.raises(DeltaError, match="bytes"):
        full_check([harmed])


@pytest.mark.parametrize(
    ("hidden", "message"),
    [(b"evil", "cut inside a RECORD frame"), (b"evil" * 10, "no RECORD frame where one must be")],
)
def test_bytes_hidden_between_records_and_pages_are_found(
    hidden: bytes, message: str, tmp_path: Path
) -> None:
    """A disk of one leaf has no tree pages, so its only page follows the records."""
    (item,) = store_history(tmp_path, History(LEAF, 2, ((Change(0, 1, 1),),)))
    harmed = tmp_path / "harmed"
    harmed.write_bytes(reassembled(item.path, records_of(item.path), padding=(hidden, b"")))
    with pytest.raises(DeltaError, match=message):
        full_check([harmed])


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"file_id": header(1, 77).file_id}, "of different files"),
        ({"header_hash": bytes(16)}, "of different files"),
        ({"root": bytes(16)}, "root does not follow"),
        ({"top": bytes(16)}, "root does not follow"),
        ({"directory_hash": bytes(16)}, "directory does not match the footer"),
        ({"last_record": bytes(16)}, "records do not end where they must"),
        ({"records": 9}, "index is not what the records say"),
        ({"data_bytes": 9}, "counts are not what the records say"),
    ],
)
def test_a_footer_that_lies_is_found(
    lie: dict[str, Any], message: str, small: list[Stored], tmp_path: Path
) -> None:
    harmed = tmp_path / "harmed"
    harmed.write_bytes(reassembled(small[0].path, records_of(small[0].path), **lie))
    with pytest.raises(DeltaError, match=message):
        full_check([harmed])


def test_a_frame_of_nobodys_among_the_records_is_found(small: list[Stored], tmp_path: Path) -> None:
    """`zstd -t` passes over it; the walk does not."""
    path = small[0].path
    own = records_of(path)
    stranger = bytes.fromhex("502a4d1804000000") + b"evil"
    raw = path.read_bytes()
    start = raw.index(own[0])
    harmed = tmp_path / "harmed"
    for at in (start, start + len(own[0]), start + sum(map(len, own))):
        harmed.write_bytes(raw[:at] + stranger + raw[at:])
        subprocess.run(["zstd", "-q", "-t", "--", harmed], check=True)
        _must_fail([harmed], f"a foreign frame at {at}")


# ---- identity --------------------------------------------------------------------------------


def test_deltas_of_the_same_disk_at_the_same_point_are_bound_to_their_file(
    tmp_path: Path,
) -> None:
    head = header(len(_SAMPLE))
    twin: Header = dataclasses.replace(head, file_id=header(1, 99).file_id)
    for name, this in (("a", head), ("b", twin)):
        with (tmp_path / name).open("wb") as sink:
            blank = BlankDisk(this.geometry)
            write_delta(sink, this, blank, _SAMPLE, Extents.whole(len(_SAMPLE)))
    mixed = reassembled(
        tmp_path / "a", [*records_of(tmp_path / "a")[:-1], records_of(tmp_path / "b")[-1]]
    )
    (tmp_path / "mixed").write_bytes(mixed)
    with pytest.raises(DeltaError, match="of another file"):
        full_check([tmp_path / "mixed"])


def test_a_points_time_orders_nothing_and_may_be_any_text(tmp_path: Path) -> None:
    head = dataclasses.replace(header(1), point=PointRef("0" * 8, 0, "yesterday"))
    with (tmp_path / "d").open("wb") as sink:
        write_delta(sink, head, BlankDisk(head.geometry), b"x", Extents.whole(1))
    full_check([tmp_path / "d"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"guest": ""},
        {"disk": "a\nb"},
        {"guest": "x" * 1025},
        {"disks": tuple(f"{number:01000}" for number in range(2000))},
    ],
    ids=["empty", "not printable", "long", "too much"],
)
def test_a_header_that_no_reader_takes_is_not_written(wrong: dict[str, Any]) -> None:
    head = dataclasses.replace(header(4 * LEAF), **wrong)
    if "disk" in wrong or "disks" in wrong:
        head = dataclasses.replace(head, disks=(head.disk, *head.disks))
    with pytest.raises(UsageError, match="the header is not valid"):
        header_module.pack(head)
