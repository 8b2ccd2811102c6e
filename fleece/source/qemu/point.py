"""Take a point of a guest's disks: one transaction, then an export of each.

The way it is done, and the order, is docs/architecture.rst, "The point in time".
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fleece.errors import FleeceError, PointError, SourceError
from fleece.nbd.uri import unix_uri
from fleece.programs import program
from fleece.source.base import Export
from fleece.source.qemu.agent import AgentError, Freeze, GuestAgent
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.monitor import COMMAND_LIMIT, CommandError, Monitor
from fleece.source.qemu.names import DELTA_BITMAP, FROZEN, LOCK, SOCKET, PointNames, Segment
from fleece.source.qemu.runtime import (
    STOPPED_BY_ERROR,
    continue_guest,
    process_lives,
    remove_folder,
    run_state,
    server_homes,
    take_down,
    take_down_nodes,
)
from fleece.source.qemu.scratch import Scratch, estimate
from fleece.source.qemu.server import joined

GRANULARITY = 64 * 1024
"""Bytes of disk per bit of a segment: the leaf size, and QEMU's smallest unit of fleecing."""

_FROZEN_LIMIT = 10.0
"""Seconds that the transaction may take while the guest's file systems stand still."""

_POINT_TRIES = 8
_CONFLICT = "Permission conflict"
_LONGEST_SOCKET = 107
_CHECK_TRIES = 50
_WATCH_EVERY = 0.2
_LEAST_SHARE = 1024 * 1024


@dataclass(frozen=True)
class PlannedDisk:
    """A disk of a point.

    Attributes:
        disk: as the inventory shows it.
        segment: the new one, which records from the point on; None: the segments stay as they are.
        merged: the bitmaps whose union is what changed on it; None: read it all.
    """

    disk: GuestDisk
    segment: Segment | None
    merged: tuple[str, ...] | None


class _Entangled(PointError):
    """Another job began on a disk after its scratch was added, and came between the two.

    QEMU has put that job's filter above the disk for all who use it, our scratch too; a filter of
    ours would then lie below and above it. It refuses that. A scratch added anew lies right.
    """


