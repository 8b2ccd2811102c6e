"""Kill, stop and cut off engines at random moments, and check every point that was committed.

The guest's two disks are written all the time. After each fault the next backup must succeed,
incremental, and leave nothing; in the end of each round every point must be a state that the
disks had, bit for bit (`tests.engine.matrix`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time
from pathlib import Path

from tests.engine.libvirt_kills import Deaths, deaths
from tests.engine.libvirt_scene import libvirt_scene
from tests.engine.matrix import Counts, Matrix, matrix
from tests.rig.images import MIB, random_image
from tests.rig.libvirt import GuestDisk, libvirtd

ROUND = 100
"""Faults on one guest and store; then all its points are checked and the next begins."""


def main() -> None:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="faults; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the writes")
    parser.add_argument(
        "--iothreads", action="store_true", help="the disks have iothreads, so QEMU pushes"
    )
    parser.add_argument(
        "--libvirt", action="store_true", help="the guest is libvirt's, and libvirtd dies as well"
    )
    options = parser.parse_args()
    if options.libvirt:
        print(json.dumps(dataclasses.asdict(_of_libvirt(options.count, options.seed))))
        return
    started = time.monotonic()
    total = Counts()
    while total.runs < options.count:
        count = min(ROUND, options.count - total.runs)
        done = _round(count, options.seed + total.runs, iothreads=options.iothreads)
        total = _sum(total, done)
        seconds = round(time.monotonic() - started)
        print(json.dumps({"seconds": seconds, **dataclasses.asdict(total)}), flush=True)


def _of_libvirt(count: int, seed: int) -> Deaths:
    with tempfile.TemporaryDirectory(prefix="killmatrix-") as name, libvirtd() as daemon:
        path = random_image(Path(name, "vda.qcow2"), 8 * MIB, seed=seed)
        with libvirt_scene(daemon, Path(name), GuestDisk("vda", path)) as scene:
            return deaths(scene, count, seed)


def _round(count: int, seed: int, *, iothreads: bool) -> Counts:
    chance = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="killmatrix-") as folder,
        matrix(Path(folder), seed, iothreads=iothreads) as here,
    ):
        for _ in range(count):
            _fault(here, chance)
    return here.counts


def _fault(here: Matrix, chance: random.Random) -> None:
    """SIGKILL mostly; else a signal that stops."""
    fault = chance.choices(("SIGKILL", "SIGTERM", "SIGINT"), (8, 1, 1))[0]
    here.hit(fault, after=chance.uniform(0.0, 0.3), slow=chance.choice((0.0, 0.01, 0.02)))


def _sum(one: Counts, other: Counts) -> Counts:
    both = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return Counts(*(mine + theirs for mine, theirs in both))


if __name__ == "__main__":
    main()
