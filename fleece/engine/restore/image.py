"""Write a point of a disk back, every chunk checked on the way, the root proven at the end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap, steps
from fleece.delta.check import Placed, Walk
from fleece.delta.layout import Kind, Tag
from fleece.delta.reader import DeltaReader
from fleece.disk.base import ReadableDisk, WritableDisk
from fleece.disk.image import ImageFormat
from fleece.engine.check.verify import compare_image
from fleece.engine.restore.existing_target import is_block_device, open_standing, stands
from fleece.engine.restore.formatted_device import open_formatted
from fleece.engine.restore.options import RestoreOptions
from fleece.engine.work.new_file import Manner, open_target
from fleece.engine.work.pool import WORKERS, Counter, run_workers, spread
from fleece.engine.work.scan import disk_root
from fleece.errors import DeltaError, FleeceError, TargetError, UsageError, VerifyError
from fleece.extents import Extents, Int64Array
from fleece.nbd.uri import is_uri
from fleece.ordered import distinct, without
from fleece.store.catalogue import Entry
from fleece.store.store import Store

_SHORT = 256 * 1024
"""Bytes of disk of a record below which a worker takes it together with others."""


@dataclass(frozen=True)
class RestoreResult:
    """A restored disk, proven.

    Attributes:
        point, disk: what was restored.
        target: where it is now.
        size: in bytes.
        root: of the target as it was read back; the same as the point's.
        written_bytes: bytes of disk that held data and were written.
        deltas: how many were read.
    """

    point: str
    disk: str
    target: str
    size: int
    root: str
    written_bytes: int
    deltas: int


@dataclass(frozen=True)
class _Piece:
    """One record, by its index row, and the parts of it that are not covered by newer deltas."""

    owner: int
    row: tuple[int, int, int, int, int]
    parts: tuple[tuple[int, int], ...]


def restore(
    store: Store,
    point: str,
    disk: str,
    target: str,
    options: RestoreOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> RestoreResult:
    """Restore one disk of a point, and prove what was written by its root.

    A new image appears under its name only when it is whole, durable and proven. A block device,
    an NBD export, or an image that is restored in place, is neither one nor the other while it is
    written.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name, or that of a part of the machine.
        target: path of the image to make, or a block device, or an NBD URI.
        options: how.
        listener: hears `Progress`; `Warned` of what could not be kept of an image that is replaced.
        cancel: stops it; a new target is not left.

    Raises:
        UsageError: an option has no effect on this target.
        StoreError: the point is not there, or the chain is damaged.
        TargetError: the target exists, is in use, or cannot be written.
        VerifyError: the target does not have the point's root.
    """
    cancel = cancel or CancelToken()
    options = options or RestoreOptions()
    _refuse_idle(target, options)
    catalogue = store.catalogue()
    entry = catalogue.find(point, options.guest, disk, listener).delta(disk)
    if entry.header.part is not None and options.target_format is ImageFormat.QCOW2:
        raise UsageError("a part of the machine is a file, and no image: it is raw", where=target)
    standing = options.in_place or stands(target)
    if standing and not (options.in_place or options.force):
        raise TargetError(
            "exists already",
            where=target,
            hint="--force overwrites it, --in-place writes what differs",
        )
    with catalogue.chain(entry) as chain:
        size = chain.geometry.size
        opened, blank = _opened(chain, target, options, listener, cancel)
        with opened as image:
            wanted = None if blank else Extents.whole(size)
            if options.in_place:
                wanted = compare_image(chain, image, listener, cancel).differing
            with _told_if_half_done(target if standing else None):
                written = _write(chain, image, wanted, listener, cancel)
                prove(image, chain, entry, listener, cancel)
    return RestoreResult(
        entry.header.point.id, disk, target, size, entry.root, written, len(chain.deltas)
    )


@contextlib.contextmanager
def _told_if_half_done(standing: str | None) -> Iterator[None]:
    """Say what a failure leaves of a target that stands already; None: it is a new one."""
    try:
        yield
    except FleeceError as error:
        if standing is not None:
            told = f"{standing} may be written in part, and is not proven: run it again"
            error.hint = told if error.hint is None else f"{error.hint}; {told}"
        raise


def _refuse_idle(target: str, options: RestoreOptions) -> None:
    """Refuse options that have no effect on this target.

    Raises:
        UsageError: one has none.
    """
    if options.force and options.in_place:
        raise UsageError("--force and --in-place exclude each other; choose one", where=target)
    if options.mode is not None and (options.in_place or stands(target)):
        raise UsageError("--mode is for a new file; one that exists keeps its own", where=target)
    if options.target_format not in (None, ImageFormat.RAW) and is_uri(target):
        raise UsageError("an NBD export is raw: its bytes are the disk's", where=target)


def _opened(
    chain: Chain,
    target: str,
    options: RestoreOptions,
    listener: events.Listener,
    cancel: CancelToken,
) -> tuple[AbstractContextManager[WritableDisk], bool]:
    """The target, to be opened, and whether it is blank then."""
    size, wanted = chain.geometry.size, options.target_format or ImageFormat.RAW
    formatted = is_block_device(target) and wanted is ImageFormat.QCOW2
    if options.in_place or (stands(target) and not formatted):
        return open_standing(target, options.target_format, size, cancel), False
    manner = Manner(options.force, options.mode, listener, cancel)
    if wanted is ImageFormat.RAW:
        return open_target(target, wanted, size, manner), True
    held = Extents.joined([picture.extents(zero=False) for picture in chain.maps()])
    if formatted:
        return open_formatted(target, size, held, listener), True
    return open_target(target, wanted, size, manner, held), True


def _write(
    chain: Chain,
    image: WritableDisk,
    wanted: Extents | None,
    listener: events.Listener,
    cancel: CancelToken,
) -> int:
    """Write the wanted parts, or all of them to a blank image; gives the bytes of data."""

    def pictures() -> Iterator[ChainMap]:
        for picture in chain.maps():
            yield picture if wanted is None else picture.within(wanted)

    total = sum(picture.extents(zero=False).total for picture in pictures())
    counter = Counter(listener, events.Phase.RESTORE, chain.deltas[0].header.disk, total)
    with _hinted():
        if wanted is not None:
            write_zeros(pictures(), image, cancel)
        write_chain(chain, pictures(), image, counter, cancel)
        check_unread(chain, pictures(), cancel)
    image.flush()
    return total


@contextlib.contextmanager
def _hinted() -> Iterator[None]:
    """Say what a user can do who needs the disk though a delta is damaged."""
    try:
        yield
    except DeltaError as error:
        error.hint = error.hint or "--partial restores what can still be proven"
        raise


def write_zeros(pictures: Iterable[ChainMap], image: WritableDisk, cancel: CancelToken) -> None:
    """Make all that maps say is zeros read so, whatever was there."""
    with image.writer() as writer:
        for picture in pictures:
            for start, end in picture.extents(zero=True):
                cancel.check()
                writer.zero(start, end - start)


def write_chain(
    chain: Chain,
    pictures: Iterable[ChainMap],
    image: WritableDisk,
    counter: Counter,
    cancel: CancelToken,
) -> None:
    """Write all data that maps of a chain show. Zeros are left: a blank image has them.

    Raises:
        DeltaError: a record is damaged.
    """

    def work(batches: Iterator[list[_Piece]]) -> None:
        unpack = zstandard.ZstdDecompressor()
        with image.writer() as writer:
            for piece in itertools.chain.from_iterable(batches):
                delta = chain.deltas[piece.owner]
                record, frame = delta.record_at(*piece.row)
                data = memoryview(delta.unpack(record, frame, unpack))
                for start, end in piece.parts:
                    writer.write(start, data[start - record.offset : end - record.offset])
                    counter.add(end - start)

    batches = itertools.chain.from_iterable(_data_pieces(picture) for picture in pictures)
    run_workers(batches, work, cancel, WORKERS)


def check_unread(chain: Chain, pictures: Iterable[ChainMap], cancel: CancelToken) -> None:
    """Check all bytes of a chain's files that `write_chain` has no need of.

    These are the line of the records, zero records, data that newer deltas cover, and tree pages.
    The root proves the restored disk without them, but that a store rots should be known no later
    than when it is used.

    Args:
        chain: to check.
        pictures: its maps, or those of wanted parts of each.
        cancel: stops it.

    Raises:
        DeltaError: one is damaged.
    """
    unread = _unread(chain, pictures)

    def items() -> Iterator[tuple[DeltaReader, Placed]]:
        for delta, wanted in zip(chain.deltas, unread, strict=True):
            walk = Walk(delta, keep_leaves=False)
            for placed in walk:
                at = np.searchsorted(wanted, placed.position)
                if at < len(wanted) and wanted[at] == placed.position:
                    yield delta, placed
            walk.check_layout()
            for page in delta.pages:
                if page.tag is Tag.TREE:
                    delta.tree_page(page)

    def work(shared: Iterator[tuple[DeltaReader, Placed]]) -> None:
        for delta, placed in shared:
            frame = delta.frame(Tag.DATA, placed.frame_position, placed.record.frame_length)
            delta.check_frame(placed.record, frame)

    run_workers(items(), work, cancel, WORKERS)


def _unread(chain: Chain, pictures: Iterable[ChainMap]) -> list[Int64Array]:
    """Of each delta the positions of data records that are not visible in `chain.maps`."""
    found: list[list[Int64Array]] = [[np.empty(0, np.int64)] for _ in chain.deltas]
    largest = max(delta.header.size for delta in chain.deltas)
    for (low, high), picture in zip(steps(chain.deltas), pictures, strict=True):
        if high == chain.geometry.size:
            high = largest  # what was cut off since is in no map
        position = picture.records["position"]
        owned = picture.of_owners(len(chain.deltas))
        for owner, (delta, mine) in enumerate(zip(chain.deltas, owned, strict=True)):
            rows = delta.rows_within(low, high)
            data = rows["position"][rows["kind"] == Kind.DATA]
            seen = position[mine]
            found[owner].append(without(data, seen).astype(np.int64))
    return [distinct(np.concatenate(parts)) for parts in found]


def _data_pieces(picture: ChainMap) -> Iterator[list[_Piece]]:
    """The data records that are visible anywhere, each once, in batches for one worker each.

    They are in the order of their files, but short ones are spread among the long ones.
    """
    kept = np.flatnonzero(~picture.zero)
    order = kept[np.lexsort((picture.row[kept], picture.owner[kept]))]
    owner, row = picture.owner[order], picture.row[order]
    if len(order) == 0:
        return
    new = np.flatnonzero((owner[1:] != owner[:-1]) | (row[1:] != row[:-1])) + 1
    bounds = np.array([0, *new.tolist(), len(order)])
    start, end = picture.start[order], picture.end[order]

    def piece(number: int) -> _Piece:
        low, high = bounds[number : number + 2].tolist()
        parts = tuple(zip(start[low:high].tolist(), end[low:high].tolist(), strict=True))
        return _Piece(int(owner[low]), picture.rows[row[low]].tolist(), parts)

    length = picture.rows["length"][row[bounds[:-1]]]
    for batch in spread(length < _SHORT):
        yield [piece(number) for number in batch]


def prove(
    image: ReadableDisk,
    chain: Chain,
    entry: Entry,
    listener: events.Listener,
    cancel: CancelToken,
) -> None:
    """Read the image back and compare its root with the point's.

    Raises:
        VerifyError: they differ.
    """
    found = disk_root(image, listener, cancel, chain.geometry, entry.header.disk).hex()
    if found != entry.root:
        raise VerifyError(
            f"the restored image has root {found}, the point has {entry.root}", where=image.where
        )
