"""What one long chain costs: processor seconds of verbs on 500 and on 2000 points of one disk."""

from __future__ import annotations

import statistics
import subprocess

from fleece.store.init import init
from tests.unit import long
from tools.benchmark.cases import FLEECE, MIB, Bench
from tools.benchmark.timing import Meter

_LENGTHS = (500, 2000)
_LOOKED = {
    "list": ["list", "{}"],
    "status": ["status", "{}"],
    "dry_run": ["prune", "{}", "--keep-last", "5", "--dry-run"],
    "restore": ["restore", "{}", "latest", "vda", "{}.raw", "--force"],
}
_ONCE = {"verify": ["verify", "{}"], "prune": ["prune", "{}", "--keep-last", "5"]}


def growth(bench: Bench, runs: int) -> dict[str, float]:
    """Each verb on a chain of each length, in processor seconds; a verify and a prune once."""
    figures = {}
    for length in _LENGTHS:
        store = bench.folder / f"long-{length}"
        long.fill(init(store), length)
        for verbs, times in ((_LOOKED, runs), (_ONCE, 1)):
            for name, words in verbs.items():
                command = [*FLEECE, *(word.format(store) for word in words)]
                usages = [Meter([]).run(command) for _ in range(times)]
                figures[f"{name}_{length}_cpu"] = statistics.median(u.cpu for u in usages)
                figures[f"{name}_{length}_peak_mib"] = max(u.peak_rss for u in usages) / MIB
        subprocess.run(["rm", "-r", store, f"{store}.raw"], check=True)
    return figures


LOOKS = {"growth": growth}
