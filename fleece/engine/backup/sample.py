"""Read a part of what is said to be clean, and compare it with the chain by hash."""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fleece.cancel import CancelToken
from fleece.delta.chain import Chain
from fleece.delta.layout import MAX_RECORD
from fleece.disk.base import ReadableDisk, Reader
from fleece.engine.backup.unchanged import HeldLeaves
from fleece.engine.work.pool import WORKERS, Counter, run_workers
from fleece.engine.work.reads import WINDOW, OneReader, ReadItem, known_zeros, read_items
from fleece.errors import VerifyError
from fleece.extents import Extents
from fleece.tree import HashArray, LeafHasher, changed_runs

_NAMED = 4
"""How many differing places a message names."""


@dataclass
class AuditJob:
    """The clean part of one disk, and what became of it.

    Attributes:
        name: of the disk.
        disk: where its bytes are read.
        clean: whole leaves that nothing changed since the chain's point, as it is said.
        chain: the disk at that point.
        compared_bytes: bytes of disk that were compared with the chain so far.
        differing: the leaves among them that are not what the chain holds, (start, end) in bytes.
    """

    name: str
    disk: ReadableDisk
    clean: Extents
    chain: Chain
    compared_bytes: int = field(default=0)
    differing: list[tuple[int, int]] = field(default_factory=list)

    @property
    def trouble(self) -> str | None:
        """What an audit found, in one clause; None: nothing."""
        if not self.differing:
            return None
        found = Extents.of(self.differing)
        places = ", ".join(str(start) for start, _ in list(found)[:_NAMED])
        more = ", ..." if len(found) > _NAMED else ""
        point = self.chain.deltas[0].header.point.id
        return (
            f"{found.total} bytes that the source calls unchanged since point {point} are not what "
            f"the chain holds, at offsets {places}{more}"
        )


def sample(clean: Extents, fraction: float, source: random.Random) -> Iterator[Extents]:
    """Choose a part of some leaves at random, in order of the disk, a window at a time.

    Every leaf has the same chance; together they are at least `fraction` of the runs (of up to
    1 MiB) that `clean` is cut into, rounded up.

    Args:
        clean: whole leaves.
        fraction: in (0, 1].
        source: of the randomness.
    """
    seen = taken = 0
    for part in clean.windows(WINDOW):
        starts, ends = part.split(MAX_RECORD)
        seen += len(starts)
        count = min(len(starts), math.ceil(seen * fraction) - taken)
        taken += count
        picked = np.sort(np.array(source.sample(range(len(starts)), count), np.int64))
        yield Extents.normal(starts[picked], ends[picked])


def compare_clean(
    jobs: Sequence[AuditJob],
    fraction: float,
    counter: Counter,
    cancel: CancelToken,
    workers: int = WORKERS,
    watch: Callable[[], None] | None = None,
) -> None:
    """Read that part of all jobs' clean leaves, as a new sample, and note what differs.

    Args:
        jobs: the disks.
        fraction: in (0, 1].
        counter: counts bytes of disk.
        cancel: stops it.
        workers: threads.
        watch: `Point.watch`, called all the while.
    """
    lock = threading.Lock()

    def items() -> Iterator[tuple[AuditJob, ReadItem, HashArray]]:
        for job in jobs:
            held = HeldLeaves(job.chain)
            source = random.Random(secrets.randbits(128))
            for part in sample(job.clean, fraction, source):
                # What lies between may be stored, and reclaimed by now: neither ask nor read it.
                zeros = known_zeros(job.disk, part, job.chain.geometry.leaf_size, gap=0)
                # Zeros on both sides are the same. Others are read, and their hashes decide.
                same = zeros.subtract(held.not_yet_zero(zeros))
                counter.skip(same.total)
                job.compared_bytes += same.total
                for item, hashes in held.beside(read_items(part.subtract(same), gap=0)):
                    yield job, item, hashes

    def work(shared: Iterator[tuple[AuditJob, ReadItem, HashArray]]) -> None:
        with contextlib.closing(OneReader()) as one:
            for job, item, held in shared:
                wrong = list(_differing(job, item, one.of(job.disk), held))
                read = sum(end - start for start, end in item.wanted)
                with lock:
                    job.differing += wrong
                    job.compared_bytes += read
                counter.add(read)

    run_workers(items(), work, cancel, workers, watch)


def _differing(
    job: AuditJob, item: ReadItem, reader: Reader, held: HashArray
) -> Iterator[tuple[int, int]]:
    shape = job.chain.geometry
    hasher = LeafHasher(shape)
    data = memoryview(reader.read(item.start, item.length))
    for start, end in item.wanted:
        for run in hasher.runs(start, data[start - item.start : end - item.start]):
            first = (run.offset - item.start) // shape.leaf_size
            same = held[first : first - (-run.length // shape.leaf_size)]
            for wrong in changed_runs(run, same, shape):
                yield wrong.offset, wrong.offset + wrong.length


def refuse_differing(jobs: Sequence[AuditJob]) -> None:
    """Fail if an audit found anything.

    Raises:
        VerifyError: it did. Its fields list the places, a hundred for each disk at most.
    """
    found = [(job.name, job.trouble, Extents.of(job.differing)) for job in jobs]
    bad = [(name, trouble, places) for name, trouble, places in found if trouble is not None]
    if not bad:
        return
    error = VerifyError(
        "; ".join(f"disk {name}: {trouble}" for name, trouble, _ in bad),
        hint="the next backup reads everything (rescan); find out who wrote there",
    )
    error.fields = {
        "differing": [
            {"disk": name, "start": start, "end": end}
            for name, _, places in bad
            for start, end in list(places)[:100]
        ]
    }
    raise error
