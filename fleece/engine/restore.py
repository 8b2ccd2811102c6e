"""Write a point of a disk back, every chunk checked on the way, the root proven at the end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap
from fleece.delta.check import Placed, Walk
from fleece.delta.layout import Kind, Tag
from fleece.delta.reader import DeltaReader
from fleece.disk.base import WritableDisk
from fleece.disk.image import ImageFormat
from fleece.engine.pool import WORKERS, Counter, run_workers
from fleece.engine.root import disk_root
from fleece.engine.target import open_target
from fleece.errors import DeltaError, VerifyError
from fleece.store.catalogue import Entry
from fleece.store.folder import FolderStore


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
    """One record, and the parts of it that are not covered by newer deltas."""

    owner: int
    row: int
    parts: tuple[tuple[int, int], ...]


def restore(
    store: FolderStore,
    point: str,
    disk: str,
    target: str,
    *,
    guest: str | None = None,
    target_format: ImageFormat = ImageFormat.RAW,
    force: bool = False,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> RestoreResult:
    """Restore one disk of a point into a new image.

    The target appears under its name only when it is whole, durable and proven by its root.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name.
        target: path of the image to make.
        guest: which guest, if `latest` could mean several.
        target_format: of the image.
        force: replace a target that exists.
        listener: hears `Progress`.
        cancel: stops it, leaving no target.

    Raises:
        StoreError: the point is not there, or the chain is damaged.
        TargetError: the target exists or cannot be written.
        VerifyError: the target does not have the point's root.
    """
    cancel = cancel or CancelToken()
    catalogue = store.catalogue()
    entry = catalogue.find(point, guest).disk(disk)
    with catalogue.chain(entry) as chain:
        picture = chain.map()
        size = chain.geometry.size
        with open_target(target, target_format, size, force=force) as image:
            total = picture.extents(zero=False).total
            counter = Counter(listener, events.Phase.RESTORE, disk, total)
            with _hinted():
                write_chain(chain, picture, image, counter, cancel)
                check_unread(chain, picture, cancel)
            image.flush()
            prove(image, chain, entry, listener, cancel)
    return RestoreResult(
        entry.header.point.id, disk, target, size, entry.root, total, len(chain.deltas)
    )


@contextlib.contextmanager
def _hinted() -> Iterator[None]:
    """Say what a user can do who needs the disk though a delta is damaged."""
    try:
        yield
    except DeltaError as error:
        error.hint = error.hint or "--partial restores what can still be proven"
        raise


def write_chain(
    chain: Chain, picture: ChainMap, image: WritableDisk, counter: Counter, cancel: CancelToken
) -> None:
    """Write all data of a chain to a blank image. Zeros are left: a blank image has them.

    Raises:
        DeltaError: a record is damaged.
    """

    def work(pieces: Iterator[_Piece]) -> None:
        unpack = zstandard.ZstdDecompressor()
        with image.writer() as writer:
            for piece in pieces:
                delta = chain.deltas[piece.owner]
                row = picture.rows[piece.owner][piece.row].tolist()
                record, frame = delta.record_at(*row)
                data = memoryview(delta.unpack(record, frame, unpack))
                for start, end in piece.parts:
                    writer.write(start, data[start - record.offset : end - record.offset])
                    counter.add(end - start)

    run_workers(_data_pieces(picture), work, cancel, WORKERS)


def check_unread(chain: Chain, picture: ChainMap, cancel: CancelToken) -> None:
    """Check all bytes of a chain's files that `write_chain` has no need of.

    These are the line of the records, zero records, data that newer deltas cover, and tree pages.
    The root proves the restored disk without them, but that a store rots should be known no later
    than when it is used.

    Raises:
        DeltaError: one is damaged.
    """

    def items() -> Iterator[tuple[DeltaReader, Placed]]:
        for owner, delta in enumerate(chain.deltas):
            rows = picture.rows[owner]
            unread = rows["kind"] == Kind.DATA
            unread[picture.row[picture.owner == owner]] = False
            wanted = set(rows["position"][unread].tolist())
            walk = Walk(delta, keep_leaves=False)
            yield from ((delta, placed) for placed in walk if placed.position in wanted)
            walk.check_layout()
            for page in delta.pages:
                if page.tag is Tag.TREE:
                    delta.tree_page(page)

    def work(shared: Iterator[tuple[DeltaReader, Placed]]) -> None:
        for delta, placed in shared:
            frame = delta.frame(Tag.DATA, placed.frame_position, placed.record.frame_length)
            delta.check_frame(placed.record, frame)

    run_workers(items(), work, cancel, WORKERS)


def _data_pieces(picture: ChainMap) -> Iterator[_Piece]:
    """The data records that are visible anywhere, each once, in the order of their files."""
    kept = np.flatnonzero(~picture.zero)
    order = kept[np.lexsort((picture.row[kept], picture.owner[kept]))]
    owner, row = picture.owner[order], picture.row[order]
    if len(order) == 0:
        return
    new = np.flatnonzero((owner[1:] != owner[:-1]) | (row[1:] != row[:-1])) + 1
    bounds = [0, *new.tolist(), len(order)]
    start, end = picture.start[order], picture.end[order]
    for low, high in itertools.pairwise(bounds):
        parts = tuple(zip(start[low:high].tolist(), end[low:high].tolist(), strict=True))
        yield _Piece(int(owner[low]), int(row[low]), parts)


def prove(
    image: WritableDisk,
    chain: Chain,
    entry: Entry,
    listener: events.Listener,
    cancel: CancelToken,
) -> None:
    """Read the image back and compare its root with the point's.

    Raises:
        VerifyError: they differ.
    """
    found = disk_root(image, listener, cancel, chain.geometry).hex()
    if found != entry.root:
        raise VerifyError(
            f"the restored image has root {found}, the point has {entry.root}", where=image.where
        )
