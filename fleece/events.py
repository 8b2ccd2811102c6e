"""What happened, told to the caller while it happens: typed, with stable names.

The library calls a `Listener` with one of these; `--json` prints them one a line
(docs/reference/json.rst).
Listeners may be called from worker threads, one call at a time.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar


class Phase(enum.StrEnum):
    """What a progress event counts."""

    BACKUP = "backup"
    RESTORE = "restore"
    VERIFY = "verify"
    ROOT = "root"
    PROOF = "proof"
    AUDIT = "audit"
    IMPORT = "import"
    SALVAGE = "salvage"
    MERGE = "merge"
    FILES = "files"
    COPY = "copy"


@dataclass(frozen=True)
class Event:
    """The base of all events. `name` is the value of `event` in machine output."""

    name: ClassVar[str] = "event"

    def to_json(self) -> dict[str, object]:
        """The event as a plain mapping, its name first."""
        return {"event": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Leftover(Event):
    """Something that an interrupted backup left behind was removed."""

    name: ClassVar[str] = "leftover"
    kind: str
    item: str


@dataclass(frozen=True)
class DiskPlanned(Event):
    """A disk's mode was decided; `reason` says why in one line."""

    name: ClassVar[str] = "plan"
    disk: str
    mode: str
    reason: str


@dataclass(frozen=True)
class DiskGone(Event):
    """The guest no longer has a disk; `point` is its newest."""

    name: ClassVar[str] = "gone"
    disk: str
    point: str


@dataclass(frozen=True)
class PointTaken(Event):
    """The point in time of all disks exists; the guest goes on."""

    name: ClassVar[str] = "point"
    point: str
    disks: tuple[str, ...]


@dataclass(frozen=True)
class Resumed(Event):
    """An interrupted backup's point, taken at `time`, is resumed; `done` bytes need not be read."""

    name: ClassVar[str] = "resumed"
    point: str
    time: str
    disks: tuple[str, ...]
    done: int


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` bytes (of disk; of a copy: of file) are through a phase.

    Of these `known` were not read: known zeros, and what an interrupted backup had read.
    """

    name: ClassVar[str] = "progress"
    phase: Phase
    subject: str
    done: int
    total: int
    known: int = 0


@dataclass(frozen=True)
class DeltaChecked(Event):
    """A delta was read to its last byte and every hash in it holds."""

    name: ClassVar[str] = "checked"
    point: str
    disk: str
    root: str


@dataclass(frozen=True)
class Problem(Event):
    """A check failed; the run goes on to find the others and then fails."""

    name: ClassVar[str] = "problem"
    where: str
    what: str


@dataclass(frozen=True)
class Committed(Event):
    """The point is durable in the store."""

    name: ClassVar[str] = "committed"
    point: str


@dataclass(frozen=True)
class Streamed(Event):
    """The point's delta was written to the caller's stream; the store does not have it."""

    name: ClassVar[str] = "streamed"
    point: str


@dataclass(frozen=True)
class Merged(Event):
    """A disk's delta of a point stands in for a run of `deltas`; durable.

    `frames` were copied as they are, `cut` were decoded because newer ones hide a part of them.
    """

    name: ClassVar[str] = "merged"
    point: str
    disk: str
    deltas: int
    frames: int
    cut: int
    stored_bytes: int


@dataclass(frozen=True)
class Dropped(Event):
    """A point is no longer in the store, for good; `stored_bytes` of files went."""

    name: ClassVar[str] = "dropped"
    guest: str
    point: str
    stored_bytes: int


@dataclass(frozen=True)
class Arrived(Event):
    """A point of another store is in this one, durable and checked; `stored_bytes` of files."""

    name: ClassVar[str] = "arrived"
    guest: str
    point: str
    stored_bytes: int


@dataclass(frozen=True)
class Copied(Event):
    """A file, folder or link of a point was copied, whole; of a folder, all that could be."""

    name: ClassVar[str] = "copied"
    path: str
    type: str
    size: int


@dataclass(frozen=True)
class Warned(Event):
    """Something did not go as it should; the outcome stands, but the user should know."""

    name: ClassVar[str] = "warning"
    what: str


Listener = Callable[[Event], None]


def in_turn(listener: Listener) -> Listener:
    """The same, called by one thread at a time, for who has several."""
    turn = threading.Lock()

    def tell(event: Event) -> None:
        with turn:
            listener(event)

    return tell


def ignore(event: Event) -> None:
    """The listener that hears nothing."""
