"""A living point of a guest of libvirt's: a backup job, read over NBD, watched, taken down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleece.attempts import Attempts
from fleece.errors import FleeceError, Interrupted, PointError, SourceError
from fleece.extents import Extents
from fleece.nbd.uri import unix_uri
from fleece.source.base import Export, Machine, PushFeed
from fleece.source.freeze import TellsOfFreeze
from fleece.source.libvirt import checkpoints
from fleece.source.libvirt.connection import Refused
from fleece.source.libvirt.domain import Code, Domain, State
from fleece.source.libvirt.freeze import Freezer, thaw
from fleece.source.libvirt.identity import holder_of
from fleece.source.libvirt.inventory import LibvirtDisk, owner_of
from fleece.source.libvirt.machine import Marks, machine_of, marks_of
from fleece.source.libvirt.names import FolderName, scratch_name, socket_in
from fleece.source.libvirt.takedown import remove_folder, take_down_job
from fleece.source.libvirt.xml import (
    EXPORTED_BITMAP,
    BackedUp,
    BackupJob,
    backup_xml,
    checkpoint_xml,
)
from fleece.source.point_name import PointName
from fleece.source.scratch import Scratch, estimate
from fleece.source.workfolder import FROZEN, Note, WorkFolder, held_folder

GRANULARITY = 64 * 1024
"""Bytes of disk that what changed is told by at most: of libvirt's bitmaps, which are as fine as
their image's clusters are, but no coarser than this."""

_WATCH_EVERY = 0.2
_UNUSABLE = ("No such file or directory", "Permission denied", "Read-only file system")
"""What libvirt says of a scratch file or socket that it, or QEMU, cannot make."""


@dataclass(frozen=True)
class PlannedDisk:
    """A disk of a point.

    Attributes:
        disk: as the inventory shows it.
        since: the checkpoint since which what changed is read; None: all is read.
        written: how much that is, in bytes; None: it is not known.
    """

    disk: LibvirtDisk
    since: str | None
    written: int | None = None


@dataclass(frozen=True)
class PointPlan:
    """A point, before it is taken.

    Attributes:
        domain: the guest.
        folder: the name of its work folder.
        checkpoint: the name of the checkpoint that begins with it; None: none does.
        disks: its disks.
    """

    domain: Domain
    folder: FolderName
    checkpoint: PointName | None
    disks: tuple[PlannedDisk, ...]

    def backed_up(self, work: Path) -> list[BackedUp]:
        """What libvirt is to do with each disk."""
        return [
            BackedUp(planned.disk.name, work / scratch_name(number), planned.since, _export(number))
            for number, planned in enumerate(self.disks)
        ]

    def checkpoint_xml(self) -> str | None:
        """The checkpoint to make; None: none, or no disk can have a bitmap."""
        images = {
            planned.disk.name: planned.disk.images
            for planned in self.disks
            if planned.disk.keeps_bitmaps
        }
        if self.checkpoint is None or not images:
            return None
        return checkpoint_xml(str(self.checkpoint), images)


def _export(number: int) -> str:
    return f"d{number}"


