"""The push of a point: jobs in QEMU that copy from the point's scratches to an NBD sink.

Nothing of it is in the guest's way. The guest's writes wait for the fleecing job, which copies to
the local scratch, and never for the sink: a push job reads the scratch through a view that nobody
writes through. docs/internals/architecture.rst, "Push", has the reasons and what was measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fleece.errors import PointError
from fleece.extents import Extents
from fleece.source.qemu.answers import known
from fleece.source.qemu.inventory import bitmaps_of, error_of
from fleece.source.qemu.monitor import CommandError
from fleece.source.qemu.names import DELTA_BITMAP
from fleece.source.qemu.plan import GRANULARITY, PointPlan
from fleece.source.workfolder import SINK

_REQUESTS = 4
"""Requests of up to 1 MiB that a job has in flight. A drain of the disk waits for all of them, so
that a slow sink should have few; without a bound QEMU has 64."""

_WINDOW_BITS = 1 << 23


class PushJobs:
    """The push jobs of one point.

    A disk of which the plan knows what changed is pushed so far, else all of it.

    Args:
        plan: of the point, which is held by jobs.

    Attributes:
        socket: where the sink must listen. The export of the nth disk is named `n`.
        rate: bytes per second that all jobs may read together; None: any. Set it before the start.
        end_sink: ends the sink at once. It is called before the jobs are taken down: what they
            wait for then fails, and nothing waits for it any more.
    """

    def __init__(self, plan: PointPlan) -> None:
        self._monitor = plan.monitor
        self._names = plan.names
        self._incremental = tuple(planned.merged is not None for planned in plan.disks)
        self._work = plan.work
        self.socket = plan.work.path / SINK
        self.rate: int | None = None
        self.end_sink: Callable[[], None] = lambda: None

    def add_views(self) -> None:
        """Add what the push jobs read, above overlays that nothing uses yet.

        `force-share`, because the job claims that nobody else writes to what it reads, and the
        fleecing job does write to the overlay. Only before that job: on QEMU 7.2 the adding of a
        node waits for what is in flight on its file, without the iothread's lock, and aborts.
        """
        for number in self._numbers:
            self._monitor.execute(
                "blockdev-add",
                {
                    "driver": "raw",
                    "node-name": self._names.view(number),
                    "read-only": True,
                    "force-share": True,
                    "file": self._names.overlay(number),
                },
            )

    def dirty_bytes(self) -> list[int | None]:
        """What will come of each disk: the bytes that its bitmap calls dirty, in whole bits.

        Returns:
            For each disk; None: all of it.
        """
        counts = {
            node.text("node-name"): bitmap.count
            for node in self._monitor.execute("query-named-block-nodes").list()
            for bitmap in bitmaps_of(node)
            if bitmap.name == DELTA_BITMAP
        }
        where = self._monitor.path
        return [
            known(counts, self._names.overlay(number), where) if self._incremental[number] else None
            for number in self._numbers
        ]

    def start(self) -> None:
        """Start to push to the sink, which must listen, and whose channels must be served already.

        QEMU waits for what its jobs have in flight whenever it drains a disk: at the next
        transaction, of whomever.

        Raises:
            PointError: QEMU refused it.
        """
        self._work.give(SINK, self._monitor.peer.owner)
        for number in self._numbers:
            self._add_target(number)
        actions = [action for number in self._numbers for action in self._actions(number)]
        try:
            try:
                self._monitor.transaction(actions)
            except CommandError as error:
                if "x-perf" not in error.reason:
                    raise
                for action in actions:
                    action["data"].pop("x-perf", None)
                self._monitor.transaction(actions)
        except CommandError as error:
            raise PointError(
                f"QEMU refused to push: {error.reason}",
                where=self._monitor.path,
                hint=error.hint,
            ) from error

    def done(self) -> bool:
        """Whether all jobs have ended well.

        Raises:
            PointError: one has not.
        """
        jobs = self._monitor.execute("query-jobs").by("id")
        mine = [jobs.get(self._names.push_job(number)) for number in self._numbers]
        for job in mine:
            reason = "somebody ended it" if job is None else error_of(job)
            if reason is not None:
                raise PointError(
                    f"QEMU's push job failed: {reason}",
                    where=self._monitor.path,
                    hint="run the backup again",
                )
        return all(job is not None and job.text("status") == "concluded" for job in mine)

    def check_received(self, number: int, received: Extents, size: int) -> None:
        """Check that what came of a disk is what had to come: no leaf more, none less.

        Against QEMU's own hash of the bitmap: without an export it cannot be listed.

        Args:
            number: of the disk.
            received: whole leaves (`GRANULARITY`), each of which came once.
            size: of the disk, in bytes.

        Raises:
            PointError: it is not.
        """
        if self._incremental[number]:
            arguments = {"node": self._names.view(number), "name": DELTA_BITMAP}
            told = self._monitor.execute("x-debug-block-dirty-bitmap-sha256", arguments)
            same = told.text("sha256") == bitmap_hash(received, size)
        else:
            same = received == Extents.whole(size)
        if not same:
            raise PointError(
                f"{received.total} bytes came of disk {number}, and they are not what QEMU had to "
                "push",
                where=self._monitor.path,
                hint="run the backup again; if it comes again, please report it",
            )

    def end(self) -> None:
        """Let go of the sink when all jobs have ended: the connections are closed in order."""
        for number in self._numbers:
            self._monitor.execute("job-dismiss", {"id": self._names.push_job(number)})
            self._monitor.execute("blockdev-del", {"node-name": self._names.target(number)})
        self.end_sink()

    @property
    def _numbers(self) -> range:
        return range(len(self._incremental))

    def _add_target(self, number: int) -> None:
        self._monitor.execute(
            "blockdev-add",
            {
                "driver": "nbd",
                "node-name": self._names.target(number),
                "server": {"type": "unix", "path": str(self.socket)},
                "export": str(number),
                # A sink that is gone fails the job at once. Nobody should wait for it.
                "reconnect-delay": 0,
            },
        )

    def _actions(self, number: int) -> Iterator[dict[str, Any]]:
        view = self._names.view(number)
        job: dict[str, object] = {
            "job-id": self._names.push_job(number),
            "device": view,
            "target": self._names.target(number),
            "sync": "full",
            "filter-node-name": self._names.push_filter(number),
            "on-source-error": "report",
            "on-target-error": "report",
            "auto-dismiss": False,
            "x-perf": {"max-workers": _REQUESTS},
        }
        if self.rate is not None:
            job["speed"] = max(1, self.rate // len(self._incremental))
        if self._incremental[number]:
            job |= {"sync": "bitmap", "bitmap": DELTA_BITMAP, "bitmap-mode": "never"}
            bitmap: dict[str, object] = {"node": view, "name": DELTA_BITMAP}
            yield {
                "type": "block-dirty-bitmap-add",
                "data": bitmap | {"disabled": True, "granularity": GRANULARITY},
            }
            # QEMU looks for the bitmap on the job's own node.
            merged = [{"node": self._names.overlay(number), "name": DELTA_BITMAP}]
            yield {
                "type": "block-dirty-bitmap-merge",
                "data": {"node": view, "target": DELTA_BITMAP, "bitmaps": merged},
            }
        yield {"type": "blockdev-backup", "data": job}


def bitmap_hash(dirty: Extents, size: int) -> str:
    """What QEMU gives as the SHA-256 of a bitmap of `GRANULARITY` in which `dirty` is set.

    It is that of the bits as an array of the host's 64-bit words (QEMU, `hbitmap_sha256`).

    Args:
        dirty: multiples of `GRANULARITY`, or up to the disk's end.
        size: of the disk, in bytes.
    """
    digest = hashlib.sha256()
    words = max(1, -(-size // (GRANULARITY * 64)))
    for first in range(0, words * 64, _WINDOW_BITS):
        bits = min(_WINDOW_BITS, words * 64 - first)
        part = dirty.clip(first * GRANULARITY, (first + bits) * GRANULARITY)
        change = np.zeros(bits + 1, np.int8)
        change[part.start // GRANULARITY - first] += 1
        change[-(-part.end // GRANULARITY) - first] -= 1
        flags = np.cumsum(change[:-1], dtype=np.int8)
        packed = np.packbits(flags.astype(np.uint8), bitorder="little")
        digest.update(packed.view("<u8").astype(np.uint64).tobytes())
    return digest.hexdigest()