class QemuPoint:
    """A living point. `fleece.source.base.Point`."""

    def __init__(
        self,
        monitor: Monitor,
        names: PointNames,
        disks: Sequence[PlannedDisk],
        folder: Path,
        agent: GuestAgent | None = None,
        limit: int | None = None,
    ) -> None:
        self._monitor = monitor
        self._names = names
        self._disks = tuple(disks)
        self._folder = folder
        self._home = folder
        self.exports: tuple[Export, ...] = ()
        self.freeze = Freeze()
        self._agent = agent
        self._scratch = Scratch(folder, limit)
        self._doubt: str | None = None
        self._committed = False
        self._down = False
        self._watched = 0.0
        self._guest_ran = run_state(monitor) not in (None, STOPPED_BY_ERROR)

    def check(self) -> None:
        """Raise `PointError` unless every fleecing job still runs.

        When a job ends while its export lives, the export silently shows live data.
        """
        wanted = {self._names.job(number) for number in range(len(self._disks))}
        for _ in range(_CHECK_TRIES):
            jobs = {job["id"]: job for job in self._monitor.execute("query-jobs")}
            status = {jobs[name]["status"] if name in jobs else "gone" for name in wanted}
            if status == {"running"}:
                return
            if not status <= {"running", "paused"}:
                break
            time.sleep(0.02)  # a drain pauses every job for a moment
        raise PointError(
            f"the point was lost: a fleecing job is {', '.join(sorted(status))}",
            where=self._monitor.path,
            hint="run the backup again",
        )

    def watch(self) -> None:
        """Raise `PointError` before the guest suffers, or at once if it does.

        When the scratch is full QEMU fails the guest's write, and with the default error policy
        stops the guest. The guest has then seen no error: `close` lets it go on.
        """
        now = time.monotonic()
        crossed = self._monitor.threshold_crossed()
        if now - self._watched < _WATCH_EVERY and not crossed:
            return
        self._watched = now
        try:
            self._look(crossed)
        except PointError:
            # At once: the guest goes on writing while the workers end. The first error is the one
            # to tell, and `close` is called again.
            with suppress(FleeceError):
                self.close()
            raise

    def _look(self, crossed: bool) -> None:
        room = self._scratch.room()
        if room.left <= 0:
            raise self._scratch.given_up(room)
        if crossed:
            self._set_thresholds()
        if self._guest_ran and run_state(self._monitor) == STOPPED_BY_ERROR:
            raise PointError(
                "the guest was stopped by an I/O error; the backup gave up to let it go on",
                where=self._monitor.path,
                hint="was the scratch full? choose another folder with --scratch",
            )

    def _set_thresholds(self) -> None:
        """Have QEMU tell when a scratch has taken its share of half the room that is left."""
        share = max(_LEAST_SHARE, self._scratch.room().left // (2 * len(self._disks)))
        for number in range(len(self._disks)):
            arguments = {
                "node-name": self._names.overlay_file(number),
                "write-threshold": self._scratch.length(number) + share,
            }
            self._monitor.execute("block-set-write-threshold", arguments)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of how the point was taken."""
        trouble = self.freeze.trouble
        loose = None if trouble is None else f"the guest was not frozen: {trouble}"
        return tuple(text for text in (self._doubt, loose, self.freeze.stuck) if text)

    def close(self) -> None:
        """Take this point out of QEMU. Its segments stay: the next point needs them."""
        if not self._down:
            take_down(self._monitor, self._names.prefix, self._folder)
            if self._guest_ran:
                continue_guest(self._monitor)
            self._down = True
        if self._agent is not None and self.freeze.stuck is not None:
            agent, self._agent = self._agent, None
            self._thaw_at_last(agent)

    def _thaw_at_last(self, agent: GuestAgent) -> None:
        """The guest could not be thawed when the point was taken: try again."""
        try:
            agent.thaw()
        except AgentError as error:
            self.freeze.stuck = str(error)
        else:
            self.freeze.stuck = None
            (self._folder / FROZEN).unlink(missing_ok=True)
            list(remove_folder(self._folder))

    def committed(self, oldest: int | None = None) -> tuple[str, ...]:
        """Drop the segments that only older points needed.

        Args:
            oldest: sequence of the oldest point that another backup may build on; None: this one.

        Returns:
            Why some could not be dropped now, a line each; the next committed point drops them.
        """
        self._committed = True
        kept = [
            self._drop(planned, planned.segment.sequence if oldest is None else oldest)
            for planned in self._disks
            if planned.segment is not None
        ]
        return tuple(itertools.chain(*kept))

    def abandon(self) -> None:
        """Forget a point that was not committed.

        A disk that has no usable segment of an older point keeps none: nothing builds on it.
        """
        if self._committed:
            return
        for planned in self._disks:
            if planned.segment is not None and not planned.disk.segments(self._names.chain):
                self._drop(planned, planned.segment.sequence + 1)

    def _drop(self, planned: PlannedDisk, below: int) -> list[str]:
        """Remove this chain's segments with a sequence smaller than `below`; tell of the others."""
        known = planned.disk.segments(self._names.chain)
        names = [bitmap.name for sequence, bitmap in known.items() if sequence < below]
        if planned.segment is not None and planned.segment.sequence < below:
            names.append(planned.segment.bitmap)
        kept = []
        for name in names:
            try:
                self._monitor.execute(
                    "block-dirty-bitmap-remove", {"node": planned.disk.node, "name": name}
                )
            except CommandError as error:
                if "not found" not in error.reason:
                    kept.append(f"disk {planned.disk.name} keeps an old bitmap: {error.reason}")
        return kept

    def start(self) -> None:
        """Make the scratches, take the point, export it."""
        self._scratch.check_start()
        guess = estimate((planned.disk, planned.merged) for planned in self._disks)
        self._doubt = self._scratch.doubt(guess)
        for tries_left in range(_POINT_TRIES - 1, -1, -1):
            for number, planned in enumerate(self._disks):
                self._add_scratch(number, planned.disk)
            self._set_thresholds()
            try:
                self._take_point()
                break
            except _Entangled:
                if not tries_left:
                    raise
                take_down_nodes(self._monitor, self._names.prefix)
                time.sleep(random.uniform(0.01, 0.1))
        with ExitStack() as stack:
            self._start_server(stack)
            self.exports = tuple(self._export(n, planned) for n, planned in enumerate(self._disks))

    def _take_point(self) -> None:
        if self._agent is None:
            self._take(COMMAND_LIMIT)
        else:
            with self._agent.frozen(self.freeze, self._folder / FROZEN):
                self._take(_FROZEN_LIMIT)

    def _take(self, limit: float) -> None:
        actions = [
            action
            for number, planned in enumerate(self._disks)
            for action in self._actions(number, planned)
        ]
        try:
            self._monitor.transaction(actions, limit)
        except CommandError as error:
            family = _Entangled if _CONFLICT in error.reason else PointError
            raise family(
                f"QEMU refused the point: {error.reason}", where=self._monitor.path
            ) from error

    def _add_scratch(self, number: int, disk: GuestDisk) -> None:
        path = self._scratch.file(number)
        done = subprocess.run(
            [program("qemu-img"), "create", "-q", "-f", "qcow2", "--", str(path), str(disk.size)],
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise SourceError(
                f"the scratch cannot be made: {done.stderr.decode().strip()}",
                where=path,
                hint="choose another folder with --scratch",
            )
        _give_to(path, self._monitor)
        file = {
            "driver": "file",
            "filename": str(path),
            "discard": "unmap",
            "node-name": self._names.overlay_file(number),
        }
        self._monitor.execute(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": self._names.overlay(number),
                "discard": "unmap",
                "backing": disk.node,
                "file": file,
            },
        )

    def _actions(self, number: int, planned: PlannedDisk) -> Iterator[dict[str, object]]:
        """The actions of one disk: rotate its segments, gather its delta, start its job."""
        disk, overlay = planned.disk, self._names.overlay(number)
        if planned.segment is not None:
            yield from self._rotation(disk, planned.segment)
        if planned.merged is not None:
            yield _action(
                "block-dirty-bitmap-add",
                node=overlay,
                name=DELTA_BITMAP,
                disabled=True,
                granularity=GRANULARITY,
            )
        yield _action(
            "blockdev-backup",
            **{
                "job-id": self._names.job(number),
                "device": disk.node,
                "target": overlay,
                "sync": "none",
                "filter-node-name": self._names.filter(number),
                "auto-dismiss": False,
            },
        )
        if planned.merged is not None:
            # After the job's start: what still records then is merged with all before the point.
            merged = [{"node": disk.node, "name": name} for name in planned.merged]
            yield _action(
                "block-dirty-bitmap-merge", node=overlay, target=DELTA_BITMAP, bitmaps=merged
            )

    def _rotation(self, disk: GuestDisk, segment: Segment) -> Iterator[dict[str, object]]:
        """Begin a segment and end the one before it."""
        yield _action(
            "block-dirty-bitmap-add",
            node=disk.node,
            name=segment.bitmap,
            persistent=disk.persistent_bitmaps,
            granularity=GRANULARITY,
        )
        for bitmap in disk.segments(self._names.chain).values():
            if bitmap.recording and not bitmap.busy:
                yield _action("block-dirty-bitmap-disable", node=disk.node, name=bitmap.name)

    def _start_server(self, stack: ExitStack) -> None:
        """Have a server, and hold it until the exports are there."""
        scratch = self._folder.parent
        server = joined(self._monitor, self._folder, lambda: server_homes(self._monitor, scratch))
        self._home = stack.enter_context(server)

    def _export(self, number: int, planned: PlannedDisk) -> Export:
        name = self._names.export(number)
        arguments: dict[str, object] = {
            "id": name,
            "type": "nbd",
            "node-name": self._names.overlay(number),
            "name": name,
        }
        if planned.merged is not None:
            arguments["bitmaps"] = [DELTA_BITMAP]
        self._monitor.execute("block-export-add", arguments)
        return export_of(planned, name, self._home)


def export_of(planned: PlannedDisk, name: str, home: Path) -> Export:
    """How a disk of a point is read.

    Args:
        planned: the disk.
        name: of the export.
        home: the folder of the NBD server's socket.
    """
    incremental = planned.merged is not None
    return Export(
        disk=planned.disk.name,
        uri=unix_uri(str(home / SOCKET), name),
        size=planned.disk.size,
        dirty_context=f"qemu:dirty-bitmap:{DELTA_BITMAP}" if incremental else None,
        granularity=GRANULARITY if incremental else None,
    )


@contextmanager
def living_point(
    monitor: Monitor,
    names: PointNames,
    disks: Sequence[PlannedDisk],
    scratch: Path,
    agent: GuestAgent | None = None,
    limit: int | None = None,
) -> Iterator[QemuPoint]:
    """Take a point; take it down again whatever happens.

    Args:
        monitor: of the QEMU.
        names: of the point's things in QEMU.
        disks: all disks of the point.
        scratch: the folder for scratch files; QEMU must be able to write there.
        agent: of the guest, to freeze it for the moment of the point.
        limit: bytes that the scratch files may take together; None: what their file system has.
    """
    with _held_folder(scratch, names, monitor) as folder:
        point = QemuPoint(monitor, names, disks, folder, agent, limit)
        with taken_down(point, monitor, folder):
            point.start()
            yield point


@contextmanager
def taken_down(point: QemuPoint, monitor: Monitor, folder: Path) -> Iterator[None]:
    """Take a point down when the context ends, however it does."""
    try:
        yield
    except BaseException as error:
        # The first error is the one to tell. What cannot be taken down now is found by its
        # name in the next run.
        with suppress(FleeceError):
            point.close()
            point.abandon()
        if not process_lives(monitor.peer.pid):
            (folder / FROZEN).unlink(missing_ok=True)
            list(remove_folder(folder))
        elif point.freeze.stuck is not None:
            raise SourceError(f"{error}; moreover, {point.freeze.stuck}") from error
        raise
    point.close()
    point.abandon()


@contextmanager
def _held_folder(scratch: Path, names: PointNames, monitor: Monitor) -> Iterator[Path]:
    """The point's work folder, locked for as long as this process lives."""
    folder = scratch.resolve() / names.prefix
    if len(str(folder / SOCKET)) > _LONGEST_SOCKET:
        raise SourceError(
            "the path is too long for a unix socket",
            where=folder / SOCKET,
            hint="choose a shorter folder with --scratch",
        )
    try:
        folder.mkdir(mode=0o700)
        _give_to(folder, monitor)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SourceError(
            f"the scratch folder cannot be used ({error.strerror})",
            where=scratch,
            hint="choose another one with --scratch",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, str(monitor.peer.pid).encode())
        yield folder
    finally:
        os.close(descriptor)


def _give_to(path: Path, monitor: Monitor) -> None:
    """Let QEMU's user own what QEMU must open, where this process may give it away."""
    if os.geteuid() == 0 and monitor.peer.uid != 0:
        os.chown(path, monitor.peer.uid, monitor.peer.gid)


def _action(kind: str, **data: object) -> dict[str, object]:
    return {"type": kind, "data": data}
