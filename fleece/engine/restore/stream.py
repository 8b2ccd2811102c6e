"""Restore a disk to a stream, front to back, and prove what went into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.sink import Sink
from fleece.disk.chain import ChainDisk
from fleece.engine.restore.image import RestoreResult, check_unread
from fleece.engine.work.pool import WORKERS, Counter
from fleece.engine.work.scan import REGION_LEVEL, Region, root_of
from fleece.errors import TargetError, VerifyError
from fleece.store.store import Store
from fleece.tree import Geometry, HashArray, LeafHasher, joined

_PIECE = 1 << 20
_AHEAD = 4 * WORKERS
"""Pieces that are decoded before they are written: bounds the memory."""


def restore_stream(
    store: Store,
    point: str,
    disk: str,
    sink: Sink,
    *,
    guest: str | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> RestoreResult:
    """Write all bytes of a disk of a point, zeros too, to a stream that is never seeked.

    The root of the very bytes that were written is the proof; the caller makes them durable. What
    the disk needs no byte of is checked afterwards, as `restore` does.

    Args:
        store: to read.
        point: an id, a prefix of one, or `latest`.
        disk: the disk's name, or that of a part of the machine.
        sink: where the bytes go.
        guest: which guest, if `latest` could mean several.
        listener: hears `Progress`.
        cancel: stops it.

    Raises:
        StoreError: the point is not there, or the chain is damaged.
        TargetError: the stream takes no more.
        VerifyError: what was written does not have the point's root.
    """
    cancel = cancel or CancelToken()
    catalogue = store.catalogue()
    entry = catalogue.find(point, guest, disk, listener).delta(disk)
    with catalogue.chain(entry) as chain:
        source, shape = ChainDisk(chain), chain.geometry
        counter = Counter(listener, events.Phase.RESTORE, disk, shape.size)
        poured = _Poured(shape, sink, counter)
        root = root_of(poured.regions(_pieces(source, shape, cancel)), shape).hex()
        if root != entry.root:
            raise VerifyError(f"what was written has root {root}, the point has {entry.root}")
        check_unread(chain, chain.maps(), cancel)
        return RestoreResult(
            entry.header.point.id, disk, "-", shape.size, root, shape.size, len(chain.deltas)
        )


def _bounds(shape: Geometry) -> Iterator[tuple[int, int]]:
    """Where the regions of a disk begin and end, in bytes."""
    span = shape.leaf_size * shape.fan_out**REGION_LEVEL
    for start in range(0, shape.size, span):
        yield start, min(start + span, shape.size)


def _pieces(source: ChainDisk, shape: Geometry, cancel: CancelToken) -> Iterator[bytearray]:
    """The disk's bytes in order, none across two regions, decoded ahead by several threads."""
    places = (
        (at, min(_PIECE, end - at))
        for start, end in _bounds(shape)
        for at in range(start, end, _PIECE)
    )
    with ThreadPoolExecutor(WORKERS, "fleece-pour") as pool:
        waiting: deque[Future[bytearray]] = deque()
        try:
            for at, length in places:
                cancel.check()
                waiting.append(pool.submit(source.read, at, length))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Poured:
    """Writes pieces and hashes what it wrote."""

    def __init__(self, shape: Geometry, sink: Sink, counter: Counter) -> None:
        self._shape = shape
        self._sink = sink
        self._counter = counter
        self._hasher = LeafHasher(shape)

    def regions(self, pieces: Iterator[bytearray]) -> Iterator[Region]:
        """The leaf hashes of all that was written, a region at a time."""
        for start, end in _bounds(self._shape):
            count = -(-(end - start) // self._shape.leaf_size)
            hashes = self._shape.zero_hashes(0, count).copy()
            place = start
            while place < end:
                piece = next(pieces)
                self._write(piece)
                self._hash(piece, place, hashes, start // self._shape.leaf_size)
                place += len(piece)
            yield Region(start // self._shape.leaf_size, hashes, count)

    def _hash(self, piece: bytearray, place: int, hashes: HashArray, first: int) -> None:
        runs = self._hasher.runs(place, piece)
        size = self._shape.leaf_size
        held = [(run.offset // size, run.hashes) for run in runs if run.hashes is not None]
        numbers, found = joined(held, self._shape.algorithm.size)
        hashes[numbers - first] = found

    def _write(self, piece: bytearray) -> None:
        view = memoryview(piece)
        while len(view):
            try:
                taken = self._sink.write(view)
            except OSError as error:
                raise TargetError(f"the output takes no more ({error.strerror})") from error
            if not taken:
                raise TargetError("the output takes no bytes; it must block until it can")
            view = view[taken:]
            self._counter.add(taken)
