"""An audit: what QEMU calls unchanged is read, and compared with what the store holds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleece
from fleece.engine.backup.sample import sample
from tests.engine.scene import GUEST, Moment, Mutation, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import run_checked

MIB = 1024 * 1024
LEAF = 64 * 1024
SIZE = 20 * MIB + 512
"""With a tail that is no whole leaf."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Scene]:
    """A disk with a full in the store: data, then 4 MiB of hole, then data."""
    raw = images.make_disk(tmp_path / "d0.raw", SIZE, "raw")
    with raw.open("r+b") as file:
        file.write(os.urandom(12 * MIB))
        file.seek(16 * MIB)
        file.write(os.urandom(SIZE - 16 * MIB))
    image = tmp_path / "d0.qcow2"
    run_checked("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.take()
        yield scene


def _forget_writes(scene: Scene) -> None:
    """What some tool may do: clear the bitmap that recorded them."""
    for name in scene.segments():
        scene.qemu.control.command("block-dirty-bitmap-clear", {"node": "d0", "name": name})


def _unseen(scene: Scene, offset: int, length: int = LEAF) -> None:
    """The guest writes, and QEMU forgets it."""
    scene.writer().write(offset, os.urandom(length))
    scene.writer().flush()
    _forget_writes(scene)


def _audit(scene: Scene) -> fleece.AuditedDisk:
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        (found,) = fleece.audit(source, fleece.open_store(scene.store), GUEST).disks
    return found


def _refused(scene: Scene) -> str:
    with pytest.raises(fleece.VerifyError) as refused:
        _audit(scene)
    return str(refused.value)


def _audit_command(scene: Scene) -> tuple[object, ...]:
    options = "--guest", GUEST, "--scratch", scene.scratch, "--json"
    return "audit", scene.source, scene.store, *options


def _notes(scene: Scene) -> list[str]:
    return [path.name for path in scene.store.glob("audit-failed-*")]


def _state(scene: Scene) -> object:
    """Of the store and of QEMU: all that an audit leaves as it is."""
    files = {path: path.stat().st_mtime_ns for path in scene.store.rglob("*.fleece")}
    keys = "name", "count", "recording", "persistent"
    return files, [[item[key] for key in keys] for item in scene.bitmaps()]


# ---- an audit of all -------------------------------------------------------------------------


def test_all_that_is_clean_is_compared(disk: Scene) -> None:
    disk.writer().write(5 * MIB + 7, b"dirty")
    disk.writer().flush()
    before = _state(disk)
    ran = disk.engine.run(*_audit_command(disk)).succeeded()
    (found,) = ran.result["disks"]
    assert found["compared_bytes"] == SIZE - LEAF
    assert found["against"] == fleece.open_store(disk.store).catalogue().points[0].id
    assert _state(disk) == before
    disk.nothing_left()
    assert disk.take("incremental").disks[0].dirty_bytes == LEAF
    disk.check_exact()


def test_writes_that_the_bitmap_missed_are_found(disk: Scene) -> None:
    writer = disk.writer()
    writer.write(MIB + 5, b"a few bytes")
    writer.zero(3 * MIB, LEAF, unmap=True)
    writer.zero(5 * MIB, LEAF, unmap=False)
    writer.discard(7 * MIB, 2 * MIB)
    writer.write(14 * MIB, b"in a hole")
    writer.write(SIZE - 1, b"!")
    writer.flush()
    _forget_writes(disk)
    before = _state(disk)
    ran = disk.engine.run(*_audit_command(disk))
    ran.failed(6, "disk d0", f"at offsets {MIB}, {3 * MIB}, {5 * MIB}, {7 * MIB}, ...", "rescan")
    places = [(item["start"], item["end"]) for item in ran.result["differing"]]
    leaves = [(at * MIB, at * MIB + LEAF) for at in (1, 3, 5, 14)]
    assert places == sorted([*leaves, (7 * MIB, 9 * MIB), (SIZE - SIZE % LEAF, SIZE)])
    assert _state(disk) == before
    disk.nothing_left()
    again = disk.backup().succeeded()
    assert again.result["mode"] == "rescan"
    assert "that the source calls unchanged since" in again.named("plan")[0]["reason"]
    disk.check_exact()
    disk.verify()
    assert _audit(disk).compared_bytes == SIZE
    assert disk.take().mode == "incremental"


def test_a_disk_that_was_shrunk_and_grown_back_is_found(tmp_path: Path) -> None:
    """QEMU marks nothing dirty then, and what was cut off reads as zeros."""
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1, fill=1.0)
    with Machine([Disk(image, "d0")]) as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        for size in (6 * MIB, 8 * MIB):
            qemu.control.command("block_resize", {"node-name": "d0", "size": size})
        assert "2097152 bytes that the source calls unchanged" in _refused(scene)
        assert scene.take().mode == "rescan"
        scene.same_as_live("d0", scene.restore("vd-d0"))


