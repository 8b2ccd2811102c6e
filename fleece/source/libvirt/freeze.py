"""Hold the guest's file systems still for the moment of a point, by the agent that libvirt holds.

Nothing is asked of the agent but to freeze and to thaw: what libvirt passes on as it is would
taint the guest. Whether the file systems stood still all the time is seen when they are thawed:
those that were thawed before are not counted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fleece.errors import PointError, SourceError
from fleece.source.freeze import Freeze
from fleece.source.libvirt.connection import Refused
from fleece.source.libvirt.domain import Code, Domain
from fleece.source.workfolder import Note

_FREEZE_LIMIT = 30
"""Seconds that the agent has; the guest writes out what it holds, and runs hooks."""
_THAW_LIMIT = 30.0
_PAUSE = 0.2


@dataclass(frozen=True)
class Freezer:
    """Freezes a guest.

    Attributes:
        domain: the guest.
        required: take no point of a guest that could not be frozen.
    """

    domain: Domain
    required: bool = False

    @contextlib.contextmanager
    def frozen(self, freeze: Freeze, note: Note) -> Iterator[None]:
        """Freeze the guest while the context lasts, if that can be done.

        Args:
            freeze: is told how it goes.
            note: is there for as long as the guest may be frozen, so that the next run can thaw it
                should this one be killed.

        Raises:
            SourceError: it was thawed, but the note cannot be removed.
            PointError: a freeze is required, and the guest was not frozen all the time.
        """
        try:
            note.write(b"libvirt")
        except OSError as error:
            raise SourceError(f"cannot be noted ({error.strerror})", where=note.path) from error
        asked = True
        try:
            try:
                freeze.frozen = self.domain.freeze(_FREEZE_LIMIT) > 0
                freeze.trouble = None if freeze.frozen else "the agent froze no file system"
            except Refused as error:
                asked = error.number != Code.ARGUMENT_UNSUPPORTED  # there is no agent
                freeze.trouble = error.reason
            self._demand(freeze)
            yield
        finally:
            if asked:
                self._end(freeze)
            if freeze.stuck is None:
                note.drop()
        self._demand(freeze)

    def _end(self, freeze: Freeze) -> None:
        try:
            if thaw(self.domain) == 0 and freeze.frozen:
                freeze.frozen = False
                freeze.trouble = "the guest was thawed before the point was taken"
            freeze.stuck = None
        except SourceError as error:
            if freeze.frozen:
                freeze.stuck = f"the guest could not be thawed, and may still be frozen ({error})"

    def _demand(self, freeze: Freeze) -> None:
        if self.required and not freeze.frozen:
            raise PointError(
                f"the guest could not be frozen: {freeze.trouble}",
                where=self.domain.where,
                hint="without --require-freeze it is backed up all the same",
            )


def thaw(domain: Domain) -> int:
    """Thaw a guest, however often that must be tried; gives how many file systems were frozen.

    One that has no agent was not frozen: a run was killed before it knew.

    Raises:
        SourceError: not within 30 seconds.
    """
    end = time.monotonic() + _THAW_LIMIT
    while True:
        try:
            return domain.thaw(_FREEZE_LIMIT)
        except Refused as error:
            if error.number == Code.ARGUMENT_UNSUPPORTED:
                return 0
            if time.monotonic() > end or error.number != Code.AGENT_UNRESPONSIVE:
                raise
        time.sleep(_PAUSE)
