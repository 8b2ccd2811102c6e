"""Hold a point by filters: the guest is spared whatever happens, and the scratch shrinks again.

Each disk gets a copy-before-write filter between itself and its device, with a raw scratch file.
When something cannot be copied there, or not in time, QEMU gives up the snapshot and lets the guest
write. What shows the snapshot (`snapshot-access`) is exported; a TRIM of it frees the scratch.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence

from fleece.cancel import CancelToken
from fleece.disk.nbd import patiently
from fleece.errors import PointError
from fleece.extents import Extents
from fleece.nbd.connection import RequestRefused, connected
from fleece.source.base import Export
from fleece.source.qemu.hold import NO_FLUSH, Entangled, new_scratch, refusals
from fleece.source.qemu.inventory import GuestDisk, plugged
from fleece.source.qemu.names import DELTA_BITMAP
from fleece.source.qemu.pause import standing_still
from fleece.source.qemu.plan import Action, PointPlan
from fleece.source.qemu.schema import Schema
from fleece.source.qemu.teardown import plug
from fleece.source.qemu.unseen import add_node
from fleece.source.workfolder import STOPPED, Note

COPY_LIMIT = 4
"""Seconds that a guest's write may wait for a copy. QEMU before 9.1 counts them in 32 bits of
nanoseconds (block/copy-before-write.c, `cbw_timeout_ns`): 5 would be less than one."""

UNIT = 64 * 1024
"""Bytes that a filter with a raw scratch copies at a time. A TRIM must begin and end at a multiple:
at any other place QEMU 7.2 aborts, and the guest with it (seen; `hbitmap_reset` asserts it)."""

_MOST = 1 << 30
"""Bytes of one TRIM."""

_WHOLE_READS = (8, 0, 0)
"""Before it, a read of a snapshot that goes on from a unit that was copied into one that was not
gives what the disk holds now, and so does its block status (`hbitmap_status`, commit a4d5224c2cb6;
seen on 7.2.22). Of one unit both are right."""

_PROBE = 512


class FilterFleecing:
    """A point held by filters. `fleece.source.qemu.hold.FleecingWay`."""

    reclaims = True

    def __init__(self, plan: PointPlan) -> None:
        self._plan = plan
        self._monitor = plan.monitor
        self._names = plan.names
        self.unit = UNIT if plan.monitor.version < _WHOLE_READS else None
        self._exports: tuple[Export, ...] = ()
        self._begun = False

    def prepare(self) -> None:
        """Make the scratches, add them, and a filter for each; none is in the guest's way yet."""
        lack = Schema(self._monitor).filter_lack()
        if lack is not None:
            raise _impossible(f"QEMU cannot hold a point by filters: {lack}", self._monitor.path)
        tops = plugged(self._monitor)
        for number, planned in enumerate(self._plan.disks):
            _check_free(planned.disk, tops)
            self._add_scratch(number, planned.disk.size)
            self._add_guard(number, planned.disk.node)

    def _add_scratch(self, number: int, size: int) -> None:
        name = self._plan.scratch.raw_file(number)
        path = new_scratch(self._plan, name, lambda file: os.ftruncate(file, size))
        add_node(
            self._monitor,
            path,
            {
                "driver": "file",
                "filename": str(path),
                "discard": "unmap",
                "cache": NO_FLUSH,
                "node-name": self._names.overlay_file(number),
            },
        )

    def _add_guard(self, number: int, node: str) -> None:
        self._monitor.execute(
            "blockdev-add",
            {
                "driver": "copy-before-write",
                "node-name": self._names.guard(number),
                "file": node,
                "target": self._names.overlay_file(number),
                "discard": "unmap",
                "on-cbw-error": "break-snapshot",
                "cbw-timeout": COPY_LIMIT,
            },
        )

    def take(self, limit: float) -> None:
        """Put the filters into their devices, of several disks while the guest stands still.

        The new segments begin before and the older ones end after: what is written in between
        counts as changed both in this point and in the next. So no write is lost, and of one disk
        none is missed, even if somebody writes who does not stand still with the guest.
        """
        with refusals(self._monitor, Entangled):
            self._begin_segments(limit)
            with self._one_moment():
                for number, planned in enumerate(self._plan.disks):
                    plug(self._monitor, str(planned.disk.device), self._names.guard(number))
        with refusals(self._monitor, PointError):  # from here on, the older segments may have ended
            self._gather(limit)
            for number in range(len(self._plan.disks)):
                self._add_access(number)

    def _begin_segments(self, limit: float) -> None:
        actions = [each for planned in self._plan.disks for each in planned.begin_segment()]
        if actions and not self._begun:
            self._monitor.transaction(actions, limit)
        self._begun = True

    def _one_moment(self) -> contextlib.AbstractContextManager[None]:
        """In which all disks are those of one moment: of one disk, any is."""
        if len(self._plan.disks) == 1:
            return contextlib.nullcontext()
        return standing_still(self._monitor, Note(self._plan.work, STOPPED))

    def _gather(self, limit: float) -> None:
        actions: list[Action] = []
        for number, planned in enumerate(self._plan.disks):
            node = self._names.overlay_file(number)
            actions += self._plan.end_segments(planned)
            actions += planned.add_delta(node)
            actions += planned.gather_delta(node)
        if actions:
            self._monitor.transaction(actions, limit)

    def _add_access(self, number: int) -> None:
        self._monitor.execute(
            "blockdev-add",
            {
                "driver": "snapshot-access",
                "node-name": self._names.access(number),
                "file": self._names.guard(number),
                "discard": "unmap",
            },
        )

    def export(self, number: int) -> dict[str, object]:
        """The snapshot, which takes a TRIM and no other write; the bitmap of the scratch's node."""
        shown: dict[str, object] = {"node-name": self._names.access(number), "writable": True}
        if self._plan.disks[number].merged is not None:
            shown["bitmaps"] = [
                {"node": self._names.overlay_file(number), "name": DELTA_BITMAP},
            ]
        return shown

    def served(self, exports: Sequence[Export]) -> None:
        """By them it is seen whether the snapshots are whole."""
        self._exports = tuple(exports)

    def look(self, *, crossed: bool) -> None:
        """Raise `PointError` as soon as a snapshot was given up; QEMU does not tell."""
        self.check()

    def check(self) -> None:
        """Raise `PointError` unless every snapshot is whole.

        QEMU keeps the first error of a snapshot for good, and fails every read after it, wherever
        (block/copy-before-write.c, `snapshot_error`). So one read that succeeds now proves all
        that were before. The disk's first unit is never trimmed, and read for this.
        """
        cancel = self._monitor.cancel
        for export in self._exports:
            try:
                patiently(lambda export=export: _probe(export, cancel))  # type: ignore[misc]
            except RequestRefused as error:
                if error.number != errno.EINVAL:
                    raise
                raise PointError(
                    f"the snapshot of disk {export.disk} was given up to spare the guest: what it "
                    f"overwrote could not be copied to the scratch, or not within {COPY_LIMIT} s",
                    where=self._plan.work.path,
                    hint="the next backup loses nothing; choose a folder with room with --scratch",
                ) from error

    def reclaim(self, number: int, ranges: Extents) -> None:
        """Free the scratch of ranges, in whole units. What is written there later is not copied."""
        export = self._exports[number]
        last = export.size // UNIT * UNIT
        starts, ends = ranges.align_in(UNIT, export.size).clip(UNIT, last).split(_MOST)
        pieces = list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))
        if pieces:
            patiently(lambda: _trim(export.uri, pieces, self._monitor.cancel))


