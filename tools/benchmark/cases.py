"""What is measured: each case is a side of fleece's and a reference side, run by turns."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fleece
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.process import run_checked
from tools.benchmark.servers import NODE, forget_points, plain_export
from tools.benchmark.timing import Meter, Usage

GIB = 1 << 30
MIB = 1 << 20
CLUSTER = 65536
FLEECE: tuple[str | Path, ...] = (sys.executable, "-m", "fleece")
GUEST = "bench"


@dataclass(frozen=True)
class Setting:
    """What the command line chose.

    Attributes:
        folder: where everything is written; emptied afterwards.
        size: of the disk in bytes.
        fmt: of the image, qcow2 or raw.
        holes: the zero third is left out of the image; else it is written.
        dirty: bytes to change before each incremental.
        sync: the reference is followed by an fsync of its file, inside the clock.
    """

    folder: Path
    size: int
    fmt: str
    holes: bool
    dirty: int
    sync: bool


@dataclass(frozen=True)
class Side:
    """One of the two programs of a case.

    Attributes:
        label: what it is.
        size: bytes of disk that it goes through.
        run: the measured run.
        before, after: what prepares it and tidies up, not measured.
    """

    label: str
    size: int
    run: Callable[[], Usage]
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Case:
    """A named comparison.

    Attributes:
        ours: fleece.
        reference: what it is compared with.
        facts: what else is worth noting.
    """

    ours: Side
    reference: Side
    facts: dict[str, float] = field(default_factory=dict)


class Bench:
    """The workload and the two servers; `cases` are made on it."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        self.setting = setting
        self.folder = setting.folder
        self.image = _image(setting)
        self.source = stack.enter_context(StorageDaemon([Disk(self.image, NODE, setting.fmt)]))
        self.uri, plain = stack.enter_context(plain_export(self.image, setting.fmt))
        self.meter = Meter([self.source.pid, plain])
        self.store = self.folder / "store"
        self.make_store()
        self.packed = self.folder / "reference.zst"
        self.target = self.folder / "target.raw"

    def backup_command(self, level: int, mode: str = "auto") -> list[str | Path]:
        """The command line of a backup of the source into the store."""
        words = [*FLEECE, "backup", f"qmp:{self.source.qmp_socket}", self.store]
        words += ["--guest", GUEST, "--mode", mode, "--level", str(level)]
        return [*words, "--scratch", self.folder]

    def backup(self, level: int, mode: str = "auto") -> Usage:
        """Back the source up into the store."""
        return self.meter.run(self.backup_command(level, mode))

    def pack(self, level: int) -> Usage:
        """The reference of a full backup."""
        read = ["nbdcopy", self.uri, "-"]
        write: list[str | Path] = ["zstd", f"-{level}", "-T2", "-q", "-f", "-o", self.packed]
        if not self.setting.sync:
            return self.meter.run(read, write)
        script = 'nbdcopy "$1" - | zstd "$2" -T2 -q -f -o "$3" && sync "$3"'
        return self.meter.run(["bash", "-c", script, "-", self.uri, f"-{level}", self.packed])

    def forget(self) -> None:
        """Empty the store, and remove from the source all that belongs to it."""
        shutil.rmtree(self.store)
        self.make_store()
        forget_points(self.source)

    def make_store(self) -> None:
        """Make the store, where none is."""
        fleece.init(self.store)

    def delta(self) -> Path:
        """The one delta of the store."""
        (found,) = self.store.rglob("*.fleece")
        return found

    @contextmanager
    def raw_image(self) -> Iterator[Path]:
        """The disk as a sparse raw file, as it is now."""
        raw = self.folder / "copy.raw"
        run_checked(
            "qemu-img", "convert", "-U", "-f", self.setting.fmt, "-O", "raw", self.image, raw
        )
        try:
            yield raw
        finally:
            raw.unlink()


def _image(setting: Setting) -> Path:
    raw = setting.folder / "disk.raw"
    words = [str(raw), str(setting.size), "holes" if setting.holes else "written"]
    subprocess.run([sys.executable, "-P", "-m", "tools.benchmark.workload", *words], check=True)
    if setting.fmt == "raw":
        return raw
    image = setting.folder / "disk.qcow2"
    keep = [] if setting.holes else ["-S", "0"]
    run_checked("qemu-img", "convert", "-f", "raw", "-O", setting.fmt, *keep, raw, image)
    raw.unlink()
    return image


@contextmanager
def full(bench: Bench, level: int) -> Iterator[Case]:
    """A full backup against copying the same disk through zstd."""
    ours = Side(
        f"fleece backup --mode full --level {level}",
        bench.setting.size,
        lambda: bench.backup(level, "full"),
        after=bench.forget,
    )
    reference = Side(
        f"nbdcopy DISK - | zstd -{level} -T2" + (" && sync" if bench.setting.sync else ""),
        bench.setting.size,
        lambda: bench.pack(level),
        after=bench.packed.unlink,
    )
    bench.backup(level, "full")
    bench.pack(level)
    facts = {
        "ours_bytes": float(bench.delta().stat().st_size),
        "reference_bytes": float(bench.packed.stat().st_size),
    }
    bench.forget()
    yield Case(ours, reference, facts)


@contextmanager
def root(bench: Bench) -> Iterator[Case]:
    """The root of an export against reading it to nowhere."""
    size = bench.setting.size
    yield Case(
        Side("fleece root DISK", size, lambda: bench.meter.run([*FLEECE, "root", bench.uri])),
        Side("nbdcopy DISK null:", size, lambda: bench.meter.run(["nbdcopy", bench.uri, "null:"])),
    )


