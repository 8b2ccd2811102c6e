"""Let the whole engine live through random faults for hours, and check every point that it stored.

Each round has a guest, a store and a seed of its own; `tests.engine.soak` says what happens, and
what is checked. Prints a JSON line of counts after each round. A loss is whatever a check did not
like; its round's seed and the reason are printed, and the exit code is 1 in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.engine.cloud import object_store
from tests.engine.cloud_soak import CloudSoak, stormy
from tests.engine.libvirt_scene import libvirt_scene
from tests.engine.libvirt_soak import LibvirtSoak
from tests.engine.matrix import Where, started
from tests.engine.scene import daemon
from tests.engine.soak import Soak
from tests.rig.images import MIB, random_image
from tests.rig.libvirt import GuestDisk, libvirtd

ROUND = 60
"""Things that happen in a round."""


def main() -> int:
    """Parse the command line, and run; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="default: 2")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; default: 0")
    parser.add_argument(
        "--libvirt", action="store_true", help="the guests are libvirt's, and libvirtd dies as well"
    )
    parser.add_argument(
        "--s3", action="store_true", help="the stores are in buckets, copied, and the server dies"
    )
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        round_ = _round_of_libvirt if options.libvirt else _round
        if options.s3:
            server = stack.enter_context(object_store())
            where = functools.partial(stormy, server)
            round_ = functools.partial(_round, kind=CloudSoak, where=where)
        return _rounds(options, round_)


def _rounds(options: argparse.Namespace, round_: Callable[[int, float, Counter[str]], None]) -> int:
    begun = time.monotonic()
    end = begun + options.hours * 3600
    total: Counter[str] = Counter(round=0, backup=0, fault=0, checked=0, loss=0)
    while time.monotonic() < end:
        round_(options.seed + total["round"], end, total)
        seconds = round(time.monotonic() - begun)
        print(json.dumps({"seconds": seconds, "seed": options.seed} | total), flush=True)
    return int(total["loss"] > 0)


def _round(
    seed: int,
    end: float,
    total: Counter[str],
    kind: type[Soak] = Soak,
    where: Where = daemon,
) -> None:
    total["round"] += 1
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        event = "start"
        try:
            with started(kind, Path(folder), seed, where=where) as here:
                for _ in range(ROUND):
                    event = here.happen()
                    if time.monotonic() > end:
                        break
            total.update(here.done)
            total["write"] += here.counts.writes
        except Exception:
            total["loss"] += 1
            print(f"LOSS: round of seed {seed}, after {event}", file=sys.stderr)
            traceback.print_exc()


def _round_of_libvirt(seed: int, end: float, total: Counter[str]) -> None:
    total["round"] += 1
    event = "start"
    try:
        with tempfile.TemporaryDirectory(prefix="soak-") as name, libvirtd() as daemon:
            path = random_image(Path(name, "vda.qcow2"), 8 * MIB, seed=seed)
            with libvirt_scene(daemon, Path(name), GuestDisk("vda", path)) as scene:
                here = LibvirtSoak(scene, seed)
                try:
                    for _ in range(ROUND):
                        event = here.happen()
                        if time.monotonic() > end:
                            break
                finally:
                    here.stop()
                total.update(here.done)
    except Exception:
        total["loss"] += 1
        print(f"LOSS: round of seed {seed}, after {event}", file=sys.stderr)
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
