"""Verify: read every byte of a store's deltas, recompute every hash, prove an image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.check import Placed, Walk
from fleece.delta.layout import Kind, Tag
from fleece.delta.reader import DeltaReader
from fleece.delta.spool import SpoolError
from fleece.disk.base import ReadableDisk
from fleece.engine.work.pool import Counter, run_workers
from fleece.engine.work.scan import REGION_LEVEL, Region, region_top, regions, root_from
from fleece.errors import DeltaError, FleeceError, StoreError, VerifyError
from fleece.extents import Extents
from fleece.guests import GuestChoice, is_meant
from fleece.store import verified
from fleece.store.catalogue import Access, Catalogue, Entry, StoredPoint
from fleece.store.lines import OpenLines
from fleece.tree import BlankDisk, HashArray, NodeSource


@dataclass(frozen=True)
class VerifyResult:
    """What a verification found.

    Attributes:
        points: ids of the points that were asked for and are whole and proven.
        errors: one line for each thing that is wrong; empty: all is well.
        deltas: how many were read.
        read_bytes: bytes of files.
    """

    points: tuple[str, ...]
    errors: tuple[str, ...]
    deltas: int
    read_bytes: int


def verify_store(
    catalogue: Catalogue,
    points: Sequence[StoredPoint] | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
    *,
    guest: GuestChoice = None,
    record: bool = False,
) -> VerifyResult:
    """Read every byte of every delta that leads to some points, each once.

    Goes on after a failure, to find the others. The caller decides what errors mean.

    Args:
        catalogue: of the store.
        points: to prove. None: all there are; then files that are no whole deltas count as errors
            too, because nobody knows what they were.
        listener: hears `DeltaChecked`, `Problem` and `Progress`.
        cancel: stops it.
        guest: whose, if `points` does not say which.
        record: note beside each delta when it was verified, for `scrub` and `status`. Where that
            fails there is a warning.

    Raises:
        StoreError: the guest has no point.
    """
    damaged = catalogue.damaged if points is None else ()
    points = catalogue.named(guest) if points is None else points
    check = Checker(catalogue, listener, cancel or CancelToken())
    if record:
        check.noted = _Recorder(catalogue.access, listener).note
    check.announce(_data_bytes(catalogue, points))
    with contextlib.closing(check):
        good = [point.id for point in points if check.point(point)]
    for file in damaged:
        check.problem(file.error)
    return VerifyResult(tuple(good), tuple(check.errors), check.deltas, check.read_bytes)


def _data_bytes(catalogue: Catalogue, points: Sequence[StoredPoint]) -> int:
    """How much there is to read."""
    wanted: dict[str, int] = {}
    for point in points:
        for entry in point.deltas.values():
            with contextlib.suppress(StoreError):
                catalogue.check_line(entry)
                at: Entry | None = entry
                while at is not None and at.key not in wanted:
                    wanted[at.key] = at.data_bytes
                    at = catalogue.parent(at)
    return sum(wanted.values())


def problems_of(catalogue: Catalogue, guest: GuestChoice = None) -> Iterator[StoreError]:
    """What is wrong with a store, or with one guest's part, that shows without reading data.

    Args:
        catalogue: of the store.
        guest: whose. Nobody knows whose a damaged file is: it counts for each.
    """
    yield from (file.error for file in catalogue.damaged)
    for point in catalogue.points:
        if not is_meant(guest, point.guest):
            continue
        if point.missing:
            yield _incomplete(catalogue, point)
        for entry in point.deltas.values():
            try:
                catalogue.check_line(entry)
            except StoreError as error:
                yield error


def _incomplete(catalogue: Catalogue, point: StoredPoint) -> StoreError:
    return StoreError(
        f"point {point.id} is incomplete: no delta for {', '.join(point.missing)}",
        where=catalogue.where,
    )


class _Recorder:
    """Notes verifications of now, as far as the store can be written."""

    def __init__(self, access: Access, listener: events.Listener) -> None:
        self._access = access
        self._listener = listener
        self._time = datetime.now(UTC)
        self._works = True

    def note(self, key: str, stamp: str, sound: bool) -> None:
        """Note one; a warning tells of the first that cannot be noted."""
        if not self._works:
            return
        try:
            verified.note(self._access, key, stamp, verified.Verification(self._time, sound))
        except StoreError as error:
            self._works = False
            self._listener(
                events.Warned(f"the verification cannot be recorded in the store: {error}")
            )


def _forget(key: str, stamp: str, sound: bool) -> None:
    """Note nothing."""


class Checker:
    """Checks deltas, each at most once, and goes on after a failure. `close` it.

    Attributes:
        noted: is told what came of each delta, with its key and its stamp before it was read.
        errors: one line for each thing that is wrong.
        deltas, read_bytes: how many were sound, and their bytes of file.
    """

    def __init__(
        self, catalogue: Catalogue, listener: events.Listener, cancel: CancelToken
    ) -> None:
        self._catalogue = catalogue
        self._listener = listener
        self._cancel = cancel
        self._lines = OpenLines(catalogue)
        self._sound: dict[str, bool] = {}
        self._counter = Counter(listener, events.Phase.VERIFY, catalogue.where, 0)
        self.noted: Callable[[str, str, bool], None] = _forget
        self.errors: list[str] = []
        self.deltas = 0
        self.read_bytes = 0

    def close(self) -> None:
        """Close the deltas."""
        self._lines.close()

    def announce(self, total: int) -> None:
        """Say how many bytes of disk there are to read."""
        where = self._catalogue.where
        self._counter = Counter(self._listener, events.Phase.VERIFY, where, total)

    def problem(self, error: FleeceError) -> None:
        """Note one."""
        self.errors.append(str(error))
        self._listener(events.Problem(error.where or self._catalogue.where, error.what))

    def point(self, point: StoredPoint) -> bool:
        """Whether all disks and parts of a point are there and proven."""
        sound = [self._entry(entry) for _, entry in sorted(point.deltas.items())]
        if point.missing:
            self.problem(_incomplete(self._catalogue, point))
        return all(sound) and point.complete

    def delta(self, entry: Entry) -> None:
        """Check one delta alone; of what it builds on only the hashes that it needs."""
        try:
            self._catalogue.check_line(entry)
        except StoreError as error:
            self.problem(error)
            return
        self._delta(entry)

    def _entry(self, entry: Entry) -> bool:
        """Whether an entry and all that it builds on are sound, the oldest checked first."""
        try:
            self._catalogue.check_line(entry)
        except StoreError as error:
            self.problem(error)
            return False
        unchecked: list[Entry] = []
        at: Entry | None = entry
        while at is not None and at.key not in self._sound:
            unchecked.append(at)
            at = self._catalogue.parent(at)
        sound = at is None or self._sound[at.key]
        for part in reversed(unchecked):
            sound = self._delta(part) and sound
            self._sound[part.key] = sound
        return sound

    def _delta(self, entry: Entry) -> bool:
        stamp: str | None = None
        try:
            stamp = self._stamp(entry)
            parent = self._catalogue.parent(entry)
            older = None if parent is None else self._lines.chain(parent)
            # Opened now, although it may be open as another's parent: that may be an older file.
            with self._catalogue.open(entry) as delta:
                if older is not None:
                    older.on(delta)
                check_delta(delta, older, self._counter, self._cancel)
        except SpoolError:
            raise
        except StoreError as error:
            self._failed(entry, stamp, error)
            return False
        self.noted(entry.key, stamp, True)
        self.deltas += 1
        self.read_bytes += entry.stored_bytes
        head = entry.header
        self._listener(events.DeltaChecked(head.point.id, head.disk, entry.root))
        return True

    def _failed(
        self,
        entry: Entry,
        stamp: str | None,
        error: StoreError,
    ) -> None:
        """Tell of a failed check; note it only if this very file is to blame.

        A prune or a merge that runs meanwhile takes parents away, or replaces them; and the system
        may refuse to read what is sound, for lack of files or memory.
        """
        if not self._still_there(self._catalogue.line(entry)[1:]):
            text = "what it builds on was removed or replaced while it was verified, or is damaged"
            hint = "if a prune or a merge ran, verify again"
            self.problem(StoreError(f"{text} ({error.what})", where=entry.where, hint=hint))
            return
        self.problem(error)
        if not isinstance(error, DeltaError):
            return
        with contextlib.suppress(StoreError):
            if stamp is not None and self._stamp(entry) == stamp:
                self.noted(entry.key, stamp, False)

    def _stamp(self, entry: Entry) -> str:
        return self._catalogue.access.backend.stamp(entry.key)

    def _still_there(self, entries: Sequence[Entry]) -> bool:
        """Whether some deltas are still those that the catalogue was read from."""
        try:
            return all(self._catalogue.read_entry(entry.key) == entry for entry in entries)
        except StoreError:
            return False


def check_delta(
    delta: DeltaReader, parent: Chain | None, counter: Counter, cancel: CancelToken
) -> None:
    """Check one delta to its last byte.

    Args:
        delta: open.
        parent: the chain that it builds on, itself checked; None: it is a full.
        counter: counts bytes of disk.
        cancel: stops it.

    Raises:
        DeltaError: something is wrong with it.
    """
    delta.in_order()
    walk = Walk(delta)

    def work(placed: Iterator[Placed]) -> None:
        unpack = zstandard.ZstdDecompressor()
        for item in placed:
            if item.record.kind is Kind.DATA:
                frame = delta.frame(Tag.DATA, item.frame_position, item.record.frame_length)
                delta.check_frame(item.record, frame)
                delta.unpack(item.record, frame, unpack)
                counter.add(item.record.length)

    run_workers(walk, work, cancel)
    base: NodeSource = parent if parent is not None else BlankDisk(delta.geometry)
    walk.finish(base)


@dataclass(frozen=True)
class Comparison:
    """An image compared with a point.

    Attributes:
        differing: the parts of the disk, in whole leaves, whose hashes differ.
        root: of the image.
    """

    differing: Extents
    root: str


def compare_image(
    chain: Chain,
    image: ReadableDisk,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Compare every leaf of an image with a point of a disk, by hash.

    Raises:
        VerifyError: the image has another size. (A blank tail of up to 511 bytes is forgiven:
            QEMU rounds sizes up to sectors.)
    """
    shape = chain.geometry
    if not shape.size <= image.size < shape.size + 512:
        raise VerifyError(f"has {image.size} bytes, the point has {shape.size}", where=image.where)
    counter = Counter(listener, events.Phase.VERIFY, image.where, shape.size)
    stored = _region_tops(chain)
    found: list[Extents] = []

    def tops() -> Iterator[bytes]:
        read = regions(image, shape, counter, cancel or CancelToken())
        for number, region in enumerate(read):
            top = region_top(region, shape)
            if top != stored[number].tobytes():
                found.append(_differing(chain, region))
            yield top

    root = root_from(tops(), shape)
    return Comparison(Extents.joined(found), root.hex())


def _region_tops(chain: Chain) -> HashArray:
    """uint8[n, hash size]: of a chain's disk, what `region_top` gives for each region."""
    shape = chain.geometry
    if shape.height <= REGION_LEVEL:
        return np.frombuffer(chain.top, np.uint8).reshape(1, -1)
    span = shape.fan_out ** (REGION_LEVEL + 1)
    above = np.arange(-(-shape.leaves // span))
    return chain.children(REGION_LEVEL + 1, above).reshape(-1, shape.algorithm.size)


def _differing(chain: Chain, region: Region) -> Extents:
    """The parts of a region, in bytes of disk, whose leaves differ from the chain's."""
    shape = chain.geometry
    stored = chain.leaf_hashes(region.first, region.leaves)
    mine: HashArray = (
        shape.zero_hashes(0, region.leaves) if region.hashes is None else region.hashes
    )
    start = (np.flatnonzero(np.any(stored != mine, axis=1)) + region.first) * shape.leaf_size
    return Extents.normal(start, np.minimum(start + shape.leaf_size, shape.size))