@contextmanager
def restore(bench: Bench) -> Iterator[Case]:
    """A restore to a raw file, with its proof, against unpacking to a sparse one."""
    size, gone = bench.setting.size, bench.target.unlink
    command = [*FLEECE, "restore", bench.store, "latest", NODE, bench.target]
    unpack = ["zstd", "-d", "-q", "-f", "--sparse", "-o", str(bench.target), str(bench.packed)]
    bench.backup(1, "full")
    bench.pack(1)
    yield Case(
        Side("fleece restore", size, lambda: bench.meter.run(command), after=gone),
        Side("zstd -d --sparse", size, lambda: bench.meter.run(unpack), after=gone),
    )
    bench.packed.unlink()
    bench.forget()


@contextmanager
def verify(bench: Bench) -> Iterator[Case]:
    """Verifying a store of one delta against `zstd -t` of that delta."""
    bench.backup(1, "full")
    size, test = bench.setting.size, ["zstd", "-t", "-q", str(bench.delta())]
    yield Case(
        Side("fleece verify", size, lambda: bench.meter.run([*FLEECE, "verify", bench.store])),
        Side("zstd -t DELTA", size, lambda: bench.meter.run(test)),
    )
    bench.forget()


@contextmanager
def incremental(bench: Bench) -> Iterator[Case]:
    """An incremental of scattered clusters against one in which nothing changed.

    It must be the last case, because it changes the disk.
    """
    writer = bench.source.writer(NODE)
    places = random.Random(7)
    count = bench.setting.dirty // CLUSTER

    def scatter() -> None:
        for cluster in places.sample(range(bench.setting.size // CLUSTER), count):
            writer.write(cluster * CLUSTER, places.randbytes(CLUSTER))
        writer.flush()

    bench.backup(1, "full")
    label = f"incremental, {count} clusters of 64 KiB"
    yield Case(
        Side(label, count * CLUSTER, lambda: bench.backup(1), before=scatter),
        Side("incremental, nothing changed", 0, lambda: bench.backup(1)),
    )
    writer.close()
    bench.forget()


CASES: dict[str, Callable[[Bench], AbstractContextManager[Case]]] = {
    "full-1": lambda bench: full(bench, 1),
    "full-3": lambda bench: full(bench, 3),
    "root": root,
    "restore": restore,
    "verify": verify,
    "incremental": incremental,
}


def events_of(bench: Bench, *more: str) -> tuple[dict[str, float], float, int]:
    """When a full backup told its last event of each name, when it ended, how much it read.

    Returns:
        (seconds by name, seconds, bytes).
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [*bench.backup_command(1, "full"), "--json", *more], stdout=subprocess.PIPE, text=True
    )
    seen: dict[str, float] = {}
    said: dict[str, Any] = {}
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        seen[said["event"]] = time.monotonic() - start
    process.wait()
    ended = time.monotonic() - start
    bench.forget()
    return seen, ended, sum(disk["read_bytes"] for disk in said["disks"])


def phases(bench: Bench) -> list[tuple[str, float]]:
    """Where a full backup spends its time: (phase, seconds) by its events, one run."""
    seen, ended, _ = events_of(bench)
    order = (
        ("start, monitor, inventory", "plan"),
        ("take the point", "point"),
        ("copy", "progress"),
        ("tree, index, fsync, rename", "committed"),
        ("let go, rotate bitmaps", "result"),
    )
    spans, before = [], 0.0
    for name, event in order:
        spans.append((name, seen[event] - before))
        before = seen[event]
    spans.append(("exit", ended - before))
    return spans


def levels(bench: Bench, runs: int) -> Iterator[tuple[str, float, float]]:
    """A full backup at some zstd levels, by turns: (label, median seconds, MiB stored)."""
    commands = {f"level {level}": bench.backup_command(level, "full") for level in (1, 2, 3, 5, 9)}
    return _sweep(bench, commands, runs)


_WITH_WORKERS = """
import sys, fleece
from pathlib import Path
socket, store, guest, scratch, workers = sys.argv[1:]
options = fleece.BackupOptions(fleece.ModeWish.FULL, guest, workers=int(workers))
with fleece.QemuSource(socket, Path(scratch)) as source:
    fleece.backup(source, fleece.open_store(store), options)
"""


def workers(bench: Bench, runs: int) -> Iterator[tuple[str, float, float]]:
    """A full backup by 1 to 6 workers, by turns: (label, median seconds, MiB stored)."""
    words: list[str | Path] = [sys.executable, "-c", _WITH_WORKERS, bench.source.qmp_socket]
    words += [bench.store, GUEST, bench.folder]
    return _sweep(bench, {f"{n} workers": [*words, str(n)] for n in range(1, 7)}, runs)


def _sweep(
    bench: Bench, commands: dict[str, list[str | Path]], runs: int
) -> Iterator[tuple[str, float, float]]:
    seconds: dict[str, list[float]] = {label: [] for label in commands}
    stored = dict.fromkeys(commands, 0.0)
    for _ in range(runs):
        for label, command in commands.items():
            seconds[label].append(bench.meter.run(command).seconds)
            stored[label] = bench.delta().stat().st_size / MIB
            bench.forget()
    for label, times in seconds.items():
        yield label, statistics.median(times), stored[label]


SWEEPS = {"levels": levels, "workers": workers}
