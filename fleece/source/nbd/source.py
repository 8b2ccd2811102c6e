"""Exports that somebody else serves, as a source of points: the point is whoever's.

Nothing is made, changed or removed on a server. What was written since a point is told by bitmaps
that the user names together with the id of that point, which their owner has kept beside them: so a
bitmap is believed only for a point that the store has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NoReturn

from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.disk.nbd import NbdDisk
from fleece.errors import UsageError
from fleece.extents import Extents
from fleece.nbd.connection import DIRTY_BITMAP
from fleece.nbd.offered import offered_contexts
from fleece.source.base import (
    Chosen,
    Disk,
    Export,
    Removed,
    Request,
    Since,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.source.choice import of_kind, only_pulled
from fleece.source.nbd.doctor import examine
from fleece.source.nbd.held import HeldExports
from fleece.source.nbd.inventory import NbdInventory, ServedDisk
from fleece.source.nbd.point import NbdPoint
from fleece.source.nbd.text import Place, Proof
from fleece.source.report import Report


class NbdSource(Closing):
    """Disks that are served by NBD.

    Args:
        places: of the disks: at least one, each of another name.
        proof: what tells what was written since a point; None: nothing does.
        cancel: of the run that uses it.
    """

    lacks_guest = True
    doubts: tuple[str, ...] = ()

    def __init__(
        self, places: Sequence[Place], proof: Proof | None, cancel: CancelToken | None = None
    ) -> None:
        self.where = ", ".join(place.uri for place in places)
        self._places = tuple(places)
        self._proof = proof
        self._cancel = cancel or CancelToken()
        self._contexts = {} if proof is None else {each: _contexts(each, proof) for each in places}
        self._held = HeldExports(self._contexts, self._cancel)

    @property
    def tracked(self) -> bool:
        """Whether bitmaps are named."""
        return self._proof is not None

    def close(self) -> None:
        """Let go of the servers."""
        self._held.close()

    def producer(self) -> Mapping[str, str]:
        """The protocol: nobody knows what serves."""
        return {"nbd": self._held.look(self._places[0]).protocol}

    def guest(self) -> NoReturn:
        """Nobody tells it.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "an NBD export does not tell whose disk it is",
            where=self.where,
            hint="name the guest with --guest",
        )

    def identity(self) -> GuestIdentity | None:
        """None: NBD tells none."""
        return None

    def inventory(self) -> NbdInventory:
        """The disks as they are served now.

        Raises:
            SourceError: one is not.
        """
        found = []
        for place in self._places:
            held = self._held.look(place)
            lacks = self._lacks(place, held.contexts)
            found.append(ServedDisk(place, held.size, not held.read_only, lacks))
        return NbdInventory(tuple(found))

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """0: no point is noted there."""
        return 0

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether the bitmaps that were named began at or before this point, and are there."""
        if self._proof is None:
            return Unknown("no bitmap tells what was written (--bitmap with --since)")
        served, names = of_kind(disk, ServedDisk), self._proof.bitmaps.get(disk.name)
        if names is None:
            return Unknown("no bitmap of this disk is named (--bitmap)")
        if served.lacks is not None:
            return Unknown(served.lacks)
        if self._proof.point != point:
            return Unknown(
                f"the store's newest point of it is {point}, and the bitmap tells what was "
                f"written since {self._proof.point}"
            )
        export, changed = NbdDisk(served.place.uri, cancel=self._cancel), Extents.empty()
        for context in self._contexts[served.place]:
            found = export.dirty_extents(context, Extents.whole(export.size))
            changed = changed.union(found or Extents.empty())
        return Since(names, changed.total)

    def _lacks(self, place: Place, present: tuple[str, ...]) -> str | None:
        """Which named bitmap an export lacks, and which it has instead, in a clause."""
        wanted = self._contexts.get(place, ())
        lacking = [_name(each) for each in wanted if each not in present]
        if not lacking:
            return None
        names = [_name(each) for each in offered_contexts(place.uri, self._cancel)]
        there = ", ".join(name for name in names if name) or "none at all"
        return f"the export has no bitmap {lacking[0]}: it has {there}"

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Always pulled.

        Raises:
            UsageError: it is to be pushed.
        """
        return only_pulled(wish, "an NBD server is read, and cannot push", self.where)

    def check_needs(self) -> None:
        """Nothing is needed but what the engine needs."""

    def check_ready(self) -> None:
        """Check that every disk is served.

        Raises:
            SourceError: one is not.
        """
        self.inventory()

    def release(self) -> Iterator[Removed]:
        """Nobody was stopped."""
        yield from ()

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Nothing was left."""
        yield from ()

    @contextlib.contextmanager
    def take(self, request: Request) -> Iterator[NbdPoint]:
        """Take what is served for the point.

        Raises:
            PointError: an export is not the one that was looked at any more.
        """
        disks = [of_kind(want.disk, ServedDisk) for want in request.wanted]
        held = self._held.of(disk.place for disk in disks)
        yield NbdPoint(disks, tuple(_export(want) for want in request.wanted), held)

    def examine(self) -> Report:
        """What the servers say of the exports."""
        inventory = self.inventory()
        return examine(inventory, self._held, self._cancel)


def _contexts(place: Place, proof: Proof) -> tuple[str, ...]:
    """Of the bitmaps that are named of a disk."""
    return tuple(f"{DIRTY_BITMAP}{name}" for name in proof.bitmaps.get(place.name, ()))


def _name(context: str) -> str:
    """Of the bitmap that a context is of; empty: it is of none."""
    return context.removeprefix(DIRTY_BITMAP) if context.startswith(DIRTY_BITMAP) else ""


def _export(want: Wanted) -> Export:
    disk = of_kind(want.disk, ServedDisk)
    names = () if want.since is None else want.since.parts
    contexts = [f"{DIRTY_BITMAP}{name}" for name in names]
    return Export(
        disk=disk.name,
        uri=disk.place.uri,
        size=disk.size,
        dirty_context=contexts[0] if contexts else None,
        granularity=None,
        also_dirty=tuple(contexts[1:]),
    )
