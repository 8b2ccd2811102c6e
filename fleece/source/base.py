"""What the engine asks of a source: disks, a point of all of them, exports to read it by.

`Source` and `Point` are what every kind of source gives. What only some can do is a protocol of
its own: `Resumable`, `KeepsBitmaps`, `PushFeed`, `TellsMachine`, `HeldElsewhere`.
`fleece.testing.source` has a test for each sentence here; run it on a source of your own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from fleece.delta.identity import GuestIdentity
from fleece.delta.part import Part, PartKind
from fleece.extents import Extents


class Transport(enum.StrEnum):
    """How the bytes of a point come out of the source.

    `PULL`: the engine reads exports of the source's NBD server. `PUSH`: the source writes to an NBD
    server of the engine's.
    """

    PULL = "pull"
    PUSH = "push"


class TransportWish(enum.StrEnum):
    """What is wanted; auto pulls where that is safe, and else has the source push."""

    AUTO = "auto"
    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True)
class Chosen:
    """How a point comes out of its source.

    Attributes:
        transport: for all disks of the point, because they are of one moment.
        reason: why it is pushed; None: it is pulled.
        partial: what comes out is only what changed, as far as that is asked for. What is pushed
            always is.
    """

    transport: Transport
    reason: str | None = None
    partial: bool = False


class Disk(Protocol):
    """A disk of the guest, as its source shows it at one time."""

    @property
    def name(self) -> str:
        """Stable over restarts, unlike any other disk's of the guest."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def read_only(self) -> bool:
        """The guest cannot write it."""


class Inventory(Protocol):
    """What a source has, as it shows it at one time."""

    @property
    def disks(self) -> Sequence[Disk]:
        """All disks."""

    def choose(self, names: tuple[str, ...]) -> Sequence[Disk]:
        """The disks of these names, in this order, or all that are writable.

        Raises:
            UsageError: a name is given twice.
            PointError: there is no such disk, or it is read-only, or there is none at all; or two
                are called alike.
        """


@dataclass(frozen=True)
class Since:
    """What was written on a disk since a point is known.

    Attributes:
        parts: what its own source finds it by. They mean nothing to anybody else.
        changed: a guess of how much that is until now, in bytes of disk; 0 as well if nothing
            tells.
    """

    parts: tuple[str, ...]
    changed: int = 0


@dataclass(frozen=True)
class Unknown:
    """What was written since a point is not known, and why: one clause for the user."""

    reason: str


@dataclass(frozen=True)
class Wanted:
    """A disk of a point to take, and what is read of it. `since` None: all."""

    disk: Disk
    since: Since | None


@dataclass(frozen=True)
class Request:
    """A point to take.

    Attributes:
        chain_id: whose point it is: 8 hexadecimal digits.
        sequence: of the point in its chain.
        point: its id: 10 hexadecimal digits.
        wanted: its disks, all of them of one source.
        rotate: from this point on the source notes what is written, so that a later point can be
            read since this one. Without it what is noted stays as it is, and nothing can be
            committed.
        transport: pulled, the point has exports; to be pushed, it has `Point.push`.
    """

    chain_id: str
    sequence: int
    point: str
    wanted: Sequence[Wanted]
    rotate: bool = True
    transport: Transport = Transport.PULL


@dataclass(frozen=True)
class Removed:
    """One thing of an interrupted run that was taken down."""

    kind: str
    item: str


@dataclass(frozen=True)
class Export:
    """One disk of a point, ready to be read.

    Attributes:
        disk: its name.
        uri: NBD URI.
        size: in bytes.
        dirty_context: the meta context whose dirty ranges are what changed; None: read it all.
        granularity: of that bitmap, in bytes; None: it is not known.
        unit: no request to read may cross a multiple of so many bytes, and no zero status be
            believed: the server would show what the disk holds now. None: any request is right.
        also_dirty: more such meta contexts: what any of them calls dirty has changed.
        partial: only what is dirty is what the disk held; the rest must not be read.
        changed: what changed, in bytes of disk, where no context tells it; None: `dirty_context`
            says it.
    """

    disk: str
    uri: str
    size: int
    dirty_context: str | None
    granularity: int | None
    unit: int | None = None
    also_dirty: tuple[str, ...] = ()
    partial: bool = False
    changed: Extents | None = None


