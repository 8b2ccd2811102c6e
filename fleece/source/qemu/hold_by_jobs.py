"""Hold a point by backup jobs: all disks in one transaction, without stopping the guest.

Each disk has a job `sync=none`, which copies what the guest overwrites into a scratch, a qcow2
overlay over the disk. The overlay is what is exported.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence

from fleece.cancel import CancelToken
from fleece.errors import PointError
from fleece.extents import Extents
from fleece.programs import finished, program
from fleece.source.base import Export
from fleece.source.qemu.hold import NO_FLUSH, Entangled, new_scratch, refusals
from fleece.source.qemu.inventory import GuestDisk
from fleece.source.qemu.names import DELTA_BITMAP
from fleece.source.qemu.plan import Action, PlannedDisk, PointPlan, action
from fleece.source.qemu.unseen import add_node

_CHECK_TRIES = 50
_LEAST_SHARE = 1024 * 1024


class ClassicFleecing:
    """A point held by jobs. `fleece.source.qemu.hold.FleecingWay`."""

    reclaims = False
    unit: int | None = None

    def __init__(self, plan: PointPlan) -> None:
        self._plan = plan
        self._monitor = plan.monitor
        self._names = plan.names

    def prepare(self) -> None:
        """Make the scratches and add them."""
        for number, planned in enumerate(self._plan.disks):
            self._add_scratch(number, planned.disk)
        self._set_thresholds()

    def take(self, limit: float) -> None:
        """Take the point in one transaction."""
        actions = [
            each
            for number, planned in enumerate(self._plan.disks)
            for each in self._actions(number, planned)
        ]
        with refusals(self._monitor, Entangled):
            self._monitor.transaction(actions, limit)

    def export(self, number: int) -> dict[str, object]:
        """The overlay, and the bitmap on it."""
        shown: dict[str, object] = {"node-name": self._names.overlay(number)}
        if self._plan.disks[number].merged is not None:
            shown["bitmaps"] = [DELTA_BITMAP]
        return shown

    def served(self, exports: Sequence[Export]) -> None:
        """The jobs say all there is to know."""

    def reclaim(self, number: int, ranges: Extents) -> None:
        """A scratch that the disk's overlay lives in cannot shrink while the job runs."""

    def look(self, *, crossed: bool) -> None:
        """Have QEMU tell again when a scratch grows."""
        if crossed:
            self._set_thresholds()

    def check(self) -> None:
        """Raise `PointError` unless every fleecing job still runs.

        When a job ends while its export lives, the export silently shows live data.
        """
        wanted = {self._names.job(number) for number in range(len(self._plan.disks))}
        for _ in range(_CHECK_TRIES):
            jobs = self._monitor.execute("query-jobs").by("id")
            status = {jobs[name].text("status") if name in jobs else "gone" for name in wanted}
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

    def _set_thresholds(self) -> None:
        """Have QEMU tell when a scratch has taken its share of half the room that is left."""
        scratch, count = self._plan.scratch, len(self._plan.disks)
        share = max(_LEAST_SHARE, scratch.room().left // (2 * count))
        for number in range(count):
            arguments = {
                "node-name": self._names.overlay_file(number),
                "write-threshold": scratch.length(number) + share,
            }
            self._monitor.execute("block-set-write-threshold", arguments)

    def _add_scratch(self, number: int, disk: GuestDisk) -> None:
        name = self._plan.scratch.file(number)
        cancel = self._monitor.cancel
        path = new_scratch(self._plan, name, lambda file: _make_overlay(file, disk.size, cancel))
        file = {
            "driver": "file",
            "filename": str(path),
            "discard": "unmap",
            "cache": NO_FLUSH,
            "node-name": self._names.overlay_file(number),
        }
        add_node(
            self._monitor,
            path,
            {
                "driver": "qcow2",
                "node-name": self._names.overlay(number),
                "discard": "unmap",
                "cache": NO_FLUSH,
                "backing": disk.node,
                "file": file,
            },
        )

    def _actions(self, number: int, planned: PlannedDisk) -> Iterator[Action]:
        """The actions of one disk: rotate its segments, gather its delta, start its job."""
        overlay = self._names.overlay(number)
        yield from planned.begin_segment()
        yield from self._plan.end_segments(planned)
        yield from planned.add_delta(overlay)
        yield action(
            "blockdev-backup",
            **{
                "job-id": self._names.job(number),
                "device": planned.disk.node,
                "target": overlay,
                "sync": "none",
                "filter-node-name": self._names.filter(number),
                "auto-dismiss": False,
            },
        )
        # After the job's start: what still records then is merged with all before the point.
        yield from planned.gather_delta(overlay)


def _make_overlay(descriptor: int, size: int, cancel: CancelToken) -> None:
    """Make an empty file a qcow2 image.

    Raises:
        OSError: it cannot be made; `strerror` is what qemu-img says.
    """
    # By its descriptor: whatever becomes of its name, no other file is written.
    place = f"/proc/{os.getpid()}/fd/{descriptor}"
    words = ["create", "-q", "-f", "qcow2", "--", place, str(size)]
    done = finished([program("qemu-img"), *words], cancel)
    if done.code != 0:
        raise OSError(errno.EIO, done.said)