def _check_free(disk: GuestDisk, tops: Mapping[str, str]) -> None:
    """Raise `PointError` unless a disk is plugged straight into a device.

    What is between is mostly a job's filter, and goes with the job. A filter of ours above it keeps
    a bitmap on it (QEMU before 9.1), and then QEMU aborts (seen on 7.2: `bdrv_close`).
    """
    top = tops.get(disk.device or "")
    if top is None:
        raise _impossible(
            f"disk {disk.name} cannot be held by a filter: no device of a machine has it, as in "
            "qemu-storage-daemon",
            disk.node,
        )
    if top != disk.node:
        raise _impossible(
            f"disk {disk.name} cannot be held by a filter while another backup or job is at work "
            f"on it (node {top} is above it)",
            disk.node,
        )


def _impossible(what: str, where: object) -> PointError:
    return PointError(what, where=where, hint="--fleecing classic holds a point without filters")


def _probe(export: Export, cancel: CancelToken) -> None:
    with connected(export.uri, cancel=cancel) as connection:
        connection.read(0, min(_PROBE, export.size))


def _trim(uri: str, pieces: Sequence[tuple[int, int]], cancel: CancelToken) -> None:
    with connected(uri, cancel=cancel) as connection:
        for offset, length in pieces:
            connection.trim(offset, length)
