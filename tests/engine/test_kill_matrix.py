"""The engine dies at every step, is stopped, loses its monitor or its store: nothing is lost.

`tests.engine.matrix` says what is checked after each fault, and at the end of each test. The same
with many more random moments: ``tools/killmatrix``.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from pathlib import Path

import pytest

from fleece.engine.work.reads import MAX_READ
from fleece.events import Event
from fleece.nbd.connection import Connection
from tests.engine.matrix import control_steps, matrix
from tests.engine.scene import KIB64, MIB, Mutation, Proxy, Scene, daemon
from tests.rig import images
from tests.rig.disk import Disk

RANDOM_KILLS = 25
EVERY_STEP = os.environ.get("FLEECE_EVERY_STEP") == "1"


def test_killed_at_steps_of_the_control_plane(tmp_path: Path) -> None:
    """At half of them; at all with FLEECE_EVERY_STEP=1."""
    with matrix(tmp_path, seed=1) as here:
        steps = control_steps(here.steps())
        assert len(set(steps)) >= 25
        if not EVERY_STEP:
            chosen = random.Random(1).sample(range(len(steps)), len(steps) // 2)
            steps = [steps[number] for number in sorted(chosen)]
        for step in steps:
            ran = here.hit("SIGKILL", step)
            assert ran.code in (-9, 0), f"{step}: {ran}"
    # A few writes may not come: there is less dirt in another run.
    assert here.counts.killed >= len(steps) - 4
    assert here.counts.resumed >= len(steps) // 5


def test_killed_at_random_moments_of_the_copy(tmp_path: Path) -> None:
    moments = random.Random(2)
    with matrix(tmp_path, seed=2) as here:
        for _ in range(RANDOM_KILLS):
            ran = here.hit("SIGKILL", after=moments.uniform(0.0, 0.2), slow=0.02)
            assert ran.code in (-9, 0), ran
    assert here.counts.killed >= RANDOM_KILLS // 2
    assert here.counts.resumed >= RANDOM_KILLS // 5


STOPS = (
    "before query-version 1",
    "before mkdir-work-folder 1",
    "before blockdev-add 2",
    "before transaction 1",
    "after transaction 1",
    "before block-export-add 2",
    "before mkdir-point 1",
    "before write 3",
    "before write 12",
    "before finish delta 2",
    "before fsync 1",
    "before rename 1",
    "after rename 1",
    "before block-export-del 1",
    "before job-dismiss 1",
    "before blockdev-del 1",
    "before block-dirty-bitmap-remove 1",
)
"""Steps that every incremental backup has."""


def test_stopped_by_a_signal_at_any_step_it_takes_everything_down_itself(tmp_path: Path) -> None:
    with matrix(tmp_path, seed=3) as here:
        for number, step in enumerate(STOPS):
            before = here.scene.points()
            ran = here.only_hit(("SIGTERM", "SIGINT")[number % 2], step)
            here.scene.nothing_left()
            assert here.scene.points() == before + bool(ran.named("committed"))
            if ran.named("committed"):  # too late to stop: it is stored, and it says so
                ran.succeeded()
            else:
                ran.failed(130, "interrupted")
            here.backup()
    assert 0 < here.counts.ended < here.counts.failed


def test_a_monitor_lost_at_any_step_costs_no_more_than_the_attempt(tmp_path: Path) -> None:
    with matrix(tmp_path, seed=4) as here:
        for step in STOPS[1:]:
            ran = here.hit("monitor", step)
            if ran.named("committed"):
                ran.succeeded()
                assert "could not be cleaned up" in ran.named("warning")[-1]["what"]
            else:
                ran.failed(3, "the connection to QEMU was lost")
    assert here.counts.ended > 0
    assert here.counts.failed > 0


FAILING = (
    ("EIO", "before mkdir-point 1"),
    ("ENOSPC", "before write 1"),
    ("EIO", "before write 7"),
    ("EDQUOT", "before write 12"),
    ("EIO", "before fsync 1"),
    ("EIO", "before fsync 2"),
    ("EIO", "before fsync 3"),
    ("EIO", "before rename 1"),
)


def test_a_store_that_fails_at_any_step_keeps_what_it_had(tmp_path: Path) -> None:
    with matrix(tmp_path, seed=5) as here:
        for fault, step in FAILING:
            before = here.scene.points()
            here.only_hit(fault, step).failed(5, os.strerror(getattr(errno, fault)))
            here.scene.nothing_left()
            assert here.scene.points() == before
            here.backup()


def test_a_fault_in_the_matrix_is_seen(tmp_path: Path) -> None:
    """An engine that lets go of its segments before the point is durable."""
    fault = Mutation(
        "segments go too early",
        (
            (
                "engine/backup/run.py",
                "results = store_point(",
                "taken.living.committed()\n            results = store_point(",
            ),
        ),
    )
    (tmp_path / "engine").mkdir()
    engine = fault.engine(tmp_path / "engine")
    with pytest.raises(AssertionError), matrix(tmp_path, seed=6, engine=engine) as here:
        here.hit("SIGKILL", "before mkdir-point 1")


def test_a_store_that_disappears_in_mid_write_and_comes_back(pair: Scene) -> None:
    pair.take()
    pair.writer("d0").write(0, os.urandom(6 * MIB))
    running = pair.slow_backup()
    running.wait_event("progress")
    away = pair.store.rename(pair.folder / "away")
    running.wait().failed(5, "No such file")
    assert not pair.store.exists()
    pair.writer("d1").write(0, os.urandom(KIB64))
    away.rename(pair.store)
    result = pair.take("incremental")
    assert not result.resumed
    assert [disk.dirty_bytes for disk in result.disks] == [6 * MIB, KIB64]
    pair.check_exact()
    pair.nothing_left()
    pair.only_newest_segment()


def test_a_lost_nbd_connection_is_replaced_while_the_point_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections are cut, three times, each time just before a read."""
    image = images.random_image(tmp_path / "d0.qcow2", 24 * MAX_READ, seed=1, fill=1.0)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.take()
        scene.writer().write(0, os.urandom(20 * MAX_READ))
        behind = scene.qemu.folder / "behind.sock"
        proxies: list[Proxy] = []
        reads = itertools.count(1)
        plain = Connection.read

        def cut_and_read(
            self: Connection, offset: int, length: int, unit: int | None = None
        ) -> memoryview:
            if next(reads) in (1, 6, 11):
                proxies[0].drop()
            return plain(self, offset, length, unit)

        def put_between(event: Event) -> None:
            if event.name == "point":
                (place,) = scene.scratch.glob("*/qemu/nbd.sock")
                proxies.append(Proxy(place, place.rename(behind)))
            elif event.name == "committed":
                (place,) = scene.scratch.glob("*/qemu/nbd.sock")
                proxies[0].drop()  # its ends have the path of the server's
                behind.rename(place)

        monkeypatch.setattr(Connection, "read", cut_and_read)
        result = scene.take("incremental", listener=put_between)
        assert next(reads) > 20 + 3, "reads were not repeated"
        assert result.disks[0].dirty_bytes == 20 * MAX_READ
        scene.check_exact()
        scene.nothing_left()
        scene.verify()
