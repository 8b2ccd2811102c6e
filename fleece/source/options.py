"""How a source is opened, whatever its kind."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path


class Fleecing(enum.StrEnum):
    """A way to hold a point. docs/internals/architecture.rst compares them."""

    CLASSIC = "classic"
    FILTER = "filter"


class FreezeWish(enum.StrEnum):
    """Whether a guest's file systems are to be frozen for the moment of a point."""

    NO = "no"
    TRY = "try"
    MUST = "must"


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened.

    Attributes:
        scratch: folder for what the guest overwrites while a point is read; None: the default one,
            to which only this user writes.
        scratch_limit: bytes that a point may take there; None: as much as its file system has,
            less a reserve.
        fleecing: how points are held.
        guest_agent: path of the unix socket of the guest agent's port, by which the guest's file
            systems are frozen for the moment of a point; None: they are not.
        connect: URI of the libvirt that has the guest; None: libvirt's own default
            (LIBVIRT_DEFAULT_URI, or what this user and host have).
        freeze: have the guest's file systems frozen for the moment of the point, by whoever holds
            its agent.
        require_freeze: take no point of a guest that could not be frozen.
        places: more disks that the source has, by name and NBD URI.
        bitmap: of an export, that tell what was written since a point: of the disk of that name
            (`DISK=NAME`), or of every disk (`NAME`).
        since: the id of the point that each of them began at or before.
    """

    scratch: Path | None = None
    scratch_limit: int | None = None
    fleecing: Fleecing = Fleecing.CLASSIC
    guest_agent: str | None = None
    require_freeze: bool = False
    connect: str | None = None
    freeze: bool = False
    places: tuple[tuple[str, str], ...] = field(default=(), metadata={"option": "--disk NAME=URI"})
    bitmap: tuple[str, ...] = ()
    since: str | None = None

    @property
    def freeze_wish(self) -> FreezeWish:
        """What `freeze` and `require_freeze` say together."""
        if self.require_freeze:
            return FreezeWish.MUST
        return FreezeWish.TRY if self.freeze else FreezeWish.NO


@dataclass(frozen=True)
class FoundGuest:
    """A guest that somebody has.

    Attributes:
        name: its own.
        source: what it is opened by, whatever it is called.
        running: it is on.
        tags: that its owner gave it.
    """

    name: str
    source: str
    running: bool = False
    tags: frozenset[str] = frozenset()
