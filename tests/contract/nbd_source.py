"""A source over plain NBD exports that somebody else serves, and holds still: the least there is.

It knows nothing of what was written since a point, so that every backup reads all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError, SourceError, UsageError
from fleece.extents import Extents
from fleece.nbd.connection import Connection
from fleece.source.base import (
    Chosen,
    Disk,
    Export,
    Machine,
    Removed,
    Request,
    Since,
    Transport,
    TransportWish,
    Unknown,
)


@dataclass(frozen=True)
class NbdExport:
    """A disk that somebody serves."""

    name: str
    uri: str
    size: int
    read_only: bool = False


@dataclass(frozen=True)
class NbdInventory:
    """What is served."""

    disks: tuple[NbdExport, ...]

    def choose(self, names: tuple[str, ...]) -> tuple[NbdExport, ...]:
        """The disks of these names, or all."""
        if len(set(names)) != len(names):
            raise UsageError("a disk is named twice")
        known = {disk.name: disk for disk in self.disks}
        for name in names:
            if name not in known or known[name].read_only:
                raise PointError(f"there is no disk {name} that can be written")
        writable = tuple(disk for disk in self.disks if not disk.read_only)
        return tuple(known[name] for name in names) or writable


class NbdPoint:
    """A point that lives as long as the exports do."""

    push = None
    granularity = 64 * 1024
    frozen = False
    stuck = None
    warnings = ()
    reclaims = False
    scarce = False

    def __init__(self, exports: tuple[Export, ...]) -> None:
        self.exports = exports

    def check(self) -> None:
        """Raise `PointError` if an export is gone, or another one now."""
        for export in self.exports:
            try:
                with Connection(export.uri) as connection:
                    size = connection.size
            except SourceError as error:
                raise PointError(f"disk {export.disk} is no longer served: {error}") from error
            if size != export.size:
                raise PointError(f"disk {export.disk} has another size now")

    def watch(self) -> None:
        """Nothing here is in the guest's way."""

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """There is no scratch."""

    def close(self) -> None:
        """The exports are somebody else's."""

    def committed(self, oldest: int | None = None) -> tuple[str, ...]:
        """Nothing is kept of older points."""
        return ()


class MachinePoint(NbdPoint):
    """A point whose machine somebody has told."""

    def __init__(self, exports: tuple[Export, ...], told: Machine) -> None:
        super().__init__(exports)
        self._told = told

    def machine(self) -> Machine:
        """As it was told."""
        return self._told


class NbdSource:
    """Disks that are served by NBD.

    Args:
        name: of the guest.
        uris: of the disks, by name.
        machine: that they are of; None: nobody tells it.
    """

    doubts: tuple[str, ...] = ()
    tracked = False

    def __init__(self, name: str, uris: Mapping[str, str], machine: Machine | None = None) -> None:
        self.where = name
        self.machine = machine
        self._uris = dict(uris)

    def producer(self) -> Mapping[str, str]:
        """Nobody knows who serves them."""
        return {"nbd": "newstyle"}

    def guest(self) -> str:
        """As it was given."""
        return self.where

    def identity(self) -> GuestIdentity | None:
        """None: NBD tells none."""
        return None

    def inventory(self) -> NbdInventory:
        """The sizes are asked for."""
        found = []
        for name, uri in self._uris.items():
            with Connection(uri) as connection:
                found.append(NbdExport(name, uri, connection.size))
        medium = NbdExport("medium", "", 2048, read_only=True)
        return NbdInventory((*found, medium))

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """0: nothing is kept."""
        return 0

    def known_since(
        self,
        disk: Disk,
        chain_id: str,
        sequence: int,
        point: str,
        others: Collection[str] = (),
    ) -> Since | Unknown:
        """Never anything."""
        return Unknown("a plain NBD export does not tell what was written")

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Always pulled."""
        if wish is TransportWish.PUSH:
            raise UsageError("who serves these disks cannot push them")
        return Chosen(Transport.PULL)

    def check_needs(self) -> None:
        """Nothing is needed but what the engine needs."""

    def check_ready(self) -> None:
        """That each disk is served."""
        self.inventory()

    def release(self) -> Iterator[Removed]:
        """Nobody was stopped."""
        yield from ()

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Nothing is left by anybody."""
        yield from ()

    @contextlib.contextmanager
    def take(self, request: Request) -> Iterator[NbdPoint]:
        """What is served is the point."""
        if any(want.since is not None for want in request.wanted):
            raise PointError("nothing is known since any point")
        exports = [
            Export(want.disk.name, self._uris[want.disk.name], want.disk.size, None, None)
            for want in request.wanted
        ]
        made = tuple(exports)
        yield NbdPoint(made) if self.machine is None else MachinePoint(made, self.machine)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
