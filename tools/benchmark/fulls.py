"""Full backups against other ways to pack the same disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.process import run_checked
from tools.benchmark.cases import GIB, GUEST, MIB, Bench, Case, Side
from tools.benchmark.servers import NODE, forget_points
from tools.benchmark.timing import Meter, Usage


def _ours(bench: Bench, level: int) -> Side:
    return Side(
        f"fleece backup --mode full --level {level}",
        bench.setting.size,
        lambda: bench.backup(level, "full"),
        after=bench.forget,
    )


@contextmanager
def packed_file(bench: Bench) -> Iterator[Case]:
    """Against zstd that reads the raw image itself: no NBD, no QEMU."""
    with bench.raw_image() as raw:
        words = ["zstd", "-1", "-T2", "-q", "-f", "-o", str(bench.packed), str(raw)]
        yield Case(
            _ours(bench, 1),
            Side(
                "zstd -1 -T2 RAW",
                bench.setting.size,
                lambda: bench.meter.run(words),
                after=bench.packed.unlink,
            ),
        )


@contextmanager
def converted(bench: Bench) -> Iterator[Case]:
    """Against qemu-img, which packs clusters of 64 KiB by zstd into a qcow2 image."""
    target = bench.folder / "converted.qcow2"
    words = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]
    yield Case(
        _ours(bench, 1),
        Side(
            "qemu-img convert -c DISK, zstd",
            bench.setting.size,
            lambda: bench.meter.run([*words, bench.uri, target]),
            after=target.unlink,
        ),
    )


_RANDOM = 2 * GIB

_STORED = """
import sys
from pathlib import Path
import fleece
from tools.benchmark import stored
socket, store, guest, scratch, way = sys.argv[1:]
if way == "stored":
    stored.patch()
options = fleece.BackupOptions(fleece.ModeWish.FULL, guest, level=1)
with fleece.QemuSource(socket, Path(scratch)) as source:
    fleece.backup(source, fleece.open_store(store), options)
"""


@contextmanager
def incompressible(bench: Bench) -> Iterator[Case]:
    """A disk of random bytes, through zstd against into frames that store it as it is."""
    raw, image = bench.folder / "random.raw", bench.folder / "random.qcow2"
    _write_random(raw)
    run_checked("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    raw.unlink()
    with ExitStack() as stack:
        source = stack.enter_context(StorageDaemon([Disk(image, NODE)]))
        meter = Meter([source.pid])
        words: list[str | Path] = [sys.executable, "-P", "-c", _STORED, source.qmp_socket]
        words += [bench.store, GUEST, bench.folder]

        def forget() -> None:
            run_checked("rm", "-r", bench.store)
            bench.make_store()
            forget_points(source)

        def run(way: str) -> Usage:
            return meter.run([*words, way])

        yield Case(
            Side("random bytes, zstd -1", _RANDOM, lambda: run("zstd"), after=forget),
            Side("random bytes, stored frames", _RANDOM, lambda: run("stored"), after=forget),
        )
    image.unlink()


def _write_random(path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    with path.open("wb") as file:
        for _ in range(_RANDOM // (8 * MIB)):
            file.write(rng.bytes(8 * MIB))


CASES = {
    "full-file": packed_file,
    "full-convert": converted,
    "full-random": incompressible,
}
