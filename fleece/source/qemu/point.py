"""A living point of a guest's disks: held, exported, watched, taken down.

The way it is done, and the order, is docs/internals/architecture.rst, "The point in time".
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fleece.attempts import Attempts
from fleece.errors import FleeceError, Interrupted, PointError, SourceError
from fleece.extents import Extents
from fleece.nbd.uri import unix_uri
from fleece.source.base import Export, Machine, Transport
from fleece.source.freeze import TellsOfFreeze
from fleece.source.options import Fleecing
from fleece.source.qemu.agent import AgentError, GuestAgent
from fleece.source.qemu.hold import Entangled, FleecingWay
from fleece.source.qemu.hold_by_filters import FilterFleecing
from fleece.source.qemu.hold_by_jobs import ClassicFleecing
from fleece.source.qemu.machine import machine_of
from fleece.source.qemu.monitor import COMMAND_LIMIT, CommandError, GivenUp, Monitor
from fleece.source.qemu.names import DELTA_BITMAP, PointNames
from fleece.source.qemu.plan import GRANULARITY, PlannedDisk, PointPlan
from fleece.source.qemu.presence import departure
from fleece.source.qemu.processes import process_lives
from fleece.source.qemu.push import PushJobs
from fleece.source.qemu.server import joined
from fleece.source.qemu.teardown import (
    STOPPED_BY_ERROR,
    continue_guest,
    remove_folder,
    run_state,
    server_homes,
    take_down,
    take_down_nodes,
)
from fleece.source.scratch import Scratch, estimate
from fleece.source.workfolder import FROZEN, STOPPED, Note, WorkFolder, held_folder

_FROZEN_LIMIT = 10.0
"""Seconds that the transaction may take while the guest's file systems stand still."""

_POINT_TRIES = 8
_WATCH_EVERY = 0.2

_SCARCE = 256 * 1024 * 1024
"""Bytes of room from which on every little that the scratch can give back counts."""

_WAYS: dict[Fleecing, Callable[[PointPlan], FleecingWay]] = {
    Fleecing.CLASSIC: ClassicFleecing,
    Fleecing.FILTER: FilterFleecing,
}