class LibvirtPoint(TellsOfFreeze):
    """A living point. `fleece.source.base.Point`."""

    granularity = GRANULARITY
    push: PushFeed | None = None
    reclaims = False
    scarce = False

    def __init__(
        self, plan: PointPlan, work: WorkFolder, limit: int | None, freezer: Freezer | None = None
    ) -> None:
        super().__init__()
        self._freezer = freezer
        self._plan = plan
        self._domain = plan.domain
        self._work = work
        self._scratch = Scratch(work, limit)
        self._run = plan.domain.run()
        self._guest_ran = plan.domain.state() is State.RUNNING
        self._down = False
        self._committed = False
        self._lost: PointError | None = None
        self._watched = 0.0
        self._marks: Marks | None = None
        self.exports: tuple[Export, ...] = ()

    def doubt_freeze(self) -> None:
        """An interrupted run took the point, and nothing tells how its freeze went."""
        self._unknown = "whether the guest was frozen is not known: an interrupted backup took it"

    def start(self) -> None:
        """Take the point, and have it exported."""
        self._look_for_room()
        self._begin(backup_xml(socket_in(self._work.path), self._plan.backed_up(self._work.path)))
        self.show_exports()
        self.check()

    def _look_for_room(self) -> None:
        self._scratch.check_start()
        self._doubt = self._scratch.doubt(
            estimate((planned.disk.size, planned.written) for planned in self._plan.disks)
        )

    def _begin(self, backup: str) -> None:
        """Begin the job, with the checkpoint, while the guest is frozen if that is asked for."""
        self._marks = marks_of(self._domain)
        with contextlib.ExitStack() as stack:
            if self._freezer is not None:
                stack.enter_context(self._freezer.frozen(self.freeze, Note(self._work, FROZEN)))
            try:
                self._domain.begin(backup, self._plan.checkpoint_xml())
            except Refused as error:
                raise _refused(error) from error

    def show_exports(self) -> None:
        """Make known how each disk is read."""
        socket = str(socket_in(self._work.path))
        self.exports = tuple(
            Export(
                disk=planned.disk.name,
                uri=unix_uri(socket, _export(number)),
                size=planned.disk.size,
                dirty_context=_context(planned),
                granularity=None if planned.since is None else GRANULARITY,
            )
            for number, planned in enumerate(self._plan.disks)
        )

    def check(self) -> None:
        """Raise `PointError` unless all that was read until now was read of the point."""
        if self._lost is not None:
            raise self._lost
        try:
            job = self._domain.job()
        except Refused:  # so does a guest that is being stopped
            self._check_run()
            raise
        self._check_run()
        if job is None or not self._is_ours(job):
            raise self._gone("libvirt has no such backup job any more")
        for planned in self._plan.disks:
            if not self._domain.is_backed_up(planned.disk.name):
                raise self._gone(f"disk {planned.disk.name} has no backup job any more")

    def _check_run(self) -> None:
        if self._domain.run() != self._run:
            raise self._gone("the guest was stopped, or started again")

    def _is_ours(self, job: BackupJob) -> bool:
        made = self._plan.backed_up(self._work.path)
        return job.mode == "pull" and job.disks == {disk.name: disk for disk in made}

    def _gone(self, why: str) -> PointError:
        return PointError(f"the point is lost: {why}", where=self._domain.where)

    def watch(self) -> None:
        """Raise `PointError` before the guest suffers, or at once if it does.

        When the scratch is full QEMU stops the guest, which has then seen no error: `close` lets it
        go on. The job stays until then: QEMU would hang if its server were stopped while a worker
        connects.
        """
        now = time.monotonic()
        if now - self._watched < _WATCH_EVERY:
            return
        self._watched = now
        try:
            self.look()
        except PointError as error:
            self._lost = error
            raise

    def look(self) -> None:
        """Raise `PointError` if the point must be given up; takes nothing down."""
        room = self._scratch.room()
        if room.left <= 0:
            raise self._scratch.given_up(room)
        state = self._domain.state()
        if state is State.IO_ERROR and self._guest_ran:
            raise PointError(
                "the guest was stopped by an I/O error; the backup was given up so that "
                "the guest can continue",
                where=self._domain.where,
                hint="was the scratch full? choose another folder with --scratch",
            )
        if state in (State.OFF, State.AWAY):
            raise self._gone(f"the guest is {state.value}")

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Nothing: libvirt's jobs give nothing back."""

    def machine(self) -> Machine:
        """The guest's machine (`machine_of`)."""
        return machine_of(self._domain, self._marks)

    def close(self) -> None:
        """End the job. A checkpoint of a point that is not committed goes, too.

        Raises:
            SourceError: a part of it is left; every step was tried.
        """
        if self._down:
            return
        tried = Attempts()
        with tried.step():
            list(take_down_job(self._domain, self._work.path, resume=self._guest_ran))
        if tried.failures:
            tried.settle(SourceError)
        self._down = True
        if self.freeze.stuck is not None:
            with tried.step():
                self._thaw_at_last()
        with tried.step():
            list(remove_folder(self._work))
        tried.settle(SourceError)

    def _thaw_at_last(self) -> None:
        """The guest could not be thawed when the point was taken: try again."""
        thaw(self._domain)
        self.freeze.stuck = None
        Note(self._work, FROZEN).drop()

    def committed(self, oldest: int | None = None) -> Sequence[str]:
        """Delete the checkpoints that only older points needed.

        Args:
            oldest: sequence of the oldest point that another backup may build on; None: this one.

        Returns:
            Why some could not be deleted now, a line each; the next committed point does it.
        """
        self._committed = True
        made = self._plan.checkpoint
        if made is None:
            return ()
        below = made.sequence if oldest is None else oldest
        return checkpoints.delete_below(self._domain, made.chain_id, below)

    @property
    def guest_is_on(self) -> bool:
        """Whether there is still a guest that may be frozen."""
        return self._domain.is_active()

    def abandon(self) -> None:
        """Forget a point that was not committed: nothing builds on its checkpoint."""
        if not self._committed and self._plan.checkpoint is not None:
            checkpoints.delete(self._domain, str(self._plan.checkpoint))


