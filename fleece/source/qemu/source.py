"""A running QEMU as a source of points."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from fleece.attempts import Attempts
from fleece.cancel import CancelToken
from fleece.closing import Closing
from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError, SourceError
from fleece.folder import Folder
from fleece.programs import program
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
from fleece.source.options import Fleecing
from fleece.source.place import check_path, default_scratch, doubt
from fleece.source.qemu import teardown as runtime
from fleece.source.qemu.adopt import adopted_disk, adopted_point
from fleece.source.qemu.agent import GuestAgent, thaw_noted
from fleece.source.qemu.doctor import examine
from fleece.source.qemu.inventory import GuestDisk, Inventory, pull_obstacle, take_inventory
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import PointNames
from fleece.source.qemu.pause import let_go_noted
from fleece.source.qemu.plan import PlannedDisk
from fleece.source.qemu.point import QemuPoint, Taking, living_point
from fleece.source.qemu.presence import guest_identity, refuse_absent, refuse_leaving
from fleece.source.qemu.processes import may_be_qemu, process_lives, qemu_of
from fleece.source.qemu.teardown import Unremoved
from fleece.source.qemu.transport import choose
from fleece.source.report import Report
from fleece.source.segments import Segment, next_segment, written_since
from fleece.source.workfolder import (
    FROZEN,
    PREFIX,
    STOPPED,
    Note,
    Strangers,
    WorkFolder,
    believed,
    may_be_held,
    work_folders,
)


class QemuSource(Closing):
    """A QEMU or qemu-storage-daemon, through a QMP monitor that nobody else holds.

    Args:
        socket: path of the monitor's unix socket.
        scratch: folder for scratch files and the NBD socket; QEMU must be able to use it. None: one
            that only this user writes to (`place.default_scratch`).
        scratch_limit: bytes that a point's scratch files may take; a backup that needs more is
            given up. None: as much as the file system has, less a reserve.
        fleecing: how points are held.
        agent: of the guest, which freezes its file systems for the moment of a point.
        cancel: of the run that uses it: once it is set, QEMU has little time for its answers.

    Raises:
        SourceError: the monitor cannot be reached or used.
        UsageError: QEMU cannot be told of the scratch folder, whose path is not UTF-8.
    """

    def __init__(
        self,
        socket: str,
        scratch: Path | None = None,
        scratch_limit: int | None = None,
        fleecing: Fleecing = Fleecing.CLASSIC,
        cancel: CancelToken | None = None,
        agent: GuestAgent | None = None,
    ) -> None:
        self.where = socket
        self.scratch = scratch or default_scratch()
        check_path(self.scratch)
        self.scratch_limit = scratch_limit
        self.fleecing = fleecing
        self.monitor = Monitor(socket, cancel)
        self.agent = None if agent is None else replace(agent, cancel=self.monitor.cancel)
        self._strangers = Strangers()
        self._left: tuple[str, ...] = ()

    def close(self) -> None:
        """Let go of the monitor."""
        self.monitor.close()

    def inventory(self) -> Inventory:
        """What QEMU has now."""
        return take_inventory(self.monitor)

    def guest(self) -> str:
        """QEMU's name of the guest, else the socket's file name without its ending."""
        return self.inventory().guest or Path(self.where).stem

    def identity(self) -> GuestIdentity | None:
        """What tells the guest from others of its name; None: QEMU has neither UUID nor name."""
        return guest_identity(self.monitor)

    def check_present(self) -> None:
        """Check that this QEMU has its guest.

        Raises:
            SourceError: the guest is yet to come, or has left.
        """
        refuse_absent(self.monitor)

    def check_ready(self) -> None:
        """Check that this QEMU has its guest and keeps it, so that a point can be taken.

        Raises:
            SourceError: the guest is yet to come, is leaving or has left.
        """
        self.check_present()
        refuse_leaving(self.monitor)

    def check_needs(self) -> None:
        """See that the programs are there that a point needs.

        Raises:
            UsageError: something is missing; it says what to install.
        """
        if self.fleecing is Fleecing.CLASSIC:
            program("qemu-img")

    def producer(self) -> Mapping[str, str]:
        """QEMU's version."""
        return {"qemu": ".".join(map(str, self.monitor.version))}

    def highest_sequence(self, chain_id: str, disks: Sequence[Disk]) -> int:
        """The highest sequence of the chain's segments on some disks; 0: there is none."""
        return max(
            [
                0,
                *(
                    number
                    for disk in disks
                    for number in of_kind(disk, GuestDisk).segments(chain_id)
                ),
            ]
        )

    def known_since(
        self, disk: Disk, chain_id: str, sequence: int, point: str, others: Collection[str] = ()
    ) -> Since | Unknown:
        """Whether an unbroken line of segments tells what was written since a point."""
        return written_since(of_kind(disk, GuestDisk), chain_id, sequence, point, others)

    def transport(self, wish: TransportWish, disks: Sequence[Disk]) -> Chosen:
        """Whether a point of some disks is pulled or pushed.

        Raises:
            UsageError: it must be pushed, and points are held by filters.
        """
        own = [of_kind(disk, GuestDisk) for disk in disks]
        return choose(own, self.monitor.version, wish, self.fleecing)

    def examine(self) -> Report:
        """What this QEMU can do, and what it has."""
        return examine(self.monitor, self.guest())

    def recover(self, chain_id: str | None = None) -> Iterator[Removed]:
        """Take down what interrupted backups left: exports, jobs, nodes, scratches; no segment.

        A guest that stopped because such a scratch was full is continued.

        A point whose engine lives is left alone; so are other chains' points, if `chain_id` is
        given, what was made in the scratch for another QEMU that lives, and what another user
        made there (`doubts`). Each point is tried, whatever became of the others.

        Raises:
            SourceError: QEMU does not have its guest; or, at the end, something cannot be taken
                down.
        """
        self.check_present()
        yield from self._let_go()
        own = PREFIX if chain_id is None else f"{PREFIX}{chain_id}-"
        left: dict[str, Path | None] = {
            work.path.name: work.path
            for work in self._of_this_qemu(own, Strangers(), chain_id is not None)
        }
        for prefix in runtime.point_prefixes(self.monitor):
            if prefix.startswith(own):
                known = runtime.work_folder(self.monitor, prefix)
                left[prefix] = known or left.get(prefix) or self.scratch / prefix
        tried, unremoved = Attempts(), []
        for prefix, path in sorted(left.items()):
            with tried.step():
                try:
                    yield from self._clean_point(prefix, path)
                except Unremoved as error:
                    unremoved.append(str(error))
        self._left = tuple(unremoved)
        tried.settle(SourceError)

    def _clean_point(self, prefix: str, path: Path | None) -> Iterator[Removed]:
        """Take one point down, unless its engine lives.

        Args:
            prefix: of its names.
            path: where its work folder should be; None: nobody knows.
        """
        tried = Attempts()
        with contextlib.ExitStack() as stack:
            work = None if path is None else believed(path, Strangers())
            if work is not None:
                stack.enter_context(work)
            if path is not None and (may_be_held(path) if work is None else work.is_held()):
                return
            if work is not None:
                with tried.step():
                    yield from self._thaw(work)
            down = runtime.take_down(self.monitor, prefix, work)
            with tried.step():
                for removed in down:
                    yield from removed
                    if removed and runtime.continue_guest(self.monitor):
                        yield Removed("stop of the guest", self.where)
        tried.settle(SourceError)

    def release(self) -> Iterator[Removed]:
        """Let a guest go on that an interrupted run, of whatever chain, left stopped or frozen.

        Raises:
            SourceError: at the end: that failed.
        """
        yield from self._let_go()
        if self.agent is not None and self.agent.thaw_left():
            yield Removed("freeze of the guest", self.agent.path)

    def _let_go(self) -> Iterator[Removed]:
        known = {
            runtime.work_folder(self.monitor, prefix)
            for prefix in runtime.point_prefixes(self.monitor)
        }
        tried = Attempts()
        self._strangers = Strangers()
        found = {work.path for work in self._of_this_qemu(PREFIX, self._strangers)}
        for path in sorted({*filter(None, known), *found}):
            work = believed(path, Strangers())
            if work is not None:
                with work, tried.step():
                    yield from self._let_go_of(work, work.path in known)
        tried.settle(SourceError)

    def _let_go_of(self, work: WorkFolder, known: bool) -> Iterator[Removed]:
        if work.is_held():
            return
        note = Note(work, STOPPED)
        if not known and qemu_of(work) != self.monitor.peer.pid:
            note.drop()  # a stop does not outlive its QEMU
        elif let_go_noted(self.monitor, note):
            yield Removed("stop of the guest", self.where)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user should know of the scratch folder, since `release` or `recover` looked."""
        unsafe = None
        with contextlib.suppress(OSError), Folder.open(os.path.realpath(self.scratch)) as place:
            unsafe = doubt(place)
        return tuple(text for text in (unsafe, self._strangers.warning, *self._left) if text)

    def bitmaps(self) -> list[KeptBitmap]:
        """The segments of all disks, by disk, chain and age."""
        found = [
            KeptBitmap(
                disk.name,
                segment.chain_id,
                segment.sequence,
                segment.point,
                bitmap.name,
                bitmap.state,
                bitmap.count,
                bitmap.granularity,
                segment.is_of(disk.name),
            )
            for disk in self.inventory().disks
            for bitmap in disk.bitmaps
            if (segment := bitmap.segment) is not None
        ]
        return sorted(found, key=lambda one: (one.disk, one.chain_id, one.sequence))

    def has_point(self, chain_id: str) -> bool:
        """Whether anything of a point of this chain is in QEMU."""
        own = f"{PREFIX}{chain_id}-"
        return any(prefix.startswith(own) for prefix in runtime.point_prefixes(self.monitor))

    def drop_bitmap(self, disk: str, name: str) -> None:
        """Remove a bitmap of a disk; one that is gone already is fine.

        Raises:
            SourceError: QEMU refuses, or does not have its guest.
        """
        self.check_present()
        for found in self.inventory().disks:
            if found.name == disk and any(bitmap.name == name for bitmap in found.bitmaps):
                self.monitor.execute(
                    "block-dirty-bitmap-remove", {"node": found.node, "name": name}
                )

    def _thaw(self, work: WorkFolder) -> Iterator[Removed]:
        """Thaw what an interrupted backup left frozen. A freeze does not outlive its QEMU."""
        note = Note(work, FROZEN)
        if qemu_of(work) != self.monitor.peer.pid:
            note.drop()
        elif thaw_noted(note, self.monitor.cancel):
            yield Removed("freeze of the guest", self.where)

    def _of_this_qemu(
        self, start: str, strangers: Strangers, doubtful: bool = False
    ) -> Iterator[WorkFolder]:
        """Our work folders in the scratch that were made for this QEMU or a dead one.

        Args:
            start: what their names begin with.
            strangers: is told of what is none of ours.
            doubtful: those as well that were made for a process that is no QEMU, but stands between
                one and us; or of which that is not known, because their engine died before it wrote
                it, and had nothing in QEMU yet.
        """
        mine = self.monitor.peer.pid
        for work in work_folders(self.scratch, start, strangers):
            if work.holder() is not None and qemu_of(work) is None:
                continue  # it is another kind of source's
            pid = qemu_of(work)
            doubt = pid is None or not may_be_qemu(pid)
            if (doubtful and doubt) or pid == mine or not (pid is None or process_lives(pid)):
                yield work

    def take(self, request: Request) -> AbstractContextManager[QemuPoint]:
        """Take a point of some disks, all in one transaction; the context's end takes it down.

        With `rotate` a new segment begins on each disk.

        Raises:
            PointError: it is impossible; nothing was changed in QEMU.
            SourceError: QEMU does not have its guest, or the guest is being migrated.
        """
        self.check_ready()
        wanted = [(of_kind(want.disk, GuestDisk), _bitmaps(want)) for want in request.wanted]
        if request.transport is Transport.PULL:
            self._refuse_obstacles([disk for disk, _ in wanted])
        for disk, bitmaps in wanted:
            _refuse_foreign(disk, bitmaps or ())
        chain_id, sequence, point = request.chain_id, request.sequence, request.point
        planned = [
            PlannedDisk(
                disk,
                next_segment(disk, chain_id, sequence, point) if request.rotate else None,
                bitmaps,
            )
            for disk, bitmaps in wanted
        ]
        names = PointNames(chain_id, point)
        taking = Taking(self.scratch, self.scratch_limit, self.fleecing, self.agent)
        return living_point(self.monitor, names, planned, taking, request.transport)

    def unresumable(self) -> str | None:
        """Why no point can be resumed: all of them are held by jobs."""
        if self.agent is not None and self.agent.required:
            return "whether the guest was frozen for it is not known, and that is required"
        if self.fleecing is not Fleecing.CLASSIC:
            return "a backup with filters always takes a new point"
        return None

    def adopt(self, request: Request) -> AbstractContextManager[QemuPoint]:
        """Resume a point that an interrupted run took; the context's end takes it down.

        Args:
            request: its disks are in the order in which it was taken.

        Raises:
            PointError: it is not there as it was taken, to the last part; nothing was changed.
            SourceError: QEMU does not have its guest, or the guest is being migrated.
        """
        self.check_ready()
        wanted = [(of_kind(want.disk, GuestDisk), _bitmaps(want)) for want in request.wanted]
        self._refuse_obstacles([disk for disk, _ in wanted])
        chain_id, sequence, point = request.chain_id, request.sequence, request.point
        planned = [
            adopted_disk(disk, chain_id, sequence, point, bitmaps) for disk, bitmaps in wanted
        ]
        names = PointNames(chain_id, point)
        return adopted_point(self.monitor, names, planned, self.scratch_limit, self.agent)

    def _refuse_obstacles(self, disks: Sequence[GuestDisk]) -> None:
        for disk in disks:
            if (reason := pull_obstacle(disk, self.monitor.version)) is not None:
                raise PointError(
                    f"disk {disk.name} cannot be pulled: {reason}",
                    where=self.where,
                    hint="a backup with --transport auto or push can",
                )


def _bitmaps(want: Wanted) -> tuple[str, ...] | None:
    return None if want.since is None else want.since.parts


def _refuse_foreign(disk: GuestDisk, bitmaps: Sequence[str]) -> None:
    """Raise `PointError` if what changed on a disk is to be told by another disk's segment."""
    for name in bitmaps:
        segment = Segment.parse(name)
        if segment is not None and not segment.is_of(disk.name):
            raise PointError(
                f"bitmap {name} was not begun for disk {disk.name}: the disks, or their images, "
                "were exchanged",
                hint="read all of it",
            )
