"""What the tests of trees, deltas and stores share: small disks, naive models of them, their files.

The models here are written for their plainness and share no code with what they judge.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from hypothesis import strategies as st

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta import footer, pages, record
from fleece.delta.chain import Chain
from fleece.delta.check import Walk
from fleece.delta.header import Header, Mode, ParentRef, PointRef
from fleece.delta.layout import INDEX_ROW, Kind, Tag, own_hash
from fleece.delta.partial import Proven
from fleece.delta.protection import Protection
from fleece.delta.reader import DeltaReader
from fleece.delta.sink import Sink
from fleece.delta.writer import DeltaWriter, Summary
from fleece.engine.check.verify import check_delta
from fleece.engine.work.pool import Counter
from fleece.extents import Extents
from fleece.store.loose import open_delta
from fleece.tree import BlankDisk, Level, NodeSource

LEAF = 4096
"""The smallest leaf that the format allows, so that small disks have tall trees."""

CHAIN = "0123abcd"


# ---- the naive tree --------------------------------------------------------------------------


def naive_levels(disk: bytes, fan_out: int, leaf_size: int = LEAF) -> list[list[bytes]]:
    """The hashes of every node of every level of a disk's tree, leaves first, the top last."""
    zero = xxhash.xxh3_128_digest(bytes(leaf_size))
    leaves = [disk[at : at + leaf_size] for at in range(0, len(disk), leaf_size)]
    hashes = [xxhash.xxh3_128_digest(leaf.ljust(leaf_size, b"\0")) for leaf in leaves]
    levels = [hashes or [zero]]
    while len(levels[-1]) > 1:
        tag = b"fleece-node" + bytes([len(levels)])
        padded = levels[-1] + [zero] * (-len(levels[-1]) % fan_out)
        groups = [padded[at : at + fan_out] for at in range(0, len(padded), fan_out)]
        levels.append([xxhash.xxh3_128_digest(tag + b"".join(group)) for group in groups])
        zero = xxhash.xxh3_128_digest(tag + zero * fan_out)
    return levels


def naive_root(disk: bytes, fan_out: int, leaf_size: int = LEAF) -> bytes:
    """The root of a disk, by nothing but its bytes and the words of the format."""
    top = naive_levels(disk, fan_out, leaf_size)[-1][0]
    shape = struct.pack("<IIQ", leaf_size, fan_out, len(disk))
    return xxhash.xxh3_128_digest(b"fleece-root" + b"xxh3-128".ljust(16, b"\0") + shape + top)


# ---- histories of a disk ---------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """The bytes `[start, end)` of the disk become `fill`; 0 makes zeros."""

    start: int
    end: int
    fill: int


@dataclass(frozen=True)
class History:
    """A blank disk and what was written on it, step by step; a delta is made after each step."""

    size: int
    fan_out: int
    steps: tuple[tuple[Change, ...], ...]


@st.composite
def histories(draw: st.DrawFn, most_leaves: int = 12, most_steps: int = 4) -> History:
    """Histories of disks of any size, from none and one byte up to trees of several levels."""
    size = draw(places(most_leaves * LEAF))
    where = places(size)
    fills = st.just(0) | st.integers(1, 255)
    change = st.builds(lambda a, b, fill: Change(min(a, b), max(a, b), fill), where, where, fills)
    step = st.lists(change, max_size=4).map(tuple)
    steps = draw(st.lists(step, min_size=1, max_size=most_steps))
    return History(size, draw(st.sampled_from([2, 16])), tuple(steps))