def test_what_is_written_meanwhile_is_no_difference(disk: Scene) -> None:
    running = disk.slow("fleece.nbd.connection", "Connection.read", 50, *_audit_command(disk))
    running.wait_event("point")
    for offset in range(0, 12 * MIB, MIB):
        disk.writer().write(offset, os.urandom(LEAF))
    disk.writer().flush()
    running.wait().succeeded()
    disk.nothing_left()
    assert disk.take("incremental").disks[0].dirty_bytes == 12 * LEAF
    disk.check_exact()


def test_without_bitmaps_there_is_nothing_to_audit(disk: Scene) -> None:
    for name in disk.segments():
        disk.qemu.control.command("block-dirty-bitmap-remove", {"node": "d0", "name": name})
    ran = disk.engine.run(*_audit_command(disk))
    ran.failed(4, "disk d0: there is nothing to audit", "no bitmap")
    disk.nothing_left()
    options = "--scratch", disk.scratch, "--json"
    disk.engine.run("audit", disk.source, disk.folder / "none", *options).failed(5, "no store")
    ran = disk.engine.run("audit", disk.source, disk.store, "--guest", "other", *options)
    ran.failed(5, "no point of guest other")
    assert sorted(item.name for item in disk.store.iterdir()) == ["fleece-store.json", GUEST]


def test_a_killed_audit_leaves_nothing_that_the_next_run_does_not_remove(disk: Scene) -> None:
    before = _state(disk)
    running = disk.slow("fleece.nbd.connection", "Connection.read", 500, *_audit_command(disk))
    running.wait_event("point")
    running.kill()
    ran = disk.engine.run(*_audit_command(disk)).succeeded()
    assert "job" in [event["kind"] for event in ran.named("leftover")]
    assert _state(disk) == before
    disk.nothing_left()


# ---- an audit of a part, along with a backup -------------------------------------------------


def test_a_backup_audits_along(disk: Scene) -> None:
    disk.writer().write(5 * MIB, os.urandom(LEAF))
    ran = disk.backup("--audit", "1").succeeded()
    (found,) = ran.result["disks"]
    assert (found["dirty_bytes"], found["audited_bytes"]) == (LEAF, SIZE - LEAF)
    half = disk.backup("--audit", "0.5").succeeded()
    assert 10 * MIB <= half.result["disks"][0]["audited_bytes"] <= 11 * MIB
    assert disk.backup().succeeded().result["disks"][0]["audited_bytes"] == 0
    disk.backup("--audit", "1.5").failed(2, "0 to 1")
    disk.check_exact()


def test_a_backup_with_a_failed_audit_is_none(disk: Scene) -> None:
    _unseen(disk, 3 * MIB)
    disk.writer().write(9 * MIB, os.urandom(LEAF))
    disk.backup("--audit", "1").failed(6, "disk d0", str(3 * MIB), "rescan")
    assert disk.points() == 1
    assert len(_notes(disk)) == 1
    disk.nothing_left()
    disk.backup("--mode", "incremental").failed(4, "calls unchanged since", "--mode auto")
    disk.backup("--mode", "differential").failed(4, "calls unchanged since")
    result = disk.take()
    assert (result.mode, result.disks[0].dirty_bytes) == ("rescan", 2 * LEAF)
    assert _notes(disk) == []
    disk.check_exact()
    disk.verify()
    assert disk.take("incremental").mode == "incremental"


def test_a_full_mends_it_too(disk: Scene) -> None:
    _unseen(disk, 3 * MIB)
    _refused(disk)
    disk.take("full")
    assert disk.take("incremental").mode == "incremental"
    disk.check_exact()


def test_a_differential_is_audited_against_its_full(disk: Scene) -> None:
    disk.writer().write(MIB, os.urandom(LEAF))
    disk.take()
    disk.writer().write(2 * MIB, os.urandom(LEAF))
    result = disk.backup("--mode", "differential", "--audit", "1").succeeded().result
    assert result["disks"][0]["audited_bytes"] == SIZE - 2 * LEAF
    _unseen(disk, 3 * MIB)
    disk.backup("--mode", "differential", "--audit", "1").failed(6, str(3 * MIB))