def _context(planned: PlannedDisk) -> str | None:
    return None if planned.since is None else f"qemu:dirty-bitmap:{EXPORTED_BITMAP}"


def _refused(error: Refused) -> FleeceError:
    """What a refused begin means."""
    if error.number in (Code.CHECKPOINT_INCONSISTENT, Code.NO_CHECKPOINT):
        return PointError(
            f"a bitmap is gone or broken since it was looked at: {error.reason}",
            where=error.where,
            hint="back up again: it will read all of that disk",
        )
    if error.number == Code.UNSUPPORTED:
        return PointError(f"libvirt cannot back this guest up: {error.reason}", where=error.where)
    if any(text in error.reason for text in _UNUSABLE):
        error.hint = (
            "libvirt and QEMU must be able to use the scratch folder (--scratch); fleece doctor "
            "tells what AppArmor and SELinux need"
        )
    return error


@contextmanager
def living_point(
    plan: PointPlan,
    scratch: Path,
    limit: int | None,
    freezer: Freezer | None = None,
    kind: type[LibvirtPoint] | None = None,
) -> Iterator[LibvirtPoint]:
    """Take a point; take it down again whatever happens.

    Args:
        plan: of it.
        scratch: the folder for scratch files.
        limit: bytes that they may take together; None: what their file system has.
        freezer: of the guest, to freeze it for the moment of the point.
        kind: of the point; None: one that is pulled.
    """
    owner = owner_of(plan.domain.definition())
    holder = holder_of(plan.domain)
    with held_folder(scratch, str(plan.folder), owner, holder) as work:
        point = (kind or LibvirtPoint)(plan, work, limit, freezer)
        with taken_down(point):
            point.start()
            yield point


@contextmanager
def taken_down(point: LibvirtPoint) -> Iterator[None]:
    """Take a point down when the context ends, however it does.

    Raises:
        Interrupted: the context was; whether anything is left is told.
        SourceError: the context ended well, and a part of the point is left; all was tried.
    """
    try:
        yield
    except BaseException as error:
        left = _end(point)
        if point.stuck is not None and point.guest_is_on:
            raise SourceError(f"{error}; moreover, {point.stuck}") from error
        if isinstance(error, Interrupted) and left.texts:
            raise Interrupted(
                f"interrupted; what is left of the point is removed by the next backup: "
                f"{'; '.join(left.texts)}"
            ) from error
        raise
    _end(point).settle(SourceError)


def _end(point: LibvirtPoint) -> Attempts:
    tried = Attempts()
    with tried.step():
        point.close()
    if not tried.failures:
        with tried.step():
            point.abandon()
    return tried
