"""Write a point of a disk back, every chunk checked on the way, the root proven at the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain, ChainMap
from fleece.disk.base import WritableDisk
from fleece.disk.image import ImageFormat
from fleece.engine.pool import WORKERS, Counter, run_workers
from fleece.engine.root import disk_root
from fleece.engine.target import open_target
from fleece.errors import VerifyError
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
            write_chain(chain, picture, image, counter, cancel)
            image.flush()
            prove(image, chain, entry, listener, cancel)
    return RestoreResult(
        entry.header.point.id, disk, target, size, entry.root, total, len(chain.deltas)
    )


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
