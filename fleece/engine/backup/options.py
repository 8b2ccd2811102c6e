"""How to back up, and what became of it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from fleece.delta.header import Mode
from fleece.engine.backup.decide import ModeWish
from fleece.engine.work.pool import WORKERS
from fleece.errors import UsageError
from fleece.pace import Rate
from fleece.source.base import Transport, TransportWish
from fleece.store.marks import checked

DEFAULT_LEVEL = 1
"""The zstd level (docs/benchmarks.rst tells why)."""


@dataclass(frozen=True)
class BackupOptions:
    """How to back up.

    Attributes:
        mode: what is wanted; auto decides for each disk.
        guest: the guest's name in the store; None: the source's own.
        disks: names; empty: all writable ones.
        level: zstd level.
        workers: threads that read, hash and compress.
        audit: the part of the leaves said to be clean, 0 to 1, that is read and compared with the
            chain all the same, a new sample each time.
        resume: resume the point of an interrupted backup, if it is whole; else take a new one.
        transport: whether a new point is pulled or pushed.
        rate: the most bytes that are read of the source in a second, or what tells that again and
            again, by several threads; None: as many as it gives. What is pushed keeps the first.
        adopt: the chain is another guest's; from this point on it is this one's. All is read.
        tags: that the point gets. A point that was begun with others is not resumed.
    """

    mode: ModeWish = ModeWish.AUTO
    guest: str | None = None
    disks: tuple[str, ...] = ()
    level: int = DEFAULT_LEVEL
    workers: int = WORKERS
    audit: float = 0.0
    resume: bool = True
    transport: TransportWish = TransportWish.AUTO
    rate: Rate | None = None
    adopt: bool = False
    tags: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise `UsageError` if no backup can be made so."""
        if checked(self.tags) != self.tags:
            raise UsageError("tags are given once each, in the order of the alphabet")
        if not 0 <= self.audit <= 1:
            raise UsageError("the part to audit must be from 0 to 1", where=self.audit)
        if self.workers < 1 or (isinstance(self.rate, int) and self.rate < 1):
            raise UsageError("workers and rate must be at least 1")


@dataclass(frozen=True)
class DiskResult:
    """What became of one disk. Bytes are of disk, but `stored_bytes` of file.

    `dirty_bytes` are those that the delta holds, zeros among them, in whole leaves;
    `audited_bytes` were clean, and found to be what the chain holds. `read_bytes` were read by this
    run; `resumed_bytes` by an interrupted one before, and not again.
    """

    disk: str
    size: int
    root: str
    mode: Mode
    dirty_bytes: int
    read_bytes: int
    stored_bytes: int
    delta: str
    audited_bytes: int = 0
    resumed_bytes: int = 0


class PointMode(enum.StrEnum):
    """The mode of a whole point: its disks' common one, or mixed."""

    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"
    RESCAN = "rescan"
    MIXED = "mixed"


@dataclass(frozen=True)
class BackupResult:
    """A stored point.

    Attributes:
        point, guest, mode, disks: what it is.
        frozen: the guest's file systems stood still for it.
        resumed: an interrupted backup took it, at the time that its headers say.
        transport: how it came out of the source.
        adopted: the chain was another guest's before.
        parts: of the machine, by their names in the store.
    """

    point: str
    guest: str
    mode: PointMode
    disks: tuple[DiskResult, ...]
    frozen: bool = False
    resumed: bool = False
    transport: Transport = Transport.PULL
    adopted: bool = False
    parts: tuple[str, ...] = ()


def common_mode(results: Sequence[DiskResult]) -> PointMode:
    """The mode of a point of these disks."""
    modes = {result.mode for result in results}
    return PointMode(modes.pop()) if len(modes) == 1 else PointMode.MIXED
