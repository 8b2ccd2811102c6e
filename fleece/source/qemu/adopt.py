"""Resume a point whose engine died: only if all of it is in QEMU as it was taken.

What must be there follows from the names (`names.py`). Any doubt is a `PointError`: the point is
then taken down like any other leftover, and a new one costs no more than reading again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fleece.cancel import CancelToken
from fleece.errors import PointError
from fleece.nbd.connection import connected
from fleece.source.base import Export
from fleece.source.qemu.agent import GuestAgent
from fleece.source.qemu.answers import Answer
from fleece.source.qemu.hold_by_jobs import ClassicFleecing
from fleece.source.qemu.inventory import GuestDisk, bitmaps_of, children, error_of
from fleece.source.qemu.monitor import Monitor
from fleece.source.qemu.names import DELTA_BITMAP, PointNames
from fleece.source.qemu.plan import PlannedDisk, PointPlan
from fleece.source.qemu.point import QemuPoint, export_of, taken_down
from fleece.source.qemu.processes import qemu_of
from fleece.source.qemu.teardown import STOPPED_BY_ERROR, run_state, work_folder
from fleece.source.scratch import Scratch
from fleece.source.segments import Bitmap
from fleece.source.workfolder import FROZEN, STOPPED, WorkFolder, held_again


def adopted_disk(
    disk: GuestDisk, chain_id: str, sequence: int, point: str, bitmaps: tuple[str, ...] | None
) -> PlannedDisk:
    """A disk of a point that was taken before, as it was planned then.

    Args:
        disk: as the inventory shows it now, the point's own segment among its bitmaps.
        chain_id, sequence, point: of the point.
        bitmaps: whose union is what was written since the parent, until now; None: all is read.

    Raises:
        PointError: the disk has no segment of that point that records since then.
    """
    found = disk.segments(chain_id).get(sequence)
    segment = None if found is None else found.segment
    if found is None or segment is None or segment.point != point:
        raise PointError(f"disk {disk.name} has no bitmap of it")
    if not segment.is_of(disk.name):
        raise PointError(f"disk {disk.name} has the bitmap of another disk: they were exchanged")
    if sequence != max(disk.segments(chain_id)):
        raise PointError(f"disk {disk.name} has a bitmap of a later point")
    if found.inconsistent or found.busy or not found.recording:
        raise PointError(f"bitmap {found.name} is {found.state}")
    before = tuple(bitmap for bitmap in disk.bitmaps if bitmap.name != found.name)
    merged = None if bitmaps is None else tuple(name for name in bitmaps if name != found.name)
    return PlannedDisk(replace(disk, bitmaps=before), segment, merged)


@contextmanager
def adopted_point(
    monitor: Monitor,
    names: PointNames,
    disks: Sequence[PlannedDisk],
    limit: int | None,
    agent: GuestAgent | None = None,
) -> Iterator[QemuPoint]:
    """Take an interrupted backup's point over; take it down when the context ends, however it does.

    Args:
        monitor: of the QEMU.
        names: of the point's things in QEMU.
        disks: all disks of the point.
        limit: bytes that the scratch files may take together; None: what their file system has.
        agent: that is asked to freeze the guest, as nobody knows whether it did for this point.

    Raises:
        PointError: on entry: something of it is not as it was made. It is left as it is.
    """
    with _held_again(monitor, names) as work:
        plan = PointPlan(monitor, names, tuple(disks), work, Scratch(work, limit))
        point = QemuPoint(plan, ClassicFleecing(plan))
        _check_whole(monitor, names, disks, work)
        point.check()
        point.look(crossed=False)
        if agent is not None:
            point.doubt_freeze()
        point.exports = tuple(
            export_of(planned, names.export(number), work.socket)
            for number, planned in enumerate(disks)
        )
        for export in point.exports:
            _check_export(export, monitor.cancel)
        with taken_down(point, monitor, work):
            yield point


@contextmanager
def _held_again(monitor: Monitor, names: PointNames) -> Iterator[WorkFolder]:
    """Hold the lock of an interrupted backup's work folder; it must be complete, of this QEMU."""
    place = work_folder(monitor, names.prefix)
    if place is None:
        raise PointError("nothing of it is in QEMU")
    with held_again(place) as work:
        noted = work.folder.has(FROZEN) or work.folder.has(STOPPED)
        if noted or work.foreign or qemu_of(work) != monitor.peer.pid:
            raise PointError("its work folder is not as it was made", where=place)
        yield work


def _check_whole(
    monitor: Monitor, names: PointNames, disks: Sequence[PlannedDisk], work: WorkFolder
) -> None:
    """Raise `PointError` unless QEMU has all parts of the point, and no other of its name."""
    nodes = _ours(monitor.execute("query-named-block-nodes"), "node-name", names)
    if names.guard(0) in nodes:
        raise PointError(
            "it is held by filters, and what the store has of it may be gone from there"
        )
    if run_state(monitor) == STOPPED_BY_ERROR:
        raise PointError("the guest was stopped by an I/O error")
    numbers = range(len(disks))
    jobs = _ours(monitor.execute("query-jobs"), "id", names)
    nodes = _ours(monitor.execute("query-named-block-nodes"), "node-name", names)
    if names.view(0) in nodes:
        raise PointError("it was being pushed, and a push cannot be resumed")
    _same("jobs", set(jobs), {names.job(number) for number in numbers})
    if any(job.text("type") != "backup" or error_of(job) is not None for job in jobs.values()):
        raise PointError("a fleecing job has failed")
    exports = _ours(monitor.execute("query-block-exports"), "id", names)
    shown = {
        (name, item.text("node-name"), item.flag("shutting-down")) for name, item in exports.items()
    }
    _same("exports", shown, {(names.export(n), names.overlay(n), False) for n in numbers})
    made = (names.overlay, names.overlay_file, names.filter)
    _same("nodes", set(nodes), {name(number) for name in made for number in numbers})
    graph = children(monitor)
    for number, planned in enumerate(disks):
        overlay, file = names.overlay(number), names.overlay_file(number)
        filtered = {"file": planned.disk.node, "target": overlay}
        _same("filters", graph.get(names.filter(number)), filtered)
        _same("scratches", graph.get(overlay), {"file": file, "backing": planned.disk.node})
        path = str(work.path / f"s{number}.qcow2")
        _same("scratches' files", nodes[file].text("file"), path)
        _check_bitmap(bitmaps_of(nodes[overlay]), planned)


def _ours(items: Answer, key: str, names: PointNames) -> dict[str, Answer]:
    """What QEMU lists under the point's names, by name."""
    return {name: item for name, item in items.by(key).items() if name.startswith(names.prefix)}


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise PointError(f"its {what} are not as they were made")


def _check_bitmap(bitmaps: Sequence[Bitmap], planned: PlannedDisk) -> None:
    """The gathered bitmap must be there, frozen, if the point has one."""
    wanted = [] if planned.merged is None else [DELTA_BITMAP]
    _same("bitmaps", [bitmap.name for bitmap in bitmaps], wanted)
    if any(bitmap.recording or bitmap.inconsistent for bitmap in bitmaps):
        raise PointError("its bitmap is not as it was made")


def _check_export(export: Export, cancel: CancelToken) -> None:
    """Raise `SourceError` or `PointError` unless an export can be read as it must be."""
    contexts = () if export.dirty_context is None else (export.dirty_context,)
    with connected(export.uri, contexts, cancel) as connection:
        if connection.size != export.size or connection.contexts != contexts:
            raise PointError("its exports are not as they were made", where=export.uri)
