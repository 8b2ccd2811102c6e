"""One backup that is to be made, and what it is made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.sink import Sink
from fleece.engine.backup.decide import Decision, Lineage
from fleece.engine.backup.identity import Bond
from fleece.engine.backup.options import BackupOptions
from fleece.engine.work.pool import Counter
from fleece.source.base import Source
from fleece.store.store import Store


@dataclass(frozen=True)
class Task:
    """One backup.

    Attributes:
        store: with the guest's points.
        lineage: the chain that the new point goes into, as the store and the source know it.
        bond: of the chain to the guest.
        options: how.
        listener: hears what happens.
        cancel: stops it.
        output: takes the one disk's delta; None: the store does.
    """

    store: Store
    lineage: Lineage
    bond: Bond
    options: BackupOptions
    listener: events.Listener
    cancel: CancelToken
    output: Sink | None = None

    @property
    def source(self) -> Source:
        """Of the guest."""
        return self.lineage.source

    def warn(self, text: str) -> None:
        """Tell the listener what the user should know."""
        self.listener(events.Warned(text))

    def tell_plan(self, decisions: Sequence[Decision], reason: str | None = None) -> None:
        """Tell how each disk is read, and why: for its own reason, or for this one."""
        for made in decisions:
            self.listener(events.DiskPlanned(made.disk.name, made.mode, reason or made.reason))

    def counter(self, total: int, phase: events.Phase = events.Phase.BACKUP) -> Counter:
        """Counts bytes of disk."""
        return Counter(self.listener, phase, self.lineage.guest, total)
