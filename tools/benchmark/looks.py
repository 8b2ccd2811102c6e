"""Reading points at random: the lean index, serving, its start."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleece.nbd.connection import Connection
from tests.engine.history import deep_guest
from tests.unit import huge
from tools.benchmark.cases import FLEECE, MIB, Bench, Case, Side, events_of
from tools.benchmark.latency import guest_writes
from tools.benchmark.servers import NODE
from tools.benchmark.timing import Meter

HUGE = 16 << 40
_RECORDS = 256
_READS = 400
_DEPTH = 50

_LOOK = """
import json, resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
from fleece.delta.chain import Chain
from fleece.disk.chain import ChainDisk
from fleece.store.loose import open_delta
before, start = peak(), time.monotonic()
with open_delta(sys.argv[1]) as delta:
    opened = time.monotonic() - start
    disk = ChainDisk(Chain([delta]))
    disk.read(0, 4096)
    first = time.monotonic() - start
    numbers = json.loads(sys.argv[2])
    begun = time.monotonic()
    for number in numbers:
        disk.read(number << 20, 4096)
    each = (time.monotonic() - begun) / len(numbers)
    records = delta.footer.records
    print(json.dumps({
        "records": records, "open_seconds": opened, "first_leaf_seconds": first,
        "leaf_seconds": each, "import_mib": before / 2**20, "peak_mib": peak() / 2**20,
    }))
"""


def lean(bench: Bench, runs: int) -> dict[str, float]:
    """A full delta of 16 TiB with its whole index: open it and read leaves all over it."""
    path = bench.folder / "huge.fleece"
    numbers = [*huge.spread(HUGE, _RECORDS)]
    huge.write(path, HUGE, numbers, whole_index=True)
    random.Random(1).shuffle(numbers)
    words = [sys.executable, "-c", _LOOK, path, json.dumps(numbers)]
    found = [_json(words) for _ in range(runs)]
    path.unlink()
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _json(words: list[Any]) -> dict[str, float]:
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


@contextmanager
def _serving(store: Path) -> Iterator[tuple[str, float, int]]:
    """A `fleece serve`: the first URI, the seconds until it was ready, nbdkit's process id."""
    start = time.monotonic()
    command = [*FLEECE, "serve", store, "latest", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        ready = time.monotonic() - start
        server = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        yield said["exports"][0]["uri"], ready, server
    finally:
        process.terminate()
        process.wait()


def ready(bench: Bench, runs: int) -> dict[str, float]:
    """Seconds from the command to the first connection, of chains of 1 and of 50 deltas."""
    found = {}
    for depth in (1, _DEPTH):
        store = bench.folder / f"deep-{depth}"
        deep_guest(store, depth, {"vda": 4 * MIB})
        times = []
        for _ in range(runs + 1):
            with _serving(store) as (_, seconds, _):
                times.append(seconds)
        found[f"ready_seconds_{depth}"] = statistics.median(times[1:])
    return found


def reads(bench: Bench, runs: int) -> dict[str, float]:
    """Random reads of 4 KiB by one client, one at a time, from a served full backup."""
    bench.backup(1, "full")
    chance = random.Random(2)
    times = []
    with _serving(bench.store) as (uri, _, process), Connection(uri) as connection:
        for _ in range(_READS * runs):
            at = chance.randrange(connection.size // 4096) * 4096
            start = time.monotonic()
            connection.read(at, 4096)
            times.append(time.monotonic() - start)
        status = Path(f"/proc/{process}/status").read_text()
    bench.forget()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "median_ms": statistics.median(times) * 1000,
        "worst_ms": max(times) * 1000,
        "a_second": len(times) / sum(times),
        "server_peak_mib": int(peak.split()[1]) / 1024,
    }


def rate(bench: Bench, runs: int) -> dict[str, float]:
    """What `--rate` is kept to: bytes read a second, through what was asked for, for each way."""
    asked = bench.setting.size // 20
    figures = {}
    for transport in ("pull", "push"):
        kept = []
        for _ in range(runs):
            words = ("--rate", str(asked), "--transport", transport)
            seen, _, read = events_of(bench, *words)
            kept.append(read / (seen["progress"] - seen["point"]) / asked)
        figures[f"{transport}_of_asked"] = statistics.median(kept)
        figures[f"{transport}_least"], figures[f"{transport}_most"] = min(kept), max(kept)
    return figures


LOOKS: dict[str, Callable[[Bench, int], dict[str, float]]] = {
    "lean": lean,
    "ready": ready,
    "reads": reads,
    "rate": rate,
    "guest": guest_writes,
}


@contextmanager
def serve(bench: Bench) -> Iterator[Case]:
    """nbdcopy from a served point against a restore of it, which also proves what it wrote."""
    size, gone = bench.setting.size, bench.target.unlink
    bench.backup(1, "full")
    command: list[str | Path] = [*FLEECE, "restore", bench.store, "latest", NODE, bench.target]
    with _serving(bench.store) as (uri, _, process):
        meter = Meter([process])
        copy: list[str | Path] = ["nbdcopy", uri, bench.target]
        yield Case(
            Side("nbdcopy from fleece serve", size, lambda: meter.run(copy), after=gone),
            Side("fleece restore", size, lambda: bench.meter.run(command), after=gone),
        )
    bench.forget()
