"""What a guest waits for its writes, before, during and after a backup."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fleece
from tests.rig.disk import Disk
from tests.rig.initramfs import guest_files
from tests.rig.machine import GuestMachine
from tools.benchmark.cases import FLEECE, GIB, MIB, Bench
from tools.benchmark.timing import BenchError

WAYS: dict[str, tuple[str, ...]] = {
    "classic": ("--fleecing", "classic"),
    "filter": ("--fleecing", "filter"),
    "push": ("--transport", "push"),
}
"""What is compared: words of `fleece backup`."""

SIZE = GIB
OTHER = 16 * MIB
"""Bytes of the disk that the guest writes, and of a second one that it leaves alone."""

SETTLED = 5.0
"""Seconds before each backup, and after it, that count."""

PHASES = ("before", "full", "between", "incremental", "after")


@dataclass
class Waits:
    """What was heard of a guest.

    Attributes:
        times: microseconds of each write, in the order in which they were heard.
        heard: (moment, count) after each report: so many writes were heard by then.
    """

    times: list[int] = field(default_factory=list)
    heard: list[tuple[float, int]] = field(default_factory=list)

    def mark(self) -> int:
        """How many there are now."""
        return len(self.times)

    def longest_gap(self, start: float, end: float) -> float:
        """The longest time between two reports, of 16 writes each, in milliseconds."""
        moments = [start, *(at for at, _ in self.heard if start < at < end), end]
        return max(after - before for before, after in itertools.pairwise(moments)) * 1000


class _WaitingGuest(GuestMachine):
    """A guest in which `riglatency` runs."""

    def __init__(self, *arguments: object, **named: object) -> None:
        self.waits = Waits()
        super().__init__(*arguments, append="rig.mode=latency", **named)  # type: ignore[arg-type]

    def _hear(self, line: bytes) -> None:
        if line.startswith(b"L ") and line.endswith(b"\n"):
            self.waits.times += map(int, line.split()[1:])
            self.waits.heard.append((time.monotonic(), len(self.waits.times)))


def guest_writes(bench: Bench, runs: int) -> dict[str, float]:
    """Percentiles of a guest's writes: medians over runs, each with a guest of its own.

    Two disks, so that a filter stops the guest. A full backup, then an incremental one of what the
    guest has written since.
    """
    files = guest_files(bench.folder)
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        for way, words in WAYS.items():
            folder = bench.folder / "guest"
            folder.mkdir()
            fleece.init(folder / "store")
            disks = [Disk(_disk(folder, n, size), f"d{n}", "raw") for n, size in _SIZES]
            with _WaitingGuest(files, disks) as guest:
                for name, value in _measure(guest, folder, words).items():
                    found.setdefault(f"{way} {name}", []).append(value)
            shutil.rmtree(folder)
    return {name: statistics.median(values) for name, values in found.items()}


_SIZES = ((0, SIZE), (1, OTHER))


def _disk(folder: Path, number: int, size: int) -> Path:
    path = folder / f"{number}.raw"
    words = [
        sys.executable,
        "-P",
        "-m",
        "tools.benchmark.workload",
        str(path),
        str(size),
        "written",
    ]
    subprocess.run(words, check=True)
    return path


def _measure(guest: _WaitingGuest, folder: Path, words: Sequence[str]) -> dict[str, float]:
    guest.wait_ready()
    while not guest.waits.times:
        time.sleep(0.05)
    time.sleep(1)
    found: dict[str, float] = {}
    for phase in PHASES:
        first, start = guest.waits.mark(), time.monotonic()
        if phase in ("full", "incremental"):
            _backup(guest, folder, phase, words)
        else:
            time.sleep(SETTLED)
        found |= _figures(phase, guest.waits.times[first:])
        found[f"{phase} seconds"] = time.monotonic() - start
        found[f"{phase} gap ms"] = guest.waits.longest_gap(start, time.monotonic())
    return found | {"stopped ms": _longest_stop(guest)}


def _backup(guest: _WaitingGuest, folder: Path, mode: str, words: Sequence[str]) -> None:
    command: list[str | Path] = [*FLEECE, "backup", f"qmp:{guest.qmp_socket}", folder / "store"]
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    command += ["--mode", mode, "--scratch", scratch, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"the backup failed:\n{done.stdout}{done.stderr}")


def _figures(phase: str, times: Sequence[int]) -> dict[str, float]:
    if len(times) < 50:
        raise BenchError(f"only {len(times)} writes of the guest's were heard")
    ranked = sorted(times)
    return {
        f"{phase} p50 us": float(ranked[len(ranked) // 2]),
        f"{phase} p99 us": float(ranked[len(ranked) * 99 // 100]),
        f"{phase} max us": float(ranked[-1]),
        f"{phase} writes": float(len(ranked)),
    }


def _longest_stop(guest: _WaitingGuest) -> float:
    """The longest time for which the machine was stopped, by QEMU's own time stamps."""
    guest.control.command("query-status")
    longest, since = 0.0, 0.0
    for event in guest.control.events:
        stamp = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        if event["event"] == "STOP":
            since = stamp
        elif event["event"] == "RESUME" and since:
            longest = max(longest, stamp - since)
    return longest * 1000
