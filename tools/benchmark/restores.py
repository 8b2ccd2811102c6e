"""Restores against other ways to fill the same target, and deep chains against shallow ones."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.process import run_checked
from tools.benchmark.cases import CLUSTER, FLEECE, GUEST, MIB, Bench, Case, Side
from tools.benchmark.servers import NODE
from tools.benchmark.timing import Usage

_DEPTH = 50
_CHANGED = 16 * MIB
"""Bytes that each delta of the deep chain changes."""

_STALE = 64 * MIB
"""Bytes in which the target of a restore in place differs."""


@contextmanager
def to_qcow2(bench: Bench) -> Iterator[Case]:
    """To a new qcow2 image, proof included, against nbdcopy from a raw file into qemu-nbd."""
    target = bench.folder / "target.qcow2"
    size = bench.setting.size
    ours = [*FLEECE, "restore", bench.store, "latest", NODE, target]
    bench.backup(1, "full")
    with bench.raw_image() as raw:
        copy = ["nbdcopy", str(raw), "--", "[", "qemu-nbd", "-f", "qcow2", str(target), "]"]
        convert = ["qemu-img", "convert", "-W", "-f", "raw", "-O", "qcow2", str(raw), str(target)]

        def create() -> None:
            run_checked("qemu-img", "create", "-q", "-f", "qcow2", target, str(size))

        def gone() -> None:
            target.unlink()

        quick = [bench.meter.run(convert).seconds for _ in range(2)][1]
        gone()
        yield Case(
            Side("fleece restore to qcow2", size, lambda: bench.meter.run(ours), after=gone),
            Side("nbdcopy RAW to qemu-nbd", size, lambda: bench.meter.run(copy), create, gone),
            {"qemu_img_convert_ms": quick * 1000},
        )
    bench.forget()


@contextmanager
def deep(bench: Bench) -> Iterator[Case]:
    """A chain of 50 deltas against a single full of the same disk, which it changes."""
    size, gone = bench.setting.size, bench.target.unlink
    writer = bench.source.writer(NODE)
    chance = random.Random(11)
    bench.backup(1, "full")
    for _ in range(_DEPTH - 1):
        for cluster in chance.sample(range(size // CLUSTER), _CHANGED // CLUSTER):
            writer.write(cluster * CLUSTER, chance.randbytes(CLUSTER))
        writer.flush()
        bench.backup(1)
    writer.close()
    chain = bench.folder / "chain"
    bench.store.rename(chain)
    bench.make_store()
    bench.backup(1, "full")

    def restore(store: Path) -> Usage:
        return bench.meter.run([*FLEECE, "restore", store, "latest", NODE, bench.target])

    yield Case(
        Side(f"restore of {_DEPTH} deltas", size, lambda: restore(chain), after=gone),
        Side("restore of a full", size, lambda: restore(bench.store), after=gone),
    )
    run_checked("rm", "-r", chain)
    bench.forget()


@contextmanager
def in_place(bench: Bench) -> Iterator[Case]:
    """Onto an image of which little differs, against a restore to a new one."""
    size, fresh = bench.setting.size, bench.folder / "fresh.raw"
    bench.backup(1, "full")
    restore = [*FLEECE, "restore", bench.store, "latest", NODE]
    bench.meter.run([*restore, bench.target])
    places = random.Random(5).sample(range(size // CLUSTER), _STALE // CLUSTER)

    def spoil() -> None:
        with bench.target.open("r+b") as file:
            for place in places:
                file.seek(place * CLUSTER)
                file.write(b"?" * CLUSTER)

    spoil()
    told = subprocess.run(
        [str(word) for word in [*restore, bench.target, "--in-place", "--json"]],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    written = json.loads(told.splitlines()[-1])["written_bytes"]
    yield Case(
        Side(
            "fleece restore --in-place",
            size,
            lambda: bench.meter.run([*restore, bench.target, "--in-place"]),
            before=spoil,
        ),
        Side(
            "fleece restore to a new image",
            size,
            lambda: bench.meter.run([*restore, fresh]),
            after=fresh.unlink,
        ),
        {"stale_bytes": float(_STALE), "written_bytes": float(written)},
    )
    bench.target.unlink()
    bench.forget()


@contextmanager
def against(bench: Bench) -> Iterator[Case]:
    """Proving an image block by block against reading and hashing it as one stream."""
    size = bench.setting.size
    bench.backup(1, "full")
    verify = [*FLEECE, "verify", bench.store, "latest", "--disk", NODE, "--guest", GUEST]
    with bench.raw_image() as raw:
        yield Case(
            Side(
                "fleece verify --against RAW",
                size,
                lambda: bench.meter.run([*verify, "--against", raw]),
            ),
            Side(
                "xxhsum -H128 RAW",
                size,
                lambda: bench.meter.run(["xxhsum", "-q", "-H128", str(raw)]),
            ),
        )
    bench.forget()


CASES = {
    "restore-qcow2": to_qcow2,
    "restore-in-place": in_place,
    "verify-against": against,
}
