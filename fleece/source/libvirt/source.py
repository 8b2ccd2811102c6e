"""A guest of libvirt's, running, as a source of points."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from fleece.attempts import Attempts
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError, SourceError, UsageError
from fleece.folder import Folder
from fleece.source.base import (
    Chosen,
    Disk,
    KeptBitmap,
    Removed,
    Request,
    Since,
    Transport,
    TransportWish,
    Unknown,
    Wanted,
)
from fleece.source.choice import of_kind
from fleece.source.libvirt import checkpoints
from fleece.source.libvirt.adopt import adopted_point
from fleece.source.libvirt.checkpoints import is_of
from fleece.source.libvirt.doctor import examine
from fleece.source.libvirt.domain import Busy, Domain, State, version_text
from fleece.source.libvirt.freeze import Freezer, thaw
from fleece.source.libvirt.identity import holder_of, identity_of
from fleece.source.libvirt.inventory import (
    LibvirtDisk,
    LibvirtInventory,
    lost_client_kills,
    take_inventory,
)
from fleece.source.libvirt.names import FolderName
from fleece.source.libvirt.point import (
    GRANULARITY,
    LibvirtPoint,
    PlannedDisk,
    PointPlan,
    living_point,
)
from fleece.source.libvirt.pushed import PushedPoint
from fleece.source.libvirt.takedown import folder_of, remove_folder, take_down_job
from fleece.source.place import check_path, default_scratch, doubt
from fleece.source.point_name import PointName
from fleece.source.report import Report
from fleece.source.workfolder import (
    FROZEN,
    PREFIX,
    Note,
    Strangers,
    WorkFolder,
    believed,
    may_be_held,
    work_folders,
)

_PRESENT = (State.RUNNING, State.PAUSED, State.IO_ERROR, State.CRASHED)
"""A guest that has crashed is there if its definition has it preserved, and like a paused one."""


class LibvirtSource(Closing):
    """A guest of libvirt's, which is on.

    Args:
        domain: the guest; it is closed with the source.
        scratch: folder for scratch files and the NBD socket; QEMU must be able to use it. None: one
            that only this user writes to (`place.default_scratch`).
        scratch_limit: bytes that a point's scratch files may take; None: as much as the file system
            has, less a reserve.
        freezer: has the guest's file systems frozen for the moment of a point; None: they are not.
    """

    def __init__(
        self,
        domain: Domain,
        scratch: Path | None = None,
        scratch_limit: int | None = None,
        freezer: Freezer | None = None,
    ) -> None:
        self.scratch = scratch or default_scratch()
        check_path(self.scratch)
        self.scratch_limit = scratch_limit
        self.domain = domain
        self.where = self.domain.where
        self._strangers = Strangers()
        self._freezer = freezer

    def close(self) -> None:
        """Let go of libvirt."""
        self.domain.close()

    # ---- the guest -----------------------------------------------------------------------------

    def inventory(self) -> LibvirtInventory:
        """What the guest has now."""
        return take_inventory(self.domain)

    def guest(self) -> str:
        """libvirt's name of the guest."""
        return self.domain.name

    def identity(self) -> GuestIdentity | None:
        """Its UUID, and its name."""
        return identity_of(self.domain)

    def producer(self) -> Mapping[str, str]:
        """The versions of libvirtd and of its QEMU."""
        libvirt, qemu = self.domain.versions()
        return {"libvirt": version_text(libvirt), "qemu": version_text(qemu)}

    def examine(self) -> Report:
        """What libvirt can do, and what the guest has."""
        return examine(self.domain, self.refusal(), self.scratch)

    def refusal(self) -> str | None:
        """Why no point can be taken now; None: one can."""
        if (far := self.domain.far()) is not None:
            return far
        state = self.domain.state()
        if state not in _PRESENT:
            return f"the guest is {state.value}"
        found = self.domain.settled()
        if isinstance(found, Busy):
            return f"{found.operation} has the guest"
        return None

    def check_present(self) -> None:
        """Check that the guest is on, and here.

        Raises:
            SourceError: it is not.
        """
        self.domain.check_here()
        state = self.domain.state()
        if state not in _PRESENT:
            raise SourceError(
                f"the guest is {state.value}",
                where=self.where,
                hint="try again when that has ended",
                busy=True,
            )

    def check_ready(self) -> None:
        """Check that the guest is on, and that no other operation has it.

        Raises:
            SourceError: a point cannot be taken now.
        """
        self.check_present()
        found = self.domain.settled()
        if isinstance(found, Busy):
            raise SourceError(
                f"{found.operation} has the guest",
                where=self.where,
                hint="try again when that has ended",
                busy=True,
            )
        if found is not None and folder_of(found) is None:
            raise SourceError(
                "a backup that is not fleece's has the guest (virsh backup-dumpxml shows it)",
                where=self.where,
                hint="wait for its end; if its program died, virsh domjobabort ends it",
                busy=True,
            )

    def check_needs(self) -> None:
        """Nothing: what a point needs of this host, libvirt has."""

    # ---- what was written ----------------------------------------------------------------------

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence of the chain's checkpoints; 0: there is none."""
        return max((0, *(n.sequence for n in checkpoints.of_chain(self.domain, chain_id))))

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether the point's checkpoint tells what was written on a disk since."""
        name = PointName(chain_id, sequence, point)
        return checkpoints.written_since(self.domain, of_kind(disk, LibvirtDisk), name, others)

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Points are pulled: from QEMU, or where that is not safe from files that it has written.

        Raises:
            UsageError: they are to be pushed.
            PointError: a disk must not be pulled from QEMU, as it is wished.
        """
        if wish is TransportWish.PUSH:
            raise UsageError("libvirt pushes to no NBD server", where=self.where)
        if wish is TransportWish.PULL and (disk := self._unsafe(disks)) is not None:
            raise PointError(
                f"disk {disk.name} cannot be pulled: an iothread serves it, and its QEMU ends, and "
                "the guest with it, when an NBD client of such a disk is lost; QEMU 8.2.3 mended "
                "that",
                where=self.where,
                hint="leave --transport out: libvirt then writes the point into files first",
            )
        return Chosen(Transport.PULL, partial=self._unsafe(disks) is not None)

    def _unsafe(self, disks: Sequence[Disk]) -> LibvirtDisk | None:
        """A disk whose QEMU ends when a client is lost; None: there is none."""
        _, qemu = self.domain.versions()
        return next(
            (d for disk in disks if lost_client_kills(d := of_kind(disk, LibvirtDisk), qemu)), None
        )

    def bitmaps(self) -> list[KeptBitmap]:
        """The bitmaps of our checkpoints, by disk, chain and age.

        Raises:
            SourceError: the guest is on another host, where its images can be told apart.
        """
        self.domain.check_here()
        disks = {disk.name: disk for disk in self.inventory().disks}
        found = []
        for text in self.domain.checkpoints():
            name = PointName.parse(text)
            told = None if name is None else self.domain.checkpoint(text)
            if name is None or told is None:
                continue
            for disk in told.images:
                found.append(
                    KeptBitmap(
                        disk,
                        name.chain_id,
                        name.sequence,
                        name.point,
                        text,
                        "recording" if disk in told.sizes else "inconsistent",
                        told.sizes.get(disk, 0),
                        GRANULARITY,
                        disk in disks and is_of(told, disks[disk]),
                    )
                )
        return sorted(found, key=lambda one: (one.disk, one.chain_id, one.sequence))

    def has_point(self, chain_id: str) -> bool:
        """Whether a point of this chain lives, or an interrupted one's job."""
        found = self.domain.settled()
        folder = None if found is None or isinstance(found, Busy) else folder_of(found)
        named = None if folder is None else FolderName.parse(folder.name)
        return named is not None and named.chain_id == chain_id

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Delete a checkpoint, with its bitmaps on all disks; one that is gone already is fine.

        Raises:
            SourceError: libvirt refuses.
        """
        self.check_present()
        if PointName.parse(name) is not None:
            checkpoints.delete(self.domain, name)

    # ---- what interrupted runs left ------------------------------------------------------------

    def release(self) -> Iterator[Removed]:
        """Let a guest go on that an interrupted run left frozen, or its full scratch stopped.

        Raises:
            SourceError: the guest is on another host; or, at the end, that failed.
        """
        self.domain.check_here()
        tried = Attempts()
        with tried.step():
            yield from self._thaw_dead()
        if self.domain.is_active() and self.domain.state() is State.IO_ERROR:
            with tried.step():
                yield from self._take_down_dead_job()
        tried.settle(SourceError)

    def _thaw_dead(self) -> Iterator[Removed]:
        """Thaw what interrupted backups left frozen. A freeze does not outlive the guest's run."""
        for work in work_folders(self.scratch, PREFIX, Strangers()):
            if work.holder() != holder_of(self.domain) or work.is_held():
                continue
            note = Note(work, FROZEN)
            if note.read() is not None:
                if self.domain.is_active():
                    thaw(self.domain)
                    yield Removed("freeze of the guest", self.where)
                note.drop()

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Take down what interrupted backups left: the job, of whatever chain, and work folders.

        libvirt has one job for a guest at most, which keeps the owner from snapshots, saves and
        more; so a dead one goes, of whatever chain. A point whose engine lives is left alone: that
        is told by a lock in its work folder, on the guest's host.

        Raises:
            SourceError: the guest is on another host; or, at the end, something cannot be taken
                down.
        """
        self.domain.check_here()
        tried = Attempts()
        with tried.step():
            yield from self._thaw_dead()
        with tried.step():
            yield from self._take_down_dead_job()
        own = PREFIX if chain_id is None else f"{PREFIX}{chain_id}-"
        self._strangers = Strangers()
        with tried.step():
            for work in work_folders(self.scratch, own, self._strangers):
                if work.holder() == holder_of(self.domain) and not work.is_held():
                    yield from self._remove(work)
        tried.settle(SourceError)

    def _take_down_dead_job(self) -> Iterator[Removed]:
        if not self.domain.is_active():
            return
        found = self.domain.settled()
        folder = None if found is None or isinstance(found, Busy) else folder_of(found)
        if folder is None:
            return
        work = believed(folder, Strangers())
        with contextlib.ExitStack() as stack:
            if work is not None:
                stack.enter_context(work)
            if may_be_held(folder) if work is None else work.is_held():
                return
            yield from take_down_job(self.domain, folder, resume=True)
            if work is not None:
                yield from remove_folder(work)

    def _remove(self, work: WorkFolder) -> Iterator[Removed]:
        """Remove an interrupted backup's work folder, unless a job uses it."""
        found = self.domain.settled() if self.domain.is_active() else None
        if found is None or isinstance(found, Busy) or folder_of(found) != work.path:
            yield from remove_folder(work)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user should know of the scratch folder, since `recover` looked."""
        unsafe = None
        with contextlib.suppress(OSError), Folder.open(os.path.realpath(self.scratch)) as place:
            unsafe = doubt(place)
        return tuple(text for text in (unsafe, self._strangers.warning) if text)

    # ---- points --------------------------------------------------------------------------------

    def take(self, request: Request) -> AbstractContextManager[LibvirtPoint]:
        """Take a point of some disks, all in one transaction; the context's end takes it down.

        Raises:
            PointError: it is impossible; nothing was changed.
            SourceError: the guest is not here, or will not stay, or another backup has it.
        """
        self.check_ready()
        if self.domain.settled() is not None:
            raise SourceError(
                "another backup by fleece has the guest, and libvirt takes one at a time",
                where=self.where,
                hint="wait for its end",
                busy=True,
            )
        unsafe = self._unsafe([want.disk for want in request.wanted])
        kind = LibvirtPoint if unsafe is None else PushedPoint
        plan = self._plan(request)
        return living_point(plan, self.scratch, self.scratch_limit, self._freezer, kind)

    def _plan(self, request: Request) -> PointPlan:
        return PointPlan(
            self.domain,
            FolderName(request.chain_id, request.point),
            PointName(request.chain_id, request.sequence, request.point)
            if request.rotate
            else None,
            tuple(_planned(want) for want in request.wanted),
        )

    def unresumable(self) -> str | None:
        """Why no point can be resumed: of none is it known whether the guest was frozen."""
        if self._freezer is not None and self._freezer.required:
            return "whether the guest was frozen for it is not known, and that is required"
        return None

    def adopt(self, request: Request) -> AbstractContextManager[LibvirtPoint]:
        """Resume a point that an interrupted run took; the context's end takes it down.

        Raises:
            PointError: it is not there as it was taken, to the last part; nothing was changed.
            SourceError: the guest is not here, or will not stay.
        """
        self.check_ready()
        return adopted_point(self._plan(request), self.scratch_limit, self._freezer)


def _planned(want: Wanted) -> PlannedDisk:
    if want.since is None:
        return PlannedDisk(of_kind(want.disk, LibvirtDisk), None)
    (name,) = want.since.parts
    return PlannedDisk(of_kind(want.disk, LibvirtDisk), name, want.since.changed)
