"""Upkeep of very many guests, split over workers that die: each guest once, and what that costs."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fleece.extents import Extents
from fleece.store.init import init
from fleece.tree import BlankDisk
from tests.unit.kit import LEAF, header, write_delta
from tools.benchmark.cases import FLEECE, Bench
from tools.benchmark.servers import NODE

_GUESTS = 10_000
_SHARDS = 50
_SHARE = _GUESTS // _SHARDS
_WORKERS = 2
_DEATHS = 0.3
"""Of the starts of a worker, the part that ends by SIGKILL before its work is done."""


@dataclass
class _Seen:
    """What became of the work on a shard.

    Attributes:
        checked: how often each point was found sound.
        ended: seconds and processor seconds of runs that came to their end.
        deaths: how many did not.
    """

    checked: Counter[str] = field(default_factory=Counter)
    ended: list[tuple[float, float]] = field(default_factory=list)
    deaths: int = 0


def shards(bench: Bench, runs: int) -> dict[str, float]:
    """`verify --shard K/50 --max-age 1d` of 10 000 guests, by 2 workers at a time."""
    store = bench.folder / "shards"
    _many_guests(store)
    start = time.monotonic()
    with ThreadPoolExecutor(_WORKERS) as pool:
        seen = [*pool.map(lambda number: _work(store, number), range(1, _SHARDS + 1))]
    seconds = time.monotonic() - start
    checked: Counter[str] = sum((one.checked for one in seen), Counter())
    ended = [figures for one in seen for figures in one.ended]
    subprocess.run(["rm", "-r", store], check=True)
    return {
        "guests": len(checked),
        "checked_once": sum(count == 1 for count in checked.values()),
        "deaths": sum(one.deaths for one in seen),
        "seconds": seconds,
        "shard_seconds": statistics.median(wall for wall, _ in ended),
        "shard_cpu_seconds": statistics.median(cpu for _, cpu in ended),
    }


def _work(store: Path, number: int) -> _Seen:
    """Do a shard's work, as a scheduler of jobs does: start it again until it has ended."""
    seen, chance = _Seen(), random.Random(number)
    words = ["verify", str(store), "--shard", f"{number}/{_SHARDS}", "--max-age", "1d", "--json"]
    while not seen.ended:
        dies_after = chance.randrange(1, _SHARE) if chance.random() < _DEATHS else None
        start = time.monotonic()
        process = subprocess.Popen([*FLEECE, *words], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for count, point in enumerate(_checked(process.stdout), 1):
            seen.checked[point] += 1
            if count == dies_after:
                process.send_signal(signal.SIGKILL)
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == -signal.SIGKILL:
            seen.deaths += 1
        elif process.returncode == 0:
            seen.ended.append((time.monotonic() - start, usage.ru_utime + usage.ru_stime))
        else:
            raise RuntimeError(f"shard {number}: exit code {process.returncode}")
    return seen


def _checked(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        told = json.loads(line)
        if told["event"] == "checked":
            yield told["point"]


def _many_guests(folder: Path) -> None:
    """A point each, tiny, real in every other way."""
    store = init(folder)
    for number in range(_GUESTS):
        guest = f"guest-{number}"
        size = 4 * LEAF
        head = header(size, number + 1, None, fan_out=16, guest=guest, disk=NODE, disks=(NODE,))
        with store.locked(guest):
            partial = store.begin(guest, head.point.id, number + 1)
            content = random.Random(number).randbytes(size)
            sink = partial.create(NODE)
            write_delta(sink, head, BlankDisk(head.geometry), content, Extents.whole(size))
            partial.commit()


LOOKS = {"shards": shards}
