"""Restore of a disk what can be proven, when deltas are damaged or missing; list the rest."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.pagecache import page_cache
from fleece.disk.base import WritableDisk
from fleece.disk.image import ImageFormat
from fleece.engine.restore.existing_target import stands
from fleece.engine.restore.options import RestoreOptions
from fleece.engine.restore.proof import Leaves, Proof, Source, prove
from fleece.engine.restore.salvage import LostExtent, lost_extents, survey, warn_of_unreadable
from fleece.engine.work.new_file import Manner, open_target
from fleece.engine.work.pool import Counter, run_workers
from fleece.engine.work.scan import disk_root
from fleece.errors import UsageError, VerifyError
from fleece.extents import Extents
from fleece.store.damaged_line import Line, Remains, line_of, opened
from fleece.store.store import Store
from fleece.tree import Geometry


@dataclass(frozen=True)
class PartialResult:
    """A disk, restored as far as it is proven.

    Attributes:
        point, disk: what was restored.
        target: where it is now.
        size: in bytes.
        root: of the target as it was read back.
        point_root: that the disk had at the point; None: nothing left says it.
        written_bytes: bytes of disk that held data and were written.
        deltas: how many files it was restored from.
        lost: the parts that could not be proven. The target has zeros there.
    """

    point: str
    disk: str
    target: str
    size: int
    root: str
    point_root: str | None
    written_bytes: int
    deltas: int
    lost: tuple[LostExtent, ...]

    @property
    def whole(self) -> bool:
        """Nothing is lost, and the point's root says so."""
        return not self.lost and self.root == self.point_root


def restore_partial(
    store: Store,
    point: str,
    disk: str,
    target: str,
    options: RestoreOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> PartialResult:
    """Restore what is proven of one disk of a point into a new image; zeros stand for the rest.

    Every file that the disk needs is read whole first. The target appears under its name only
    when it was read back and found to hold exactly what was proven.

    Args:
        store: to read; its deltas may be damaged, cut, salvaged or missing.
        point: an id, a prefix of one, or `latest`: the newest point whose header can be read.
        disk: the disk's name.
        target: path of the image to make.
        options: how, but never in place.
        listener: hears `Progress`.
        cancel: stops it, leaving no target.

    Raises:
        StoreError: no header of this disk at this point is left.
        UsageError: the target is a block device or an NBD export, or it is to be in place.
        TargetError: the target exists, is in use, or cannot be written.
        VerifyError: the target does not hold what was written to it.
    """
    cancel = cancel or CancelToken()
    options = options or RestoreOptions()
    if options.in_place or stands(target):
        raise UsageError("a partial restore makes a new image", where=target)
    manner = Manner(options.force, options.mode, listener, cancel)
    wanted = options.target_format or ImageFormat.RAW
    catalogue = store.catalogue()
    line = line_of(catalogue, point, disk, options.guest)
    shape = line.header.geometry
    cache = page_cache(len(line.members) + len(line.others))
    with contextlib.ExitStack() as stack:

        def source(remains: Remains) -> Source:
            wreck = stack.enter_context(opened(catalogue, remains))
            wreck.cache = cache
            source = Source(wreck, survey(wreck, listener, cancel))
            warn_of_unreadable(wreck, listener)
            return source

        with open_target(target, wanted, shape.size, manner) as image:
            members = [source(remains) for remains in line.members]
            others = [source(remains) for remains in line.others]
            root = None if line.root is None else bytes.fromhex(line.root)
            proof = prove(members, others, root)
            written = _in_bytes(_joined(proof.leaves), shape).total
            counter = Counter(listener, events.Phase.RESTORE, disk, written)
            _write([*members, *others], proof.leaves, shape, image, counter, cancel)
            image.flush()
            found = disk_root(image, listener, cancel, shape, disk)
            if found != proof.root:
                raise VerifyError("the target does not hold what was written", where=image.where)
    return _result(line, target, proof, written, len(members) + len(others))


def _result(line: Line, target: str, proof: Proof, written: int, deltas: int) -> PartialResult:
    shape = line.header.geometry
    return PartialResult(
        point=line.header.point.id,
        disk=line.header.disk,
        target=target,
        size=shape.size,
        root=proof.root.hex(),
        point_root=line.root,
        written_bytes=written,
        deltas=deltas,
        lost=lost_extents(_in_bytes(proof.lost, shape), _in_bytes(proof.uncertain, shape)),
    )


def _in_bytes(leaves: Extents, shape: Geometry) -> Extents:
    size = shape.leaf_size
    return Extents.normal(leaves.start * size, np.minimum(leaves.end * size, shape.size))


def _joined(leaves: Leaves) -> Extents:
    return Extents.normal(leaves.number, leaves.number + 1)


@dataclass(frozen=True)
class _Piece:
    """One record, and the parts of the disk, in bytes, that are taken from it."""

    source: Source
    row: int
    parts: Extents


def _pieces(sources: list[Source], leaves: Leaves, shape: Geometry) -> Iterator[_Piece]:
    for owner, source in enumerate(sources):
        mine = leaves.number[leaves.owner == owner]
        starts = source.survey.rows["offset"].astype(np.int64)
        row = np.searchsorted(starts, mine * shape.leaf_size, side="right") - 1
        bounds = [*np.flatnonzero(np.diff(row, prepend=-1)).tolist(), len(mine)]
        for low, high in itertools.pairwise(bounds):
            wanted = mine[low:high]
            parts = _in_bytes(Extents.normal(wanted, wanted + 1), shape)
            yield _Piece(source, int(row[low]), parts)


def _write(
    sources: list[Source],
    leaves: Leaves,
    shape: Geometry,
    image: WritableDisk,
    counter: Counter,
    cancel: CancelToken,
) -> None:
    def work(pieces: Iterator[_Piece]) -> None:
        unpack = zstandard.ZstdDecompressor()
        with image.writer() as writer:
            for piece in pieces:
                wreck = piece.source.wreck
                row = piece.source.survey.rows[piece.row].tolist()
                record, frame = wreck.record_at(*row)
                data = memoryview(wreck.unpack(record, frame, unpack))
                for start, end in piece.parts:
                    # A source that was smaller has less of its last leaf: the rest is zeros.
                    writer.write(start, data[start - record.offset : end - record.offset])
                    counter.add(end - start)

    run_workers(_pieces(sources, leaves, shape), work, cancel)
