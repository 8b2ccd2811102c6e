"""Compare the whole clean part of a guest's disks with the chain; store nothing."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from fleece import events
from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.engine.backup.decide import Auditable, Lineage, auditable
from fleece.engine.backup.identity import bound, guest_name
from fleece.engine.backup.pull import open_dirty
from fleece.engine.backup.sample import AuditJob, compare_clean, refuse_differing
from fleece.engine.backup.take import recover, taken
from fleece.engine.work.needs import check_backup_needs
from fleece.engine.work.pool import Counter
from fleece.errors import PointError, StoreError
from fleece.extents import Extents
from fleece.source.base import Export, Request, Source, Transport, Wanted
from fleece.source.lost import reads_of
from fleece.store.catalogue import Catalogue
from fleece.store.store import Store


@dataclass(frozen=True)
class AuditedDisk:
    """A disk whose clean leaves are what the chain holds.

    Attributes:
        disk: its name.
        size: in bytes.
        against: the stored point.
        compared_bytes: of disk; the rest is dirty.
    """

    disk: str
    size: int
    against: str
    compared_bytes: int


@dataclass(frozen=True)
class AuditResult:
    """An audit that found nothing wrong."""

    guest: str
    disks: tuple[AuditedDisk, ...]


def audit(
    source: Source,
    store: Store,
    guest: str | None = None,
    disks: tuple[str, ...] = (),
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> AuditResult:
    """Compare every leaf that the source calls unchanged since the newest point with that point.

    Takes a point as a backup does, and takes it down again. The chain stays as it is, and what
    the source notes of it too.

    Args:
        source: the guest.
        store: with its points.
        guest: its name in the store; None: the source's own.
        disks: names; empty: all writable ones.
        listener: hears what happens.
        cancel: stops it.

    Raises:
        VerifyError: something differs; the next backup into this store is a rescan.
        StoreError: the store has no point of the guest.
        PointError: of a disk, nothing is known to be unchanged; or the points are another guest's.
        SourceError: the guest is not there, or will not stay.
        UsageError: no point can have the guest's name.
    """
    guest = guest_name(source, guest)
    source.check_ready()
    if not store.catalogue(guest).of_guest(guest):
        raise StoreError(f"there is no point of guest {guest} to audit against", where=store.where)
    check_backup_needs(Transport.PULL)
    source.check_needs()
    with store.locked(guest):
        catalogue = store.catalogue(guest)
        chain_id = store.chain_of(guest, catalogue)
        bound(source, catalogue, guest, chain_id)
        recover(source, chain_id, listener)
        chosen = source.inventory().choose(disks)
        lineage = Lineage(source, catalogue, guest, chain_id)
        found = [auditable(disk, lineage) for disk in chosen]
        point = secrets.token_hex(5)
        wanted = [Wanted(item.disk, item.since) for item in found]
        request = Request(chain_id, 0, point, wanted, rotate=False)
        with taken(source, request, listener) as living, contextlib.ExitStack() as stack:
            jobs = _jobs(stack, catalogue, found, living.exports, cancel)
            total = sum(job.clean.total for job in jobs)
            counter = Counter(listener, events.Phase.AUDIT, guest, total)
            try:
                with reads_of(living):
                    stop = cancel or CancelToken()
                    compare_clean(jobs, 1.0, counter, stop, watch=living.watch)
            finally:
                distrust(store, chain_id, jobs)
            living.check()
            refuse_differing(jobs)
    return AuditResult(guest, tuple(_result(job) for job in jobs))


def distrust(store: Store, chain_id: str, jobs: Sequence[AuditJob]) -> None:
    """Make the next backup of each disk on which an audit found something a rescan."""
    for job in jobs:
        if job.trouble is not None:
            store.distrust(chain_id, job.name, job.trouble)


def _jobs(
    stack: contextlib.ExitStack,
    catalogue: Catalogue,
    found: Sequence[Auditable],
    exports: Sequence[Export],
    cancel: CancelToken | None,
) -> list[AuditJob]:
    jobs = []
    for item, export in zip(found, exports, strict=True):
        if export.partial:
            raise PointError(
                f"disk {export.disk} cannot be audited: its source shows only what changed",
                where=export.uri,
                hint="name the other disks with --disk; 'fleece backup --mode rescan' compares all",
            )
        chain: Chain = stack.enter_context(catalogue.chain(item.newest))
        disk, dirty = open_dirty(export, cancel=cancel)
        clean = Extents.whole(disk.size).subtract(dirty)
        jobs.append(AuditJob(item.disk.name, disk, clean, chain))
    return jobs


def _result(job: AuditJob) -> AuditedDisk:
    newest = job.chain.deltas[0].header
    return AuditedDisk(job.name, newest.size, newest.point.id, job.compared_bytes)
