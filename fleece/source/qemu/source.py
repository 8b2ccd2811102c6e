"""A running QEMU as a source of points."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fleece.delta.identity import GuestIdentity
from fleece.errors import PointError
from fleece.source.base import Transport
from fleece.source.qemu import runtime
from fleece.source.qemu.adopt import adopted_disk, adopted_point
from fleece.source.qemu.agent import GuestAgent, thaw_noted
from fleece.source.qemu.doctor import Report, examine
from fleece.source.qemu.fleecing import Fleecing
from fleece.source.qemu.inventory import GuestDisk, Inventory, pull_obstacle, take_inventory
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import FROZEN, PREFIX, STOPPED, PointNames, Segment
from fleece.source.qemu.plan import PlannedDisk
from fleece.source.qemu.point import QemuPoint, living_point
from fleece.source.qemu.presence import guest_identity, refuse_absent, refuse_leaving
from fleece.source.qemu.runtime import Removed
from fleece.source.qemu.segments import next_segment
from fleece.source.qemu.still import let_go_noted
from fleece.source.qemu.workfolder import check_path

DEFAULT_SCRATCH = Path("/var/tmp")
"""On disk on most hosts, unlike /tmp: a scratch can grow to the size of what the guest writes."""


@dataclass(frozen=True)
class Wanted:
    """A disk of a point to take: `bitmaps` as `segments.Known` gave them; None: read it all."""

    disk: GuestDisk
    bitmaps: tuple[str, ...] | None


class QemuSource:
    """A QEMU or qemu-storage-daemon, through a QMP monitor that nobody else holds.

    Args:
        socket: path of the monitor's unix socket.
        scratch: folder for scratch files and the NBD socket; QEMU must be able to write there.
        scratch_limit: bytes that a point's scratch files may take; a backup that needs more is
            given up. None: as much as the file system has, less a reserve.
        fleecing: how points are held.

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
    ) -> None:
        self.where = socket
        self.scratch = scratch or DEFAULT_SCRATCH
        check_path(self.scratch)
        self.scratch_limit = scratch_limit
        self.fleecing = fleecing
        self.monitor = Monitor(socket)

    def __enter__(self) -> QemuSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def check_staying(self) -> None:
        """Check that this QEMU has its guest and keeps it, so that a point can be taken.

        Raises:
            SourceError: the guest is yet to come, is leaving or has left.
        """
        self.check_present()
        refuse_leaving(self.monitor)

    @property
    def version(self) -> str:
        """QEMU's version."""
        return ".".join(map(str, self.monitor.version))

    def examine(self) -> Report:
        """What this QEMU can do, and what it has."""
        return examine(self.monitor, self.guest())

    def clean(self, chain: str | None = None) -> Iterator[Removed]:
        """Take down what dead engines left: exports, jobs, nodes, scratches; never a segment.

        A guest that stopped because such a scratch was full is continued.

        A point whose engine lives is left alone; so are other chains' points, if `chain` is given.

        Raises:
            SourceError: QEMU refuses, or does not have its guest.
        """
        self.check_present()
        yield from self.let_go()
        own = PREFIX if chain is None else f"{PREFIX}{chain}-"
        folders = {path.name: path for path in self._work_folders(chain)}
        for prefix in runtime.point_prefixes(self.monitor):
            if prefix.startswith(own):
                known = runtime.work_folder(self.monitor, prefix)
                folders[prefix] = known or folders.get(prefix) or self.scratch / prefix
        for prefix, folder in sorted(folders.items()):
            if not runtime.is_held(folder):
                yield from self._thaw(folder / FROZEN)
                for removed in runtime.take_down(self.monitor, prefix, folder):
                    yield from removed
                    if removed and runtime.continue_guest(self.monitor):
                        yield Removed("stop of the guest", self.where)

    def let_go(self) -> Iterator[Removed]:
        """Let a guest go on that a dead engine, of whatever chain, left stopped."""
        known = {
            runtime.work_folder(self.monitor, prefix)
            for prefix in runtime.point_prefixes(self.monitor)
        }
        for folder in {*known, *self._work_folders(None)}:
            if folder is None or runtime.is_held(folder):
                continue
            if folder not in known and runtime.qemu_of(folder) != self.monitor.peer.pid:
                (folder / STOPPED).unlink(missing_ok=True)  # a stop does not outlive its QEMU
            elif let_go_noted(self.monitor, folder / STOPPED):
                yield Removed("stop of the guest", self.where)

    def has_point(self, chain: str) -> bool:
        """Whether anything of a point of this chain is in QEMU."""
        own = f"{PREFIX}{chain}-"
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

    def _thaw(self, note: Path) -> Iterator[Removed]:
        """Thaw what a dead engine left frozen. A freeze does not outlive its QEMU."""
        if runtime.qemu_of(note.parent) != self.monitor.peer.pid:
            note.unlink(missing_ok=True)
        elif thaw_noted(note):
            yield Removed("freeze of the guest", self.where)

    def _work_folders(self, chain: str | None) -> list[Path]:
        """Points' folders in the scratch: of a chain, or made for this QEMU or a dead one."""
        try:
            scratch = Path(os.path.realpath(self.scratch))
            found = [path for path in scratch.glob(f"{PREFIX}*-*") if path.is_dir()]
        except OSError:
            return []
        if chain is not None:
            return [path for path in found if path.name.startswith(f"{PREFIX}{chain}-")]
        made_for = ((path, runtime.qemu_of(path)) for path in found)
        mine = self.monitor.peer.pid
        return [
            path
            for path, pid in made_for
            if pid is not None and (pid == mine or not runtime.process_lives(pid))
        ]

    def point(
        self,
        chain: str,
        sequence: int,
        point: str,
        wanted: Sequence[Wanted],
        agent: GuestAgent | None = None,
        *,
        rotate: bool = True,
        transport: Transport = Transport.PULL,
    ) -> AbstractContextManager[QemuPoint]:
        """Take a point of some disks, all in one transaction; the context's end takes it down.

        Args:
            chain, sequence, point: of the point.
            wanted: its disks.
            agent: of the guest, to freeze it for the moment of the point; `QemuPoint.freeze` then
                says how that went.
            rotate: begin a new segment on each disk. Without it the segments stay as they are, so
                that nothing can be committed.
            transport: pulled, it has exports; to be pushed, it has `QemuPoint.push`.

        Raises:
            PointError: it is impossible; nothing was changed in QEMU.
            SourceError: QEMU does not have its guest, or the guest is being migrated.
        """
        self.check_staying()
        if transport is Transport.PULL:
            self._refuse_obstacles([want.disk for want in wanted])
        for want in wanted:
            _refuse_foreign(want)
        planned = [
            PlannedDisk(
                want.disk,
                next_segment(want.disk, chain, sequence, point) if rotate else None,
                want.bitmaps,
            )
            for want in wanted
        ]
        names = PointNames(chain, point)
        return living_point(
            self.monitor,
            names,
            planned,
            self.scratch,
            agent,
            self.scratch_limit,
            self.fleecing,
            transport,
        )

    def pull_obstacle(self, disk: GuestDisk) -> str | None:
        """Why a disk must not be pulled from this QEMU; None: it may."""
        return pull_obstacle(disk, self.monitor.version)

    def adopt(
        self, chain: str, sequence: int, point: str, wanted: Sequence[Wanted]
    ) -> AbstractContextManager[QemuPoint]:
        """Go on with a point that a dead engine took; the context's end takes it down.

        Args:
            chain, sequence, point: of the point.
            wanted: its disks, in the order in which it was taken.

        Raises:
            PointError: it is not there as it was taken, to the last part; nothing was changed.
            SourceError: QEMU does not have its guest, or the guest is being migrated.
        """
        self.check_staying()
        self._refuse_obstacles([want.disk for want in wanted])
        planned = [adopted_disk(want.disk, chain, sequence, point, want.bitmaps) for want in wanted]
        names = PointNames(chain, point)
        return adopted_point(self.monitor, names, planned, self.scratch_limit)

    def _refuse_obstacles(self, disks: Sequence[GuestDisk]) -> None:
        for disk in disks:
            if (reason := self.pull_obstacle(disk)) is not None:
                raise PointError(
                    f"disk {disk.name} cannot be pulled: {reason}",
                    where=self.where,
                    hint="a backup with --transport auto or push can",
                )


def _refuse_foreign(want: Wanted) -> None:
    """Raise `PointError` if what changed on a disk is to be told by another disk's segment."""
    for name in want.bitmaps or ():
        segment = Segment.parse(name)
        if segment is not None and not segment.is_of(want.disk.name):
            raise PointError(
                f"bitmap {name} was not begun for disk {want.disk.name}: the disks, or their "
                "images, were exchanged",
                hint="read all of it",
            )