class PushFeed(Protocol):
    """Has a source push a point into an NBD server of the engine's.

    Attributes:
        rate: bytes per second that may be pushed together; None: any. Set it before the start.
        end_sink: ends the server at once. The source calls it before it takes the point down.
    """

    rate: int | None
    end_sink: Callable[[], None]

    @property
    def socket(self) -> Path:
        """Where the server must listen. The export of the nth disk is named `n`."""

    def dirty_bytes(self) -> Sequence[int | None]:
        """What will come of each disk, in bytes; None: all of it."""

    def start(self) -> None:
        """Start to push to the server, which must listen and be served already.

        Raises:
            PointError: the source refused it.
        """

    def done(self) -> bool:
        """Whether all has been pushed.

        Raises:
            PointError: it failed.
        """

    def check_received(self, number: int, received: Extents, size: int) -> None:
        """Check that what came of a disk is what had to come.

        Args:
            number: of the disk.
            received: whole leaves, each of which came once.
            size: of the disk, in bytes.

        Raises:
            PointError: it is not.
        """

    def end(self) -> None:
        """Let go of the server when all is done: the connections are closed in order."""


class Point(Protocol):
    """A point in time that lives until its context ends."""

    @property
    def exports(self) -> Sequence[Export]:
        """One for each disk asked for, in that order; none if it is pushed."""

    @property
    def push(self) -> PushFeed | None:
        """Has it pushed; None: it is pulled, from `exports`."""

    @property
    def granularity(self) -> int:
        """Bytes of disk that what changed is told by."""

    @property
    def frozen(self) -> bool:
        """The guest's file systems stood still when the point was taken."""

    @property
    def stuck(self) -> str | None:
        """Why the guest may still be frozen; None: it is not."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know of how the point was taken."""

    def check(self) -> None:
        """Raise `PointError` if the exports do not show the point in time any more."""

    def watch(self) -> None:
        """Raise `PointError` if the backup must be given up for the guest's sake. Cheap."""

    @property
    def reclaims(self) -> bool:
        """`reclaim` does something."""

    @property
    def scarce(self) -> bool:
        """There is so little room that much should be reclaimed soon."""

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Ranges of a disk, in bytes, are durable elsewhere or not needed: nobody reads them again.

        From any thread.
        """

    def close(self) -> None:
        """Take the exports down; the point is gone. Safe to repeat."""

    def committed(self, oldest: int | None = None) -> Sequence[str]:
        """The deltas are durable: forget what only older points needed.

        Args:
            oldest: sequence of the oldest point that another backup may build on; None: this one.

        Returns:
            What could not be forgotten yet, a line each.
        """


class Source(Protocol):
    """Where points of one guest are taken from."""

    @property
    def where(self) -> str:
        """Its place, for messages."""

    @property
    def doubts(self) -> Sequence[str]:
        """What the user should know of the source's surroundings, since `recover` looked."""

    def producer(self) -> Mapping[str, str]:
        """What made the points, by name and version, for the headers: {"qemu": "7.2.22"}."""

    def guest(self) -> str:
        """The guest's name in a store, if the user gives none.

        Raises:
            UsageError: nothing tells it: the user must.
        """

    def identity(self) -> GuestIdentity | None:
        """What tells the guest from others of its name; None: nothing does."""

    def inventory(self) -> Inventory:
        """What there is now."""

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence of a chain's points that the source still knows of; 0: none.

        Args:
            chain_id: of the chain.
            disks: that are looked at, of an inventory.
        """

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether all is known that was written on a disk since a point.

        Args:
            disk: of an inventory.
            chain_id: whose point it is.
            sequence, point: of the point that the store has.
            others: names of the chain's disks, to tell what became of one that was exchanged.
        """

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Decide how a point of some disks comes out.

        Raises:
            UsageError: it cannot come as this source was opened.
            PointError: it cannot come as it is wished.
        """

    def check_needs(self) -> None:
        """See that what a point needs of this host is there, before anything is changed.

        Raises:
            UsageError: something is missing; it says what to install.
        """

    def check_ready(self) -> None:
        """Check that a point can be taken now.

        Raises:
            SourceError: the guest is not here, or will not stay.
        """

    def release(self) -> Iterator[Removed]:
        """Let a guest go on that an interrupted run, of whatever chain, left stopped or frozen.

        Raises:
            SourceError: at the end: that failed.
        """

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Take down what interrupted runs left, but nothing that a later point is read by.

        A point whose engine lives is left alone.

        Args:
            chain_id: only of this chain, and what keeps its next point from being taken; None: of
                any.

        Raises:
            SourceError: the guest is not here; or, at the end, something cannot be taken down.
        """

    def take(self, request: Request) -> AbstractContextManager[Point]:
        """Take a point of some disks, all at one moment; the context's end takes it down.

        Raises:
            PointError: it is impossible; nothing was changed.
            SourceError: the guest is not here, or will not stay.
        """

    def close(self) -> None:
        """Let go of the source. Safe to repeat."""

    def __enter__(self) -> Self:
        """The source itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""


@runtime_checkable
class MayLackGuest(Protocol):
    """A source of disks that may show them without their guest."""

    @property
    def lacks_guest(self) -> bool:
        """It cannot tell whose its disks are. Its points are then of the guest that the user names,
        and a chain's guest stays what it is; else a guest without identity is another one.
        """


@runtime_checkable
class HeldElsewhere(Protocol):
    """A source whose points others begin and end: nothing is made there, so nothing is left."""

    @property
    def tracked(self) -> bool:
        """It may know what was written since a point; else it never does."""


@runtime_checkable
class Resumable(Protocol):
    """A source whose points outlive the run that took them."""

    def unresumable(self) -> str | None:
        """Why no point can be resumed by this source as it was opened; None: one can."""

    def adopt(self, request: Request) -> AbstractContextManager[Point]:
        """Resume a point that an interrupted run took; the context's end takes it down.

        Args:
            request: as it was when the point was taken, but with today's disks.

        Raises:
            PointError: it is not there as it was taken, to the last part; nothing was changed.
            SourceError: the guest is not here, or will not stay.
        """


@dataclass(frozen=True)
class Machine:
    """What a source tells of the machine besides its disks.

    Attributes:
        parts: at most one of each kind; without secrets in the clear, but NVRAM and TPM state are
            secrets themselves. What did not change has the same bytes.
        missing: what the machine has and cannot be told, and why: a line each.
        later: the kinds of those parts that were written after the point was begun, and so may be
            newer than the disks.
    """

    parts: Sequence[Part]
    missing: Sequence[str] = ()
    later: Sequence[PartKind] = ()


@runtime_checkable
class TellsMachine(Protocol):
    """A point whose source tells the machine."""

    def machine(self) -> Machine:
        """The machine, asked once and at once after the point was taken.

        It is as near to the point as the source can have it: not of the same moment. Nothing that
        goes wrong is raised: what cannot be told is `Machine.missing`, for disks without their
        machine are better than none.
        """


@dataclass(frozen=True)
class KeptBitmap:
    """A bitmap of what was written on a disk since a point.

    Attributes:
        disk: the disk's name.
        chain_id, sequence, point: of the point.
        name: the bitmap's own.
        state: one word for people.
        changed: what was written since, in bytes of disk; None: its source does not tell.
        granularity: bytes of disk per bit; None: likewise.
        own: it was begun for this disk; else what it tells is another's.
    """

    disk: str
    chain_id: str
    sequence: int
    point: str
    name: str
    state: str
    changed: int | None
    granularity: int | None
    own: bool


@runtime_checkable
class KeepsBitmaps(Protocol):
    """A source that notes by bitmaps what was written since its chains' points."""

    def bitmaps(self) -> Sequence[KeptBitmap]:
        """All of them that are fleece's, of all disks, by disk, chain and age."""

    def has_point(self, chain_id: str) -> bool:
        """Whether anything of a point of this chain is there: a run's, or an interrupted one's."""

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Remove a bitmap of a disk; one that is gone already is fine.

        Raises:
            SourceError: that failed, or the guest is not here.
        """

    def check_present(self) -> None:
        """Check that the guest is here.

        Raises:
            SourceError: it is yet to come, or has left.
        """
