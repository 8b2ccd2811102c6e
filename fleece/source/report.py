"""What a source says of itself, for people who ask whether a backup could run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fleece.delta.identity import GuestIdentity


@dataclass(frozen=True)
class Ability:
    """Something that a source can do or not."""

    name: str
    what: str
    present: bool


@dataclass(frozen=True)
class ExaminedBitmap:
    """A bitmap of what was written on a disk, whoever made it.

    Attributes:
        name: its own.
        state: one word for people.
        granularity: bytes of disk per bit; None: its source does not tell.
        count: dirty bytes.
        details: what its kind of source says besides, by name.
    """

    name: str
    state: str
    granularity: int | None
    count: int
    details: Mapping[str, bool]


@dataclass(frozen=True)
class ExaminedDisk:
    """A disk.

    Attributes:
        name: its own.
        size: in bytes.
        format: of its image.
        place: where it is in the source, in a few words.
        obstacle: why it cannot be pulled; None: it can.
        bitmaps: on it.
        details: what its kind of source says besides, by name.
    """

    name: str
    size: int
    format: str
    place: str
    obstacle: str | None
    bitmaps: tuple[ExaminedBitmap, ...]
    details: Mapping[str, str | bool]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        kind: what the source is, in one word.
        version: of that.
        guest: its name; None: nothing tells it.
        identity: what tells it from others of its name; None: nothing does.
        state: the guest's, in one word; None: there is none that runs.
        refusal: why no point can be taken now; None: one can.
        abilities: what the source can do.
        disks: those that it has.
        advice: what else its user should know of a backup of it, a line each: what may have to be
            done on its host, and what is not in a point.
    """

    kind: str
    version: str
    guest: str | None
    identity: GuestIdentity | None
    state: str | None
    refusal: str | None
    abilities: tuple[Ability, ...]
    disks: tuple[ExaminedDisk, ...]
    advice: tuple[str, ...] = ()


@runtime_checkable
class Examinable(Protocol):
    """A source that can say all that."""

    def examine(self) -> Report:
        """What it can do, and what it has."""
