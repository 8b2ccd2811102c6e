"""What each verb costs at the far end: 50 points of a disk of 16 TiB, and a store of 10 000."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from fleece.delta.header import ParentRef
from fleece.extents import Extents
from fleece.store.init import init
from fleece.tree import BlankDisk, NodeSource
from tests.unit.kit import LEAF, OpenChain, header, write_delta
from tools.benchmark.cases import FLEECE, GUEST, MIB, Bench
from tools.benchmark.scale import SIZES, Sparse
from tools.benchmark.servers import NODE
from tools.benchmark.timing import Meter

_DEPTH = 50
_POINTS = 10_000
_LINE = 50
_STARTS = 9

_Words = list[str | Path]


def verbs(bench: Bench, runs: int) -> dict[str, float]:
    """The seconds and the peak of every verb, once each, on 16 TiB with 1 GiB of data, 50 deep."""
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        disk = Sparse(bench.folder / "sparse", SIZES["16t"], stack)
        disk.scatter()
        disk.backup()
        for number in range(1, _DEPTH - 1):
            disk.scatter(part=(number, _DEPTH))
            disk.backup()
        disk.scatter(part=(0, _DEPTH))
        for name, words in _verbs(disk, bench.folder / "target.raw"):
            usage = disk.meter.run([*FLEECE, *words])
            figures[f"{name}_seconds"] = usage.seconds
            figures[f"{name}_peak_mib"] = usage.peak_rss / MIB
            print(f"  {name}: {usage.seconds:.2f} s, {usage.peak_rss / MIB:.0f} MiB", flush=True)
        (bench.folder / "target.raw").unlink()
    return figures


def _verbs(disk: Sparse, target: Path) -> Iterator[tuple[str, _Words]]:
    """The verbs in an order in which each finds what it needs."""
    store = disk.store
    source: _Words = [f"qmp:{disk.source.qmp_sockets[0]}"]
    scratch: _Words = ["--scratch", disk.folder]
    both: _Words = [*source, store, "--guest", GUEST, *scratch]
    yield "backup", ["backup", *both]
    yield "audit", ["audit", *both]
    yield "backup, push", ["backup", *both, "--transport", "push"]
    yield "backup, rescan", ["backup", *both, "--mode", "rescan"]
    yield "doctor", ["doctor", *source]
    yield "clean", ["clean", *source, *scratch]
    yield "list", ["list", store]
    yield "status", ["status", store]
    deltas = sorted(store.rglob(f"{NODE}.fleece"), key=lambda path: path.parent.name)
    names = [path.parent.name.rpartition("-")[2] for path in deltas]
    yield "info", ["info", deltas[-1]]
    yield "verify", ["verify", store]
    yield "diff", ["diff", store, names[0], "latest"]
    yield "map", ["map", store, "latest", NODE]
    newest: _Words = [store, "latest", NODE, target]
    yield "restore", ["restore", *newest]
    yield "restore --in-place", ["restore", *newest, "--in-place"]
    yield "restore --partial", ["restore", *newest, "--partial", "--force"]
    yield "root", ["root", target, "--format", "raw"]
    against: _Words = ["--against", target, "--format", "raw"]
    yield "verify --against", ["verify", store, "latest", "--disk", NODE, *against]
    yield "merge", ["merge", store, names[_DEPTH // 2]]
    yield "prune", ["prune", store, "--keep-last", "1"]


def points(bench: Bench, runs: int) -> dict[str, float]:
    """`list` and `status` of a store of 10 000 points, in lines of 50; and `--help`."""
    store = bench.folder / "points"
    _many_points(store)
    meter = Meter([])
    figures = {}
    for name, words in {
        "list": ["list", str(store)],
        "status": ["status", str(store)],
    }.items():
        usages = [meter.run([*FLEECE, *words]) for _ in range(runs + 1)][1:]
        middle = sorted(usages, key=lambda usage: usage.seconds)[len(usages) // 2]
        figures[f"{name}_seconds"] = middle.seconds
        figures[f"{name}_peak_mib"] = middle.peak_rss / MIB
    subprocess.run(["rm", "-r", store], check=True)
    figures["help_seconds"] = _start("--help")
    return figures


def _start(*words: str) -> float:
    """The median seconds of a command as it is installed."""
    command: _Words = [Path(sys.executable).parent / "fleece", *words]
    times = []
    for _ in range(_STARTS + 1):
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - start)
    return sorted(times[1:])[_STARTS // 2]


def _many_points(folder: Path) -> None:
    """Tiny deltas, real in every other way."""
    store = init(folder)
    chance = random.Random(3)
    size = 64 * LEAF
    parent: ParentRef | None = None
    line: list[Path] = []
    disk = b""
    with store.locked(GUEST):
        for number in range(1, _POINTS + 1):
            if number % _LINE == 1:
                parent, line = None, []
                disk, dirty = chance.randbytes(size), Extents.whole(size)
            else:
                at = chance.randrange(64) * LEAF
                disk = disk[:at] + chance.randbytes(LEAF) + disk[at + LEAF :]
                dirty = Extents.of([(at, at + LEAF)])
            head = header(size, number, parent, fan_out=16, guest=GUEST, disk=NODE, disks=(NODE,))
            partial = store.begin(GUEST, head.point.id, number)
            with ExitStack() as stack:
                base: NodeSource = BlankDisk(head.geometry)
                if line:
                    base = stack.enter_context(OpenChain(line))
                summary, _ = write_delta(partial.create(NODE), head, base, disk, dirty)
            partial.commit()
            line.insert(0, Path(partial.place(NODE)))
            parent = ParentRef(head.point.id, summary.root.hex(), size)


LOOKS = {"verbs": verbs, "points": points}
