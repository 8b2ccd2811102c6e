"""Save what a damaged delta still proves into a new file."""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.layout import Kind
from fleece.delta.salvage import NOWHERE, Survey, Surveyor, extents_of, write_salvaged
from fleece.delta.wreck import Remnant, Wreck
from fleece.engine.work.new_file import Manner, NewFile, new_file, target_errors
from fleece.engine.work.pool import Counter, run_workers
from fleece.errors import DeltaError, TargetError, UsageError, VerifyError
from fleece.extents import Extents
from fleece.hashing import Buffer
from fleece.keys import Secret
from fleece.store.loose import open_records, open_wreck
from fleece.terminal import counted
from fleece.writeback import Writeback
from fleece.writing import taken


class Loss(enum.StrEnum):
    """Why a part of a disk is not restored or not saved."""

    LOST = "lost"
    """Its content is gone: it was in what is damaged or missing."""
    UNCERTAIN = "uncertain"
    """Nothing that is left tells whether its content is in what is damaged or missing."""


@dataclass(frozen=True)
class LostExtent:
    """A part of a disk, in bytes, that cannot be proven any more, and why."""

    offset: int
    length: int
    reason: Loss


@dataclass(frozen=True)
class SalvagedFile:
    """What a salvaged file says of itself.

    Attributes:
        path: of the file.
        guest, disk, point: what it is of.
        size: of the disk in bytes.
        root: of the disk at the point, hexadecimal; None: nothing was left that says it.
        records: how many were saved.
        data_bytes, zero_bytes: bytes of disk that are proven to be data and zeros.
        lost: the parts of the disk that the delta held, or may have held, and that are not saved.
    """

    path: str
    guest: str
    disk: str
    point: str
    size: int
    root: str | None
    records: int
    data_bytes: int
    zero_bytes: int
    lost: tuple[LostExtent, ...]


def salvage(
    path: str,
    target: str,
    *,
    secret: Secret | None = None,
    force: bool = False,
    mode: int | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> SalvagedFile:
    """Save all records of a damaged or cut delta that are proven into a new file.

    The new file appears under its name only when it is whole, read back and durable.

    Args:
        path: the damaged delta; it is only read.
        target: the file to make; protected as the damaged one is.
        secret: what it is protected by; None: nothing.
        force: replace a target that exists.
        mode: the new file's permissions; None: this user's alone, or those of what it replaces.
        listener: hears `Progress`.
        cancel: stops it, leaving no target.

    Raises:
        DeltaError: its header is damaged, or nothing in it is proven.
        TargetError: the target exists or cannot be written.
        UsageError: the target is the damaged file itself.
    """
    cancel = cancel or CancelToken()
    if os.path.exists(target) and os.path.exists(path) and os.path.samefile(path, target):
        raise UsageError("the new file must be another than the damaged one", where=target)
    manner = Manner(force, mode, listener)
    with open_wreck(path, secret) as wreck, new_file(target, manner) as file:
        found = survey(wreck, listener, cancel)
        if len(found.rows) == 0 and len(found.lost) + len(found.uncertain) > 0:
            raise DeltaError("nothing in it can be proven any more", where=path)
        _write(file, wreck, found, listener, cancel)
        warn_of_unreadable(wreck, listener)
        _read_back(file, secret, found, cancel)
        return _described(file.path, target, secret)


def describe(path: str, secret: Secret | None = None) -> SalvagedFile | None:
    """What a salvaged file says of itself; None: the file is an ordinary delta.

    Raises:
        DeltaError: its header or its index is damaged.
    """
    with open_records(path, secret) as file:
        if file.header.salvaged is None:
            return None
    return _described(path, path, secret)


def warn_of_unreadable(wreck: Wreck, listener: events.Listener) -> None:
    """Tell how much of a file could not be read, if anything: another try may read it."""
    gone = wreck.unreadable
    if len(gone):
        count, first = counted(gone.total, "byte"), int(gone.start[0])
        listener(
            events.Warned(
                f"{wreck.where}: {count} cannot be read, the first at byte {first}, and count as "
                f"damaged; a copy made with ddrescue may hold more of them"
            )
        )


def _described(path: str, name: str, secret: Secret | None) -> SalvagedFile:
    with open_wreck(path, secret) as wreck:
        rows, missing = wreck.index()
        if len(missing):
            raise DeltaError(
                "its index is damaged", where=path, hint="'fleece salvage' makes a new one"
            )
        if len(wreck.unreadable):
            raise DeltaError("cannot be read in full", where=path, hint="try again")
        head, root = wreck.header, wreck.root
        return SalvagedFile(
            path=name,
            guest=head.guest,
            disk=head.disk,
            point=head.point.id,
            size=head.size,
            root=None if root is None else root.hex(),
            records=int((rows["position"] != NOWHERE).sum()),
            data_bytes=extents_of(rows, Kind.DATA).total,
            zero_bytes=extents_of(rows, Kind.ZERO).total,
            lost=lost_extents(extents_of(rows, Kind.LOST), extents_of(rows, Kind.UNCERTAIN)),
        )


def lost_extents(lost: Extents, uncertain: Extents) -> tuple[LostExtent, ...]:
    """Both kinds of losses, by ascending offset."""
    both = [LostExtent(start, end - start, Loss.LOST) for start, end in lost]
    both += [LostExtent(start, end - start, Loss.UNCERTAIN) for start, end in uncertain]
    return tuple(sorted(both, key=lambda extent: extent.offset))


def survey(
    wreck: Wreck, listener: events.Listener = events.ignore, cancel: CancelToken | None = None
) -> Survey:
    """Find and prove every record of a file, whatever its state; every frame is decoded.

    Args:
        wreck: open.
        listener: hears `Progress`, in bytes of disk.
        cancel: stops it.
    """
    counter = Counter(listener, events.Phase.SALVAGE, wreck.where, wreck.header.size)
    surveyor = Surveyor(wreck)
    lock = threading.Lock()

    def work(remnants: Iterator[Remnant]) -> None:
        unpack = zstandard.ZstdDecompressor()
        for item in remnants:
            good = item.frame is not None
            if item.frame and item.record.kind is Kind.DATA:
                try:
                    wreck.unpack(item.record, item.frame, unpack)
                except DeltaError:
                    good = False
            with lock:
                if good:
                    surveyor.proven(item.record, item.position)
                else:
                    surveyor.broken(item.record)
            counter.add(item.record.length)

    cancel = cancel or CancelToken()
    run_workers(wreck.remnants(cancel.check), work, cancel)
    return surveyor.finish()


def _write(
    file: NewFile, wreck: Wreck, found: Survey, listener: events.Listener, cancel: CancelToken
) -> None:
    counter = Counter(listener, events.Phase.SALVAGE, file.where, found.held().total)

    def copied(length: int) -> None:
        cancel.check()
        counter.add(length)

    write_salvaged(_Sink(file), wreck, found, copied)


def _read_back(file: NewFile, secret: Secret | None, expected: Survey, cancel: CancelToken) -> None:
    with open_wreck(file.path, secret) as made:
        found = survey(made, cancel=cancel)
        if len(made.unreadable):
            raise TargetError("cannot be read back", where=file.where)
    same = found.held() == expected.held() and found.lost == expected.lost
    if not same or found.uncertain != expected.uncertain:
        raise VerifyError("what was written is not what is read back", where=file.where)


class _Sink:
    """A new file to write front to back."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._writeback = Writeback(file.descriptor)

    def write(self, data: Buffer) -> int:
        with target_errors(self._file.where):
            count = taken(os.write(self._file.descriptor, data))
            self._writeback.wrote(count)
            return count
