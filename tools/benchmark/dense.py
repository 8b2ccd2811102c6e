"""Memory of a delta of a disk that is full of data: written, and checked."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

import zstandard

from fleece.delta.check import Walk
from fleece.delta.header import Header, Mode, PointRef
from fleece.delta.writer import DeltaWriter
from fleece.store.loose import open_delta
from fleece.tree import BlankDisk
from tools.benchmark.cases import MIB, Bench

SIZE = 1 << 40
_LEAVES = 16


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, size: int) -> dict[str, float]:
    """Write a full delta with a record for each MiB of a disk, walk it; gives times and peaks.

    Every record has the same small frame and leaf hashes of its own: nothing decodes the frames.
    """
    head = Header(
        file_id=uuid.UUID(int=1),
        chain="0123abcd",
        guest="web",
        disk="vda",
        size=size,
        point=PointRef("0000000001", 1, "2024-01-01T00:00:00Z"),
        parent=None,
        mode=Mode.FULL,
        disks=("vda",),
        level=1,
        granularity=None,
        producer={},
    )
    frame = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(bytes(MIB))
    before, start = _peak(), time.monotonic()
    with path.open("wb") as sink:
        writer = DeltaWriter(sink, head, BlankDisk(head.geometry))
        for number in range(size // MIB):
            leaves = b"".join(
                (number * _LEAVES + leaf).to_bytes(16, "little") for leaf in range(_LEAVES)
            )
            writer.data(number * MIB, MIB, leaves, frame)
        written = time.monotonic() - start
        writer.finish()
    finished, peak = time.monotonic() - start, _peak()
    with open_delta(str(path)) as delta:
        walk = Walk(delta)
        for _ in walk:
            pass
        walk.finish(BlankDisk(head.geometry))
    return {
        "records": size / MIB,
        "append_seconds": written,
        "finish_seconds": finished - written,
        "check_seconds": time.monotonic() - start - finished,
        "import_mib": before,
        "write_peak_mib": peak,
        "check_peak_mib": _peak(),
    }


def dense(bench: Bench, runs: int) -> dict[str, float]:
    """A full delta of 1 TiB of data, in a process of its own."""
    path = bench.folder / "dense.fleece"
    words = [sys.executable, "-P", "-m", "tools.benchmark.dense", str(path), str(SIZE)]
    found = [
        json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(runs)
    ]
    path.unlink()
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
