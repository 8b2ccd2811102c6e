"""Kill, stop and cut off engines at random moments, and check every point that was committed.

The guest's two disks are written all the time. After each fault the next backup must succeed,
incremental, and leave nothing; in the end of each round every point must be a state that the
disks had, bit for bit (`tests.engine.matrix`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.engine.cloud import clouded, object_store
from tests.engine.libvirt_kills import Deaths, deaths
from tests.engine.libvirt_scene import libvirt_scene
from tests.engine.matrix import IN_PARTS, Counts, Matrix, control_steps, matrix
from tests.rig.images import MIB, random_image
from tests.rig.libvirt import GuestDisk, libvirtd
from tests.rig.s3 import SeaweedFs

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
    parser.add_argument("--s3", action="store_true", help="the store is in a bucket of SeaweedFS")
    options = parser.parse_args()
    if options.libvirt:
        print(json.dumps(dataclasses.asdict(_of_libvirt(options.count, options.seed))))
    elif options.s3:
        with object_store() as server:
            _rounds(options, functools.partial(_round_in_bucket, server=server))
    else:
        _rounds(options, functools.partial(_round, iothreads=options.iothreads))


def _rounds(options: argparse.Namespace, play: Callable[[int, int], Counts]) -> None:
    started = time.monotonic()
    total = Counts()
    while total.runs < options.count:
        count = min(ROUND, options.count - total.runs)
        total = _sum(total, play(count, options.seed + total.runs))
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
            _fault(here, chance, last=0.3)
            here.backup()
    return here.counts


def _round_in_bucket(count: int, seed: int, server: SeaweedFs) -> Counts:
    """A third each: at steps, at moments, and at moments of fulls, which are sent in many parts."""
    chance = random.Random(seed)
    where = functools.partial(clouded, server)
    with (
        tempfile.TemporaryDirectory(prefix="killmatrix-") as folder,
        matrix(Path(folder), seed, where=where, shape=IN_PARTS) as here,
    ):
        steps = control_steps(here.steps())
        for number in range(count):
            here.way = ("--mode", "full") if number % 3 == 0 else ()
            if number % 3 == 1:
                here.only_hit("SIGKILL", chance.choice(steps))
            else:
                _fault(here, chance, last=0.8)
            here.way = ()
            here.backup()
    return here.counts


def _fault(here: Matrix, chance: random.Random, last: float) -> None:
    """SIGKILL mostly, else a signal that stops, so many seconds after the point at the latest."""
    fault = chance.choices(("SIGKILL", "SIGTERM", "SIGINT"), (8, 1, 1))[0]
    here.only_hit(fault, after=chance.uniform(0.0, last), slow=chance.choice((0.0, 0.01, 0.02)))


def _sum(one: Counts, other: Counts) -> Counts:
    both = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return Counts(*(mine + theirs for mine, theirs in both))


if __name__ == "__main__":
    main()