def test_what_an_audit_found_outlives_qemu_and_the_engine(disk: Scene) -> None:
    _unseen(disk, 3 * MIB)
    _refused(disk)
    disk.qemu.restart()
    disk.killed_backup(Moment("about to rename", "fleece.folder", "os.rename", "before"))
    assert len(_notes(disk)) == 1
    assert disk.take().mode == "rescan"
    disk.check_exact()


def test_it_is_noted_before_anybody_is_told(disk: Scene) -> None:
    """A run that is killed right after it has seen a difference has not lost it."""
    _unseen(disk, 3 * MIB)
    seen = Moment("seen", "fleece.source.qemu.point", "QemuPoint.check", "before")
    disk.killed_backup(seen, "--audit", "1")
    assert len(_notes(disk)) == 1
    assert disk.take().mode == "rescan"
    disk.check_exact()


def test_only_the_disk_that_is_wrong_is_read_again(pair: Scene) -> None:
    pair.take()
    _unseen(pair, MIB)
    pair.backup("--audit", "1").failed(6, "disk d0")
    ran = pair.backup().succeeded()
    assert [item["mode"] for item in ran.result["disks"]] == ["rescan", "incremental"]
    pair.check_exact()


_NOTE = "store.distrust(chain_id, job.name, job.trouble)"
_WHERE = "same = zeros.subtract(held.not_yet_zero(zeros))"


@pytest.mark.parametrize(
    "fault",
    [
        Mutation("it is not noted", (("engine/backup/audit.py", _NOTE, "pass"),)),
        Mutation(
            "the note is not read",
            (
                (
                    "engine/backup/plan.py",
                    "task.store.distrusted(lineage.chain_id, disk.name)",
                    "None",
                ),
            ),
        ),
        Mutation(
            "a hole is never looked into", (("engine/backup/sample.py", _WHERE, "same = zeros"),)
        ),
        Mutation(
            "the first leaf of a read is skipped",
            (
                (
                    "engine/backup/sample.py",
                    "start, data[start -",
                    "start + 65536, data[65536 + start -",
                ),
            ),
        ),
        Mutation(
            "a difference is no failure",
            (("engine/backup/fill_by_pull.py", "        refuse_differing(audits)\n", ""),),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_these_checks_can_fail(fault: Mutation, disk: Scene) -> None:
    disk.engine = fault.engine(disk.folder)
    disk.writer().discard(4 * MIB, MIB)
    disk.writer().flush()
    _forget_writes(disk)
    with pytest.raises(AssertionError):
        _judge(disk)


def _judge(scene: Scene) -> None:
    scene.backup("--audit", "1").failed(6, f"{MIB} bytes")
    scene.backup().succeeded()
    scene.check_exact()


# ---- the choice ------------------------------------------------------------------------------


def _chosen(clean: fleece.Extents, fraction: float, seed: int = 1) -> fleece.Extents:
    chosen = fleece.Extents.empty()
    for part in sample(clean, fraction, random.Random(seed)):
        assert len(chosen.intersect(part)) == 0
        chosen = chosen.union(part)
    return chosen


SPOTS = fleece.Extents.of((at * MIB, at * MIB + LEAF) for at in range(0, 1000, 2))
LARGE = fleece.Extents.whole(64 << 30)


@pytest.mark.parametrize("clean", [LARGE, SPOTS, fleece.Extents.whole(SIZE)])
def test_a_part_is_chosen(clean: fleece.Extents) -> None:
    assert _chosen(clean, 1.0) == clean
    tenth = _chosen(clean, 0.1)
    assert len(tenth.subtract(clean)) == 0
    assert clean.total / 10 - MIB <= tenth.total <= clean.total / 10 + MIB
    assert _chosen(clean, 0.1, seed=2) != tenth
    assert _chosen(clean, 1e-9).total <= MIB
    assert _chosen(clean, 1e-9).total > 0
    assert len(_chosen(fleece.Extents.empty(), 0.5)) == 0


def test_every_leaf_has_its_chance() -> None:
    """In the long run each is read: a hundred audits of a tenth leave none out."""
    clean = fleece.Extents.whole(100 * MIB + 512)
    seen = fleece.Extents.empty()
    for seed in range(100):
        seen = seen.union(_chosen(clean, 0.1, seed))
    assert seen == clean
