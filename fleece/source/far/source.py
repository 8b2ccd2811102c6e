"""A guest of another host, as a source of points: a fleece there does all that is done there."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.source.base import (
    Chosen,
    Disk,
    KeptBitmap,
    Removed,
    Request,
    Since,
    TransportWish,
    Unknown,
)
from fleece.source.far.ask import Asker
from fleece.source.far.line import Line, Place
from fleece.source.far.messages import FarDisk, FarRequest, FarWanted, Known, Taken
from fleece.source.far.point import FarPoint, Way, living_point
from fleece.source.report import Report
from fleece.temporary import temporary_folder


@dataclass(frozen=True)
class FarInventory:
    """All disks, as they were told of."""

    disks: tuple[FarDisk, ...]
    asker: Asker

    def choose(self, names: tuple[str, ...]) -> Sequence[FarDisk]:
        """The disks of these names, or all that are writable (`Inventory.choose`)."""
        return self.asker.ask("choose", names=names).list_of(FarDisk)


class FarSource(Closing):
    """A guest of another host.

    Args:
        where: what the user calls it.
        place: where a fleece serves it.
        cancel: of the run that uses it.

    Raises:
        UsageError: ssh cannot be run, or the source is refused there.
        SourceError: the host or the guest cannot be reached.
    """

    doubts: tuple[str, ...] = ()

    def __init__(self, where: str, place: Place, cancel: CancelToken | None = None) -> None:
        self.where = where
        cancel = cancel or CancelToken()
        with contextlib.ExitStack() as stack:
            line = Line(place, stack.enter_context(temporary_folder()))
            self._asker = stack.enter_context(Asker(line, where, place.host, cancel))
            self._way = Way(self._asker, line, cancel)
            self._host = place.host
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Let the fleece there end, and wait until it has. Safe to repeat."""
        self._stack.close()

    def producer(self) -> Mapping[str, str]:
        """As it is told there."""
        return self._asker.greeting.producer

    def guest(self) -> str:
        """Its name there."""
        return self._asker.greeting.guest

    def identity(self) -> GuestIdentity | None:
        """As it is told there."""
        return self._asker.greeting.identity

    def inventory(self) -> FarInventory:
        """The disks as they are now."""
        return FarInventory(self._asker.ask("inventory").list_of(FarDisk), self._asker)

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence that is known there; 0: there is none."""
        names = [disk.name for disk in disks]
        return self._asker.ask("sequence", chain=chain_id, disks=names).number()

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether it is known there what was written on a disk since a point."""
        said = self._asker.ask(
            "since",
            disk=disk.name,
            chain=chain_id,
            sequence=sequence,
            point=point,
            others=[*others],
        ).as_a(Known)
        return said.since or Unknown(said.reason)

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """As it is decided there."""
        names = [disk.name for disk in disks]
        return self._asker.ask("transport", wish=wish, disks=names).as_a(Chosen)

    def check_needs(self) -> None:
        """See that what a point needs of the other host is there."""
        self._asker.ask("needs")

    def check_ready(self) -> None:
        """Check that a point can be taken now."""
        self._asker.ask("ready")

    def check_present(self) -> None:
        """Check that the guest is there."""
        self._asker.ask("present")

    def release(self) -> Iterator[Removed]:
        """Let a guest go on that an interrupted run left stopped or frozen."""
        return self._taken("release")

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Have taken down what interrupted runs left there."""
        return self._taken("recover", chain=chain_id)

    def _taken(self, word: str, **more: object) -> Iterator[Removed]:
        told = self._asker.ask(word, **more).as_a(Taken)
        self.doubts = tuple(f"{self._host}: {text}" for text in told.doubts)
        yield from told.removed
        if told.failure is not None:
            raise told.failure.error(self._host)

    def take(self, request: Request) -> AbstractContextManager[FarPoint]:
        """Have a point taken there; the context's end ends it."""
        asked = FarRequest(
            request.chain_id,
            request.sequence,
            request.point,
            tuple(FarWanted(want.disk.name, want.since) for want in request.wanted),
            request.rotate,
        )
        return living_point(self._way, asked)

    def bitmaps(self) -> Sequence[KeptBitmap]:
        """All of them that are fleece's."""
        return self._asker.ask("bitmaps").list_of(KeptBitmap)

    def has_point(self, chain_id: str) -> bool:
        """Whether anything of a point of this chain is there."""
        return self._asker.ask("has-point", chain=chain_id).flag()

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Remove a bitmap of a disk; one that is gone already is fine."""
        self._asker.ask("drop", disk=disk, name=name)

    def examine(self) -> Report:
        """What it can do, and what it has."""
        return self._asker.ask("examine").as_a(Report)
