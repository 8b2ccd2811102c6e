"""Give a point of a source to a consumer: held, exported, and committed only if it is told so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from fleece import events
from fleece.attempts import Attempts
from fleece.cancel import CancelToken
from fleece.delta.header import Mode
from fleece.disk.nbd import NbdDisk
from fleece.engine.backup.pull import open_dirty
from fleece.engine.backup.take import recover, taken
from fleece.engine.export.address import Listening, listening
from fleece.engine.export.handshake import Way
from fleece.engine.export.options import ExportOptions
from fleece.engine.export.plan import Plan, Planned, plan_export, refuse_foreign
from fleece.engine.export.relay import Relay
from fleece.engine.http.door import HttpListening, http_listening
from fleece.engine.http.extents import HttpDisk
from fleece.engine.http.server import HttpServer
from fleece.engine.work.needs import check_backup_needs
from fleece.errors import PointError, SourceError
from fleece.extents import Extents
from fleece.nbd.uri import export_of, socket_of
from fleece.source.base import Export, Point, Source, Transport
from fleece.source.lost import reads_of

_LEFT = "the point is committed, but the source could not be cleaned up"


@dataclass(frozen=True)
class ExportedDisk:
    """One disk of a point that is given to a consumer.

    Attributes:
        disk: its name, and the export's.
        uri: where it is.
        size: in bytes.
        context: the meta context whose dirty ranges are what changed since the base; None: read
            all of it.
        dirty_bytes: how much is to be read, in whole leaves of 64 KiB.
        reason: why it is read so.
        http: its URL, whose ticket is a secret; None: it is not served over HTTP.
    """

    disk: str
    uri: str
    size: int
    context: str | None
    dirty_bytes: int
    reason: str
    http: str | None = None


@dataclass(frozen=True)
class Told:
    """What a consumer is told of its point.

    Attributes:
        token: what the point is committed or dropped by.
        base: the point that this one builds on, as its commit told it; None: on none.
        mode: full or incremental, or mixed if the disks are of both.
        reason: why.
        expires: when the point is dropped, if nobody says commit or drop (RFC 3339, UTC).
        frozen: the guest's file systems stood still for it.
        disks: its disks.
    """

    token: str
    base: str | None
    mode: str
    reason: str
    expires: str
    frozen: bool
    disks: tuple[ExportedDisk, ...]


class Exporting:
    """A living point that a consumer reads. Unless `commit` returns, nothing is committed.

    Attributes:
        told: what the consumer is told.
        committed: it is.
    """

    def __init__(
        self,
        told: Told,
        plan: Plan,
        living: Point,
        clients: contextlib.ExitStack,
        listener: events.Listener,
    ) -> None:
        self.told = told
        self.committed = False
        self._plan = plan
        self._living = living
        self._clients = clients
        self._listener = listener
        self._until = time.monotonic() + plan.ttl

    def check(self) -> None:
        """Look after the guest and the point. Call it a few times a second.

        Raises:
            PointError: the point is lost, or was held for as long as it may be.
        """
        if time.monotonic() > self._until:
            raise PointError(
                "the point was held for as long as it may be; nothing is committed",
                where=self.told.token,
                hint="--ttl allows more",
            )
        self._living.watch()

    def commit(self) -> str:
        """End the point. It can be built on from now on; older ones go, but for those to keep.

        All clients are cut off first, so that whatever they have read is of the point. What cannot
        be cleaned up yet, the listener hears, and the next export cleans up.

        Returns:
            The base that `ExportOptions.since` of a later point takes.

        Raises:
            PointError: the point was lost meanwhile: what was read of it is worth nothing.
        """
        self._clients.close()
        self.check()
        self._living.check()
        self.committed = True
        tried, kept = Attempts(), list[str]()
        with tried.step():
            self._living.close()
        with tried.step():
            kept += self._living.committed(self._plan.oldest)
        for left in (*kept, *tried.texts):
            self._listener(events.Warned(f"{_LEFT}: {left}"))
        return str(self._plan.made)

    def drop(self) -> None:
        """End the point; nothing is committed. So does the end of the context.

        Raises:
            SourceError: a part of it is left.
        """
        self._clients.close()
        self._living.close()


@contextlib.contextmanager
def export(
    source: Source,
    options: ExportOptions | None = None,
    listener: events.Listener = events.ignore,
    cancel: CancelToken | None = None,
) -> Iterator[Exporting]:
    """Take a point and serve it to a consumer for as long as the context lasts.

    Args:
        source: of the guest.
        options: how.
        listener: hears what happens.
        cancel: stops the start.

    Raises:
        UsageError: it makes no sense so, or this kind of source holds no points.
        PointError: a point is impossible.
        SourceError: the guest is not there; or, after a commit, it may still be frozen.
        TargetError: the place where clients are to be let in cannot be made.
    """
    options, token = options or ExportOptions(), cancel or CancelToken()
    options.check()
    refuse_foreign(source)
    held: Exporting | None = None
    failed = False
    try:
        with _begun(source, options, listener, token) as held:
            try:
                yield held
            except BaseException:
                failed = True
                raise
    except SourceError as error:
        if failed or held is None or not held.committed:
            raise
        listener(
            events.Warned(f"the point is committed, but not all of it could be ended: {error}")
        )


@contextlib.contextmanager
def _begun(
    source: Source, options: ExportOptions, listener: events.Listener, cancel: CancelToken
) -> Iterator[Exporting]:
    with contextlib.ExitStack() as doors:
        door = doors.enter_context(listening(options.doors))
        web = None if options.http is None else doors.enter_context(http_listening(options.http))
        plan = _planned(source, options, listener, cancel)
        with taken(source, plan.request, listener) as living, contextlib.ExitStack() as clients:
            disks = tuple(
                _shown(planned, made, door, living, cancel)
                for planned, made in zip(plan.disks, living.exports, strict=True)
            )
            clients.enter_context(Relay(door, {made.disk: _way(made) for made in living.exports}))
            if web is not None:
                disks = clients.enter_context(_over_http(web, disks, living, listener))
            told = _told(plan, disks, frozen=living.frozen)
            held = Exporting(told, plan, living, clients, listener)
            yield held
    if held.committed and living.stuck is not None:
        raise SourceError(f"the point is committed, but {living.stuck}")


def _planned(
    source: Source, options: ExportOptions, listener: events.Listener, cancel: CancelToken
) -> Plan:
    """Plan the point, when what interrupted runs left is gone and all that is needed is there."""
    source.check_ready()
    for removed in source.release():
        listener(events.Leftover(removed.kind, removed.item))
    check_backup_needs(Transport.PULL, cancel)
    source.check_needs()
    plan = plan_export(source, options)
    recover(source, plan.made.chain_id, listener)
    for planned in plan.disks:
        mode = Mode.FULL if planned.since is None else Mode.INCREMENTAL
        listener(events.DiskPlanned(planned.disk.name, mode, planned.reason))
    cancel.check()
    return plan


def _way(made: Export) -> Way:
    """To what a source serves.

    Raises:
        PointError: others cannot read it right.
    """
    socket = socket_of(made.uri)
    if socket is None or made.unit is not None or made.partial:
        raise PointError(
            f"disk {made.disk} is served in a way that only fleece reads right",
            hint="hold the point by backup jobs (classic)",
        )
    return Way(socket, export_of(made.uri))


def _shown(
    planned: Planned, made: Export, door: Listening, living: Point, cancel: CancelToken
) -> ExportedDisk:
    """What the consumer is told of a disk.

    It asks for one context. If only several together tell what changed, it has to read all.
    """
    context, reason = made.dirty_context, planned.reason
    if made.also_dirty or made.changed is not None:
        context, reason = None, "what changed is not told by one bitmap, and a client asks for one"
    dirty = made.size
    with reads_of(living):
        disk, changed = open_dirty(made, cancel=cancel)
        if context is not None:
            dirty = changed.total
    return ExportedDisk(made.disk, door.uri(made.disk), disk.size, context, dirty, reason)


@contextlib.contextmanager
def _over_http(
    door: HttpListening,
    told: tuple[ExportedDisk, ...],
    living: Point,
    listener: events.Listener,
) -> Iterator[tuple[ExportedDisk, ...]]:
    """Show the disks over HTTP as well; gives them with their URLs."""
    ending = CancelToken()
    with reads_of(living):
        disks = [
            _http_disk(made, each.context, ending)
            for made, each in zip(living.exports, told, strict=True)
        ]
    with HttpServer(door, disks, ending, listener) as server:
        yield tuple(replace(each, http=server.urls[each.disk]) for each in told)


def _http_disk(made: Export, context: str | None, ending: CancelToken) -> HttpDisk:
    """An export as HTTP shows it."""
    disk = NbdDisk(made.uri, cancel=ending)
    if context is None:
        return HttpDisk(made.disk, disk)

    def changed(within: Extents) -> Extents:
        found = disk.dirty_extents(context, within)
        if found is None:
            raise PointError(f"the export has no meta context {context}", where=made.uri)
        return found

    return HttpDisk(made.disk, disk, changed)


def _told(plan: Plan, disks: Sequence[ExportedDisk], *, frozen: bool) -> Told:
    expires = datetime.now(UTC) + timedelta(seconds=plan.ttl)
    modes = {"full" if disk.context is None else "incremental" for disk in disks}
    reasons = {disk.reason for disk in disks}
    each = "; ".join(f"{disk.disk}: {disk.reason}" for disk in disks)
    return Told(
        token=plan.made.token,
        base=None if plan.base is None or modes == {"full"} else str(plan.base),
        mode=modes.pop() if len(modes) == 1 else "mixed",
        reason=reasons.pop() if len(reasons) == 1 else each,
        expires=expires.isoformat(timespec="seconds").replace("+00:00", "Z"),
        frozen=frozen,
        disks=tuple(disks),
    )