class QemuPoint(TellsOfFreeze):
    """A living point. `fleece.source.base.Point`.

    Attributes:
        push: starts the jobs that push it; None: it is pulled, from `exports`.
        granularity: `GRANULARITY`.
    """

    granularity = GRANULARITY

    def __init__(
        self,
        plan: PointPlan,
        fleecing: FleecingWay,
        agent: GuestAgent | None = None,
        transport: Transport = Transport.PULL,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._fleecing = fleecing
        self._monitor = plan.monitor
        self._names = plan.names
        self._disks = plan.disks
        self._work = plan.work
        self._scratch = plan.scratch
        self.exports: tuple[Export, ...] = ()
        self._agent = agent
        self.push = PushJobs(plan) if transport is Transport.PUSH else None
        self._committed = False
        self._down = False
        self._watched = 0.0
        self._lost: PointError | None = None
        self.reclaims = fleecing.reclaims
        self.scarce = False
        self._guest_ran = run_state(self._monitor) not in (None, STOPPED_BY_ERROR)

    def check(self) -> None:
        """Raise `PointError` unless all that was read until now was read of the point."""
        if self._lost is not None:  # `watch` has taken out what would tell
            raise self._lost
        self._fleecing.check()
        self._check_guest()

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
            self.look(crossed=crossed)
        except PointError as error:
            self._lost = error
            # At once: the guest goes on writing while the workers end. The first error is the one
            # to tell, and `close` does it again. The server stays: a worker that looks for its
            # lost export would hang QEMU when it stops (`server`).
            with suppress(FleeceError):
                self._take_out(parts=1)
            raise

    def look(self, *, crossed: bool) -> None:
        """Raise `PointError` if the point must be given up; takes nothing down.

        Args:
            crossed: QEMU told that a scratch has grown over its threshold.
        """
        room = self._scratch.room()
        if room.left <= 0:
            raise self._scratch.given_up(room)
        self.scarce = room.left < _SCARCE
        self._fleecing.look(crossed=crossed)
        self._check_guest()
        if self._guest_ran and run_state(self._monitor) == STOPPED_BY_ERROR:
            raise PointError(
                "the guest was stopped by an I/O error; the backup was given up so that "
                "the guest can continue",
                where=self._monitor.path,
                hint="was the scratch full? choose another folder with --scratch",
            )

    def _check_guest(self) -> None:
        """Another QEMU that has the guest writes to the disks past what holds the point."""
        reason = departure(self._monitor)
        if reason is not None:
            raise PointError(
                f"the guest may have left QEMU while the point was read: {reason}",
                where=self._monitor.path,
                hint="back up the QEMU that runs the guest",
            )

    def reclaim(self, disk: str, ranges: Extents) -> None:
        """Let the scratch forget ranges of a disk that are durable, and that nobody reads again."""
        names = [planned.disk.name for planned in self._disks]
        self._fleecing.reclaim(names.index(disk), ranges)

    def machine(self) -> Machine:
        """The guest's machine, as QMP tells it (`machine_of`)."""
        return machine_of(self._monitor)

    def doubt_freeze(self) -> None:
        """An interrupted run took the point, and nothing tells how its freeze went."""
        self._unknown = (
            f"whether the guest was frozen for point {self._names.point} is not known: an "
            "interrupted backup took it"
        )

    def close(self) -> None:
        """Take this point out of QEMU. Its segments stay: the next point needs them.

        Raises:
            SourceError: a part of it is left; every step was tried.
        """
        tried = Attempts()
        if not self._down:
            with tried.step():
                self._take_out()
                self._down = True
        if self._agent is not None and self.freeze.stuck is not None:
            agent, self._agent = self._agent, None
            with tried.step():
                self._thaw_at_last(agent)
        tried.settle(SourceError)

    def _take_out(self, parts: int | None = None) -> None:
        tried = Attempts()
        if self.push is not None:
            with tried.step():
                self.push.end_sink()
        down = take_down(self._monitor, self._names.prefix, self._work)
        with tried.step():
            for _ in itertools.islice(down, parts):
                if self._guest_ran:
                    with tried.step():
                        continue_guest(self._monitor)
        tried.settle(SourceError)

    def _thaw_at_last(self, agent: GuestAgent) -> None:
        """The guest could not be thawed when the point was taken: try again."""
        try:
            agent.thaw()
        except AgentError as error:
            self.freeze.stuck = str(error)
        else:
            self.freeze.stuck = None
            Note(self._work, FROZEN).drop()
            left = Attempts()
            list(remove_folder(self._work, left))
            left.settle(SourceError)

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
            if planned.segment is not None and not planned.disk.segments(self._names.chain_id):
                self._drop(planned, planned.segment.sequence + 1)

    def _drop(self, planned: PlannedDisk, below: int) -> list[str]:
        """Remove this chain's segments with a sequence smaller than `below`; tell of the others."""
        known = planned.disk.segments(self._names.chain_id)
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
        """Make the scratches, take the point, and export it if it is pulled."""
        self._scratch.check_start()
        guess = estimate((planned.disk.size, planned.written) for planned in self._disks)
        self._doubt = self._scratch.doubt(guess)
        for tries_left in range(_POINT_TRIES - 1, -1, -1):
            try:
                self._fleecing.prepare()
                if self.push is not None:
                    self.push.add_views()
                self._take_point()
                break
            except Entangled:
                if not tries_left:
                    raise
                take_down_nodes(self._monitor, self._names.prefix)
                time.sleep(random.uniform(0.01, 0.1))
        if self.push is None:
            self._serve()

    def _take_point(self) -> None:
        if self._agent is None:
            self._fleecing.take(COMMAND_LIMIT)
        else:
            with self._agent.frozen(self.freeze, Note(self._work, FROZEN)):
                self._fleecing.take(_FROZEN_LIMIT)

    def _serve(self) -> None:
        """Have a server, and hold it until the exports are there."""
        scratch = self._work.path.parent
        server = joined(self._monitor, self._work, lambda: server_homes(self._monitor, scratch))
        with server as place:
            self.exports = tuple(
                self._export(number, planned, place) for number, planned in enumerate(self._disks)
            )
        self._fleecing.served(self.exports)

    def _export(self, number: int, planned: PlannedDisk, place: Path) -> Export:
        name = self._names.export(number)
        shown = self._fleecing.export(number)
        self._monitor.execute("block-export-add", {"id": name, "type": "nbd", "name": name} | shown)
        return export_of(planned, name, place, self._fleecing.unit)


def export_of(planned: PlannedDisk, name: str, place: Path, unit: int | None = None) -> Export:
    """How a disk of a point is read.

    Args:
        planned: the disk.
        name: of the export.
        place: the NBD server's socket.
        unit: that no request to read may cross.
    """
    incremental = planned.merged is not None
    return Export(
        disk=planned.disk.name,
        uri=unix_uri(str(place), name),
        size=planned.disk.size,
        dirty_context=f"qemu:dirty-bitmap:{DELTA_BITMAP}" if incremental else None,
        granularity=GRANULARITY if incremental else None,
        unit=unit,
    )


@dataclass(frozen=True)
class Taking:
    """How a source's points are taken and held.

    Attributes:
        scratch: the folder for scratch files; QEMU must be able to write there.
        limit: bytes that the scratch files may take together; None: what their file system has.
        fleecing: how points are held.
        agent: of the guest, to freeze it for the moment of a point; None: it is not frozen.
    """

    scratch: Path
    limit: int | None
    fleecing: Fleecing
    agent: GuestAgent | None


@contextmanager
def living_point(
    monitor: Monitor,
    names: PointNames,
    disks: Sequence[PlannedDisk],
    taking: Taking,
    transport: Transport,
) -> Iterator[QemuPoint]:
    """Take a point; take it down again whatever happens.

    Args:
        monitor: of the QEMU.
        names: of the point's things in QEMU.
        disks: all disks of the point.
        taking: how it is taken and held.
        transport: how it will come out of QEMU; only if it is pulled it gets exports.
    """
    peer = monitor.peer
    with held_folder(taking.scratch, names.prefix, peer.owner, str(peer.pid)) as work:
        plan = PointPlan(monitor, names, tuple(disks), work, Scratch(work, taking.limit))
        point = QemuPoint(plan, _WAYS[taking.fleecing](plan), taking.agent, transport)
        with taken_down(point, monitor, work):
            point.start()
            yield point


@contextmanager
def taken_down(point: QemuPoint, monitor: Monitor, work: WorkFolder) -> Iterator[None]:
    """Take a point down when the context ends, however it does.

    Raises:
        Interrupted: the context was; whether anything is left is told.
        SourceError: the context ended well, and a part of the point is left; all was tried.
    """
    try:
        yield
    except BaseException as error:
        # The first error is the one to tell. What cannot be taken down now is found by its
        # name in the next run.
        left = _end(point, monitor, work)
        if point.freeze.stuck is not None and process_lives(monitor.peer.pid):
            raise SourceError(f"{error}; moreover, {point.freeze.stuck}") from error
        if isinstance(error, Interrupted):
            raise _interrupted(error, left) from error
        raise
    _end(point, monitor, work).settle(SourceError)


def _interrupted(error: Interrupted, left: Attempts) -> FleeceError:
    """An interruption, with what became of the point."""
    given_up = next((each for each in left.failures if isinstance(each, GivenUp)), None)
    if given_up is not None:
        return given_up
    if not left.failures:
        return Interrupted(f"{error.what}; the point was taken down again")
    reasons = "; moreover, ".join(left.texts)
    return Interrupted(
        f"{error.what}, and a part of the point may be left ({reasons}); the next backup removes "
        "it, and so does fleece clean"
    )


def _end(point: QemuPoint, monitor: Monitor, work: WorkFolder) -> Attempts:
    tried = Attempts()
    for step in (point.close, point.abandon):
        with tried.step():
            step()
    if not process_lives(monitor.peer.pid):  # and nothing of the point with it
        for name in (FROZEN, STOPPED):
            with tried.step():
                Note(work, name).drop()
        with tried.step():
            list(remove_folder(work, tried))
    return tried
