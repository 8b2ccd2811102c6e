"""How a point is given to a consumer."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleece.engine.export.address import Doors
from fleece.engine.http.door import HttpDoor
from fleece.errors import UsageError

TTL = 2 * 60 * 60.0
"""Seconds that a point is held if nobody says how long."""


@dataclass(frozen=True)
class ExportOptions:
    """How a point is given to a consumer.

    Attributes:
        consumer: its name; it has bases of its own in the source.
        disks: names; empty: all writable ones.
        since: the base that the commit of a point told, which the consumer has; None: all is read.
        full: say so: all is to be read.
        keep_bases: how many points stay bases after a commit, this one among them.
        doors: where clients are let in.
        http: where HTTP clients are let in as well; None: nowhere.
        ttl: seconds until the point is dropped.
    """

    consumer: str = "default"
    disks: tuple[str, ...] = ()
    since: str | None = None
    full: bool = False
    keep_bases: int = 1
    doors: Doors = field(default_factory=Doors)
    ttl: float = TTL
    http: HttpDoor | None = None

    def check(self) -> None:
        """Raise `UsageError` if no point can be given so."""
        if self.full and self.since is not None:
            raise UsageError("a full builds on no base", hint="leave --full or --since out")
        if self.keep_bases < 1 or self.ttl <= 0:
            raise UsageError("bases to keep, and the time limit, must be positive")
        self.doors.check()
        if self.http is not None:
            self.http.check()
