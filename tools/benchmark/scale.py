"""Incrementals of large, nearly empty disks: their cost must follow what changed."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import fleece
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.process import run_checked
from tools.benchmark.cases import CLUSTER, FLEECE, GIB, GUEST, MIB, Bench, Case, Side
from tools.benchmark.marked import marked
from tools.benchmark.servers import NODE
from tools.benchmark.timing import Meter, Usage

SIZES = {"16t": 16 << 40, "100g": 100 << 30}
DIRTY = 1 * GIB
"""Bytes that change before each scattered incremental."""

_POOL = 4 * MIB
_BLOCK = 4096


class Sparse:
    """A qcow2 disk of any size in a source of its own, and a store of it.

    Args:
        folder: for both; made.
        size: of the disk in bytes.
        stack: ends the source.
        repeating: what is written are blocks of 4 KiB, each 16 times, so that storing it costs
            little; else incompressible bytes.
    """

    def __init__(
        self, folder: Path, size: int, stack: ExitStack, *, repeating: bool = True
    ) -> None:
        folder.mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self.folder = folder
        self.size = size
        self._repeating = repeating
        image = folder / "disk.qcow2"
        run_checked("qemu-img", "create", "-q", "-f", "qcow2", image, str(size))
        self.source = stack.enter_context(StorageDaemon([Disk(image, NODE)]))
        self.meter = Meter([self.source.pid])
        self.store = folder / "store"
        fleece.init(self.store)
        self._writer = self.source.writer(NODE)
        self._chance = random.Random(7)
        self._pool = self._chance.randbytes(_POOL)
        self._clusters = self._chance.sample(range(size // CLUSTER), DIRTY // CLUSTER)

    def scatter(self, part: tuple[int, int] = (0, 1)) -> None:
        """Write the same clusters all over the disk, each time with other bytes.

        Args:
            part: (number, of how many): of the clusters.
        """
        length = _BLOCK if self._repeating else CLUSTER
        number, parts = part
        for cluster in self._clusters[number::parts]:
            at = self._chance.randrange(_POOL - length)
            data = self._pool[at : at + length] * (CLUSTER // length)
            self._writer.write(cluster * CLUSTER, data)
        self._writer.flush()

    def backup(self, *more: str) -> Usage:
        """Back the disk up."""
        words: list[str | Path] = [*FLEECE, "backup", f"qmp:{self.source.qmp_sockets[0]}"]
        return self.meter.run(
            [*words, self.store, "--guest", GUEST, "--scratch", self.folder, *more]
        )

    def keep_one(self) -> None:
        """Merge the store's points into one, so that it does not grow."""
        run_checked(*FLEECE, "prune", self.store, "--keep-last", "1")

    @contextmanager
    def point(self) -> Iterator[fleece.Export]:
        """A living point of the disk, whose export has what changed as a dirty context."""
        with fleece.QemuSource(str(self.source.qmp_socket), self.folder) as source:
            (disk,) = source.inventory().choose(())
            bitmaps = tuple(bitmap.name for bitmap in disk.bitmaps)
            wanted = [fleece.Wanted(disk, fleece.Since(bitmaps))]
            with source.take(fleece.Request("be" * 4, 1, "be" * 5, wanted, rotate=False)) as point:
                yield point.exports[0]


@contextmanager
def scattered(bench: Bench, size: int, *, repeating: bool) -> Iterator[Case]:
    """An incremental of 1 GiB of scattered clusters against reading the same from its point.

    The reference reads through the overlay of a point, too, which is taken and let go outside its
    time.
    """
    with ExitStack() as stack:
        disk = Sparse(bench.folder / "sparse", size, stack, repeating=repeating)
        disk.backup()
        disk.scatter()
        disk.backup()
        disk.keep_one()
        living = ExitStack()

        def take() -> None:
            disk.scatter()
            command[-2:] = _named(living.enter_context(disk.point()))

        command: list[str | Path] = [sys.executable, "-m", "tools.benchmark.scattered", "", ""]
        yield Case(
            Side("fleece backup, incremental", DIRTY, disk.backup, disk.scatter, disk.keep_one),
            Side(
                "list, pread over 4 connections",
                DIRTY,
                lambda: disk.meter.run(command),
                take,
                living.close,
            ),
        )


def _named(export: fleece.Export) -> list[str | Path]:
    return [export.uri, str(export.dirty_context)]


def unchanged(bench: Bench, runs: int) -> dict[str, float]:
    """Incrementals in which nothing changed, of both sizes by turns."""
    with ExitStack() as stack:
        disks = {
            name: Sparse(bench.folder / f"sparse-{name}", size, stack)
            for name, size in SIZES.items()
        }
        found: dict[str, list[Usage]] = {name: [] for name in disks}
        for disk in disks.values():
            disk.backup()
            disk.scatter()
            disk.backup()
            disk.keep_one()
        for _ in range(runs + 1):
            for name, disk in disks.items():
                found[name].append(disk.backup())
    figures = {}
    for name, usages in found.items():
        for what in ("seconds", "cpu", "server_cpu"):
            figures[f"{name}_{what}"] = statistics.median(getattr(u, what) for u in usages[1:])
    return figures


_PLAN = """
import json, resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
from fleece.disk.nbd import NbdDisk
from fleece.engine.work.reads import WINDOW, known_zeros, read_items
from fleece.extents import Extents

from fleece.tree import LEAF_SIZE
uri, context = sys.argv[1:]
before, start = peak(), time.monotonic()
disk = NbdDisk(uri)
dirty = disk.dirty_extents(context, Extents.whole(disk.size)).align_out(LEAF_SIZE, disk.size)
listed = time.monotonic() - start
reads = 0
for part in dirty.windows(WINDOW):
    zeros = known_zeros(disk, part, LEAF_SIZE)
    for item in read_items(part.subtract(zeros)):
        reads += 1
print(json.dumps({
    "extents": len(dirty), "reads": reads, "list_seconds": listed,
    "list_and_plan_seconds": time.monotonic() - start, "import_mib": before, "peak_mib": peak(),
}))
"""


def extents(bench: Bench, runs: int) -> dict[str, float]:
    """A million dirty extents of a disk of 1 TiB: list them, and plan the reads."""
    with marked(1 << 40, 1_000_000) as (uri, context):
        words = [sys.executable, "-c", _PLAN, uri, context]
        found = [
            json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(runs)
        ]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


LOOKS: dict[str, Callable[[Bench, int], dict[str, float]]] = {
    "unchanged": unchanged,
    "extents": extents,
}

CASES: dict[str, Callable[[Bench], AbstractContextManager[Case]]] = {
    "scattered-16t": lambda bench: scattered(bench, SIZES["16t"], repeating=True),
    "scattered-100g": lambda bench: scattered(bench, SIZES["100g"], repeating=True),
    "random-16t": lambda bench: scattered(bench, SIZES["16t"], repeating=False),
    "random-100g": lambda bench: scattered(bench, SIZES["100g"], repeating=False),
}
