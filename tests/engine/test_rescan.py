"""A rescan: no bitmap tells what changed, so all is read, and only what differs is stored."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from tests.engine.scene import GUEST, Mutation, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk

MIB = 1024 * 1024
LEAF = 64 * 1024
SIZE = 20 * MIB + 512
"""With a tail that is no whole leaf."""


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Scene]:
    """A raw disk, which keeps no bitmaps: data, then 4 MiB of hole, then data."""
    path = tmp_path / "d0.raw"
    images.make_disk(path, SIZE, "raw")
    data = random.Random(1)  # the same in each run: a byte that is written must be another one
    with path.open("r+b") as file:
        file.write(data.randbytes(12 * MIB))
        file.seek(16 * MIB)
        file.write(data.randbytes(SIZE - 16 * MIB))
    with daemon(tmp_path, Disk(path, "d0", "raw")) as scene:
        yield scene


def _restart(scene: Scene) -> None:
    """A raw disk's bitmaps do not outlive QEMU."""
    scene.qemu.restart()
    assert scene.segments() == []


def _stored(scene: Scene) -> fleece.Extents:
    """What the newest delta holds."""
    newest = fleece.open_store(scene.store).catalogue().find("latest", GUEST)
    with fleece.open_delta(newest.disks["d0"].where) as delta:
        return delta.extents()


def test_only_what_differs_is_stored(raw: Scene) -> None:
    raw.take()
    raw.writer().write(MIB, os.urandom(LEAF))
    raw.take()
    _restart(raw)
    raw.writer().write(3 * MIB + 100, b"x")  # one byte of one leaf
    raw.writer().write(SIZE - 3, b"end")  # the short tail
    raw.writer().zero(5 * MIB, 2 * LEAF, unmap=False)  # data that became zeros
    raw.writer().write(14 * MIB, os.urandom(LEAF))  # a hole that became data
    result = raw.take()
    tail = SIZE - SIZE % LEAF
    changed = [
        (3 * MIB, 3 * MIB + LEAF),
        (5 * MIB, 5 * MIB + 2 * LEAF),
        (14 * MIB, 14 * MIB + LEAF),
        (tail, SIZE),
    ]
    assert result.mode == "rescan"
    assert _stored(raw) == fleece.Extents.of(changed)
    assert result.disks[0].dirty_bytes == 4 * LEAF + SIZE - tail
    raw.check_exact()
    raw.verify()
    raw.nothing_left()
    raw.only_newest_segment()


def test_a_rescan_goes_on_incrementally(raw: Scene) -> None:
    raw.take()
    _restart(raw)
    assert raw.take().mode == "rescan"
    raw.writer().write(0, os.urandom(100))
    result = raw.take("incremental")
    assert result.disks[0].read_bytes == LEAF
    raw.check_exact()
    raw.verify()


def test_nothing_changed_stores_nothing(raw: Scene) -> None:
    full = raw.take()
    _restart(raw)
    result = raw.take()
    assert (result.mode, result.disks[0].dirty_bytes) == ("rescan", 0)
    assert result.disks[0].root == full.disks[0].root
    raw.check_exact()
    raw.verify()


def test_a_disk_that_became_blank(raw: Scene) -> None:
    raw.take()
    _restart(raw)
    raw.writer().discard(0, SIZE - SIZE % LEAF)
    raw.writer().zero(SIZE - SIZE % LEAF, SIZE % LEAF, unmap=False)
    result = raw.take()
    assert result.mode == "rescan"
    assert result.disks[0].stored_bytes < MIB
    raw.check_exact()
    raw.verify()


def test_it_can_be_asked_for(raw: Scene) -> None:
    refused = raw.backup("--mode", "rescan").failed(4, "no rescan is possible", "--mode auto")
    assert refused.result["ok"] is False
    raw.take()
    raw.writer().write(0, os.urandom(LEAF))
    ran = raw.backup("--mode", "rescan").succeeded()
    assert ran.named("plan")[0]["reason"] == "asked for"
    assert (ran.result["mode"], ran.result["disks"][0]["dirty_bytes"]) == ("rescan", LEAF)
    raw.check_exact()
    raw.nothing_left()


@pytest.mark.parametrize(
    "fault",
    [
        Mutation(
            "a leaf that became zero is forgotten",
            (
                (
                    "engine/backup/unchanged.py",
                    "return zeros.subtract(near)",
                    "return Extents.empty()",
                ),
            ),
        ),
        Mutation(
            "the last leaf of a run is forgotten",
            (("tree.py", "last * size, run.length) - start",
              "last * size, run.length) - start - size"),),
        ),
        Mutation(
            "the newest delta's leaves are not looked at",
            (("delta/chain.py", "for delta in self.deltas:\n            if len(missing)",
              "for delta in self.deltas[1:]:\n            if len(missing)"),),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_these_checks_can_fail(fault: Mutation, raw: Scene) -> None:
    """With a fault in the rescan, a restore is not exact or the store not sound."""
    raw.take()
    before = _leaf(raw, MIB)
    raw.writer().write(MIB, os.urandom(LEAF))
    raw.take()
    _restart(raw)
    raw.writer().write(MIB, before)
    raw.writer().zero(2 * MIB, 3 * MIB, unmap=True)
    raw.engine = fault.engine(raw.folder)
    raw.backup()
    with pytest.raises((AssertionError, fleece.FleeceError)):
        _judge(raw, LEAF + 3 * MIB)


def test_what_went_back_to_an_older_state_is_stored(raw: Scene) -> None:
    """What counts is the newest point, not whether any older delta holds such a leaf."""
    raw.take()
    before = _leaf(raw, MIB)
    raw.writer().write(MIB, os.urandom(LEAF))
    raw.take()
    _restart(raw)
    raw.writer().write(MIB, before)
    assert raw.take().mode == "rescan"
    _judge(raw, LEAF)


def _leaf(scene: Scene, offset: int) -> bytes:
    with scene.qemu.disks["d0"].path.open("rb") as file:
        file.seek(offset)
        return file.read(LEAF)


def _judge(scene: Scene, stored: int) -> None:
    scene.check_exact()
    scene.verify()
    assert _stored(scene).total == stored