def places(end: int, unit: int = LEAF) -> st.SearchStrategy[int]:
    """Bytes from 0 to `end`, each unit as often as the others: at its start, next to it, anywhere.

    Hypothesis draws from a wide range of integers mostly small ones, from up to 128 all alike.
    """
    within = st.sampled_from([0, 1, unit - 1]) | st.integers(0, unit - 1)
    units = st.integers(0, end // unit).map(lambda number: number * unit)
    return st.builds(lambda start, more: min(start + more, end), units, within)


def applied(disk: bytes, step: Iterable[Change]) -> tuple[bytes, Extents]:
    """The disk after a step, and the whole leaves that the step touched."""
    after = bytearray(disk)
    for change in step:
        after[change.start : change.end] = bytes([change.fill]) * (change.end - change.start)
    touched = {
        leaf
        for change in step
        if change.end > change.start
        for leaf in range(change.start // LEAF, (change.end - 1) // LEAF + 1)
    }
    ranges = [(leaf * LEAF, min((leaf + 1) * LEAF, len(disk))) for leaf in touched]
    return bytes(after), Extents.of(ranges)


# ---- deltas ----------------------------------------------------------------------------------


def header(
    size: int,
    sequence: int = 1,
    parent: ParentRef | None = None,
    *,
    fan_out: int = 2,
    guest: str = "web",
    disk: str = "vda",
    disks: tuple[str, ...] | None = None,
) -> Header:
    """A header; the same arguments give the same header."""
    return Header(
        file_id=uuid.UUID(int=sequence),
        chain=CHAIN,
        guest=guest,
        disk=disk,
        size=size,
        point=PointRef(f"{sequence:010x}", sequence, "2024-01-01T00:00:00Z"),
        parent=parent,
        mode=Mode.FULL if parent is None else Mode.INCREMENTAL,
        disks=disks or (disk,),
        level=1,
        granularity=None,
        producer={},
        leaf_size=LEAF,
        fan_out=fan_out,
    )


def write_delta(
    sink: Sink,
    head: Header,
    base: NodeSource,
    disk: bytes,
    dirty: Extents,
    seed: int = 0,
    longest: int = 3,
    protection: Protection | None = None,
    proven: Proven | None = None,
) -> tuple[Summary, bytes]:
    """Write a delta of the dirty leaves in runs of 1 to `longest` leaves, in any order.

    Runs of zeros go out as zero records, mixed ones as data. Gives also the data of the data
    records, in the order of the file. What is `proven` is in the sink already.
    """
    if proven is not None:
        dirty = dirty.subtract(proven.extents())
    chance = random.Random(seed)
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    writer = DeltaWriter(sink, head, base, protection, proven)
    runs = []
    for start, end in dirty:
        while start < end:
            stop = min(start + chance.randint(1, longest) * LEAF, end)
            runs.append((start, stop))
            start = stop
    chance.shuffle(runs)
    stored = b""
    for start, end in runs:
        data = disk[start:end]
        if not any(data):
            writer.zero(start, end - start)
            continue
        leaves = b"".join(
            head.algorithm.digest(data[at : at + LEAF].ljust(LEAF, b"\0"))
            for at in range(0, len(data), LEAF)
        )
        writer.data(start, end - start, leaves, compressor.compress(data))
        stored += data
    return writer.finish(), stored


@dataclass(frozen=True)
class Stored:
    """One delta that was written, and what is true of it."""

    path: Path
    head: Header
    disk: bytes
    dirty: Extents
    data: bytes
    summary: Summary


def store_history(folder: Path, history: History, seed: int = 0, longest: int = 3) -> list[Stored]:
    """Write a delta for every step of a history, oldest first; the first one is a full."""
    disk = bytes(history.size)
    stored: list[Stored] = []
    for number, step in enumerate(history.steps, 1):
        disk, dirty = applied(disk, step)
        path = folder / f"{number}.fleece"
        parent = None
        if stored:
            last = stored[-1]
            parent = ParentRef(last.head.point.id, last.summary.root.hex(), history.size)
        else:
            dirty = Extents.whole(history.size)
        head = header(history.size, number, parent, fan_out=history.fan_out)
        with contextlib.ExitStack() as stack:
            base: NodeSource = BlankDisk(head.geometry)
            if stored:
                base = stack.enter_context(OpenChain([item.path for item in reversed(stored)]))
            sink = stack.enter_context(path.open("wb"))
            summary, data = write_delta(sink, head, base, disk, dirty, seed + number, longest)
        stored.append(Stored(path, head, disk, dirty, data, summary))
    return stored


# ---- disks that are cut and grown -------------------------------------------------------------

_SIZES = places(40 * LEAF)
_FILLS = st.sampled_from([b"\0", b"a", b"b"])
"""Few, so that leaves are often what they were."""


@st.composite
def resized_disks(draw: st.DrawFn) -> list[bytes]:
    """What a disk holds at points between which it is cut and grown."""
    found: list[bytes] = []
    for _ in range(draw(st.integers(2, 5))):
        size = draw(_SIZES)
        leaves = [draw(_FILLS) * LEAF for _ in range(-(-size // LEAF))]
        kept: bool = draw(st.booleans())
        old = found[-1] if found and kept else b"".join(leaves)
        found.append(old[:size].ljust(size, draw(_FILLS)))
    return found


def differing(old: bytes, new: bytes, covers_from: int) -> Extents:
    """What a rescan stores: the leaves whose hash is another, and what it must hold anyway."""
    padded = old.ljust(len(new) + LEAF, b"\0")
    changed = [
        (at, min(at + LEAF, len(new)))
        for at in range(0, len(new), LEAF)
        if at >= covers_from or new[at : at + LEAF].ljust(LEAF, b"\0") != padded[at : at + LEAF]
    ]
    return Extents.of(changed)


def store_states(folder: Path, disks: Sequence[bytes], fan_out: int) -> list[Stored]:
    """Write a delta for each state of a disk, oldest first: a full, then what differs."""
    stored: list[Stored] = []
    for number, disk in enumerate(disks, 1):
        parent, old = None, b""
        if stored:
            last = stored[-1]
            parent = ParentRef(last.head.point.id, last.summary.root.hex(), len(last.disk))
            old = last.disk
        head = header(len(disk), number, parent, fan_out=fan_out)
        path = folder / f"{number}.fleece"
        dirty = differing(old, disk, head.covers_from)
        with contextlib.ExitStack() as stack:
            base: NodeSource = BlankDisk(head.geometry)
            if stored:
                base = stack.enter_context(OpenChain([item.path for item in reversed(stored)]))
            sink = stack.enter_context(path.open("wb"))
            summary, data = write_delta(sink, head, base, disk, dirty, number)
        stored.append(Stored(path, head, disk, dirty, data, summary))
    return stored


class OpenChain:
    """The chain of some files, newest first, for as long as the context lasts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._readers: list[DeltaReader] = []

    def __enter__(self) -> Chain:
        try:
            for path in self._paths:
                self._readers.append(open_delta(path))
            return Chain(self._readers)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.close()


def full_check(paths: Sequence[Path]) -> None:
    """Check every delta of a chain to its last byte, the oldest first; `paths` newest first."""
    for at in range(len(paths) - 1, -1, -1):
        check_newest(paths[at:])


def check_newest(paths: Sequence[Path]) -> None:
    """Check the newest delta of a chain to its last byte, the older ones known to be sound."""
    counter = Counter(events.ignore, events.Phase.VERIFY, "test", 0)
    with OpenChain(paths) as chain:
        older = Chain(chain.deltas[1:]) if chain.deltas[1:] else None
        check_delta(chain.deltas[0], older, counter, CancelToken())


def read_back(chain: Chain) -> bytes:
    """The whole disk of a chain, by its map and its records."""
    disk = bytearray(b"\xee" * chain.geometry.size)
    picture = chain.map()
    context = zstandard.ZstdDecompressor()
    places = zip(picture.start.tolist(), picture.end.tolist(), picture.zero.tolist(), strict=True)
    for at, (start, end, zero) in enumerate(places):
        if zero:
            disk[start:end] = bytes(end - start)
            continue
        delta = chain.deltas[picture.owner[at]]
        found, frame = delta.record_at(*picture.records[at].tolist())
        data = delta.unpack(found, frame, context)
        disk[start:end] = data[start - found.offset : end - found.offset]
    return bytes(disk)


# ---- forgeries -------------------------------------------------------------------------------


def records_of(path: Path) -> list[bytes]:
    """The records of a delta with their zstd frames, in the order of the file."""
    raw = path.read_bytes()
    with open_delta(path) as delta:
        placed = list(Walk(delta))
    return [raw[item.position : item.frame_position + item.record.frame_length] for item in placed]


def reassembled(
    path: Path,
    records: Sequence[bytes],
    rows: pages.IndexRows | None = None,
    /,
    *,
    levels: tuple[Level, ...] | None = None,
    padding: tuple[bytes, bytes] = (b"", b""),
    **fields: Any,
) -> bytes:
    """A delta with other records, and pages, directory and footer made to fit them.

    Args:
        path: of the delta that all the rest is taken from.
        records: RECORD frames with their zstd frames.
        rows: of the index; None: those that the records give.
        levels: of the tree; None: as it is.
        padding: bytes to put before the last page, and before the directory.
        fields: of the footer, to be lied about.
    """
    raw = path.read_bytes()
    with open_delta(path) as delta:
        geometry, last, start = delta.geometry, delta.footer, delta.records_start
        tree = [page for page in delta.pages if page.tag is Tag.TREE]
    framed = [(raw[page.position : page.position + page.length], page) for page in tree]
    if levels is not None:
        framed = list(pages.tree_pages(levels, geometry))
    made = raw[:start]
    found: list[tuple[int, int, int, int, int]] = []
    own = last.header_hash
    for both in records:
        size = 8 + int.from_bytes(both[4:8], "little")
        said = record.parse(both[:size], geometry, path)
        found.append((said.offset, said.length, len(made), said.frame_length, said.kind))
        own = own_hash(both[:size], geometry.algorithm)
        made += both
    if rows is None:
        rows = np.sort(np.array(found, INDEX_ROW), order="offset")
    framed += pages.index_pages([rows], geometry)
    listed = []
    for number, (frame, page) in enumerate(framed, 1):
        made += padding[0] if number == len(framed) else b""
        listed.append(dataclasses.replace(page, position=len(made)))
        made += frame
    made += padding[1]
    directory = pages.pack_directory(listed, geometry)
    lengths = {kind: sum(row[1] for row in found if row[4] == kind) for kind in Kind}
    true: dict[str, Any] = {
        "directory_position": len(made),
        "directory_length": len(directory),
        "records": len(found),
        "data_bytes": lengths[Kind.DATA],
        "zero_bytes": lengths[Kind.ZERO],
        "frame_bytes": sum(row[3] for row in found),
        "last_record": own,
        "directory_hash": own_hash(directory, geometry.algorithm),
    }
    end = dataclasses.replace(last, **true | fields)
    return made + directory + footer.pack(end, geometry.algorithm)
