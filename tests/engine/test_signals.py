"""Backups that are stopped: by signals, by QEMU's death, by a lost monitor, by others in QEMU."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from fleece.delta.layout import ENVELOPE, SKIPPABLE_MAGIC, Tag
from fleece.events import Event, Warned
from fleece.store.loose import open_records
from fleece.store.names import MARKER
from tests.engine.history import Guest
from tests.engine.scene import (
    GUEST,
    INTACT,
    KIB64,
    MIB,
    ROOT,
    Proxy,
    Scene,
    daemon,
    reasons,
    small_tmpfs,
    wait_until,
)
from tests.rig import filesystems, images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import LIMIT

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _hang_up_ends() -> Iterator[None]:
    """Under nohup it is ignored, and so it would be by what is started here."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _store_files(scene: Scene) -> list[tuple[str, bytes]]:
    files = [path for path in scene.store.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted((str(path), path.read_bytes()) for path in files)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_leaves_everything_as_it_was(number: signal.Signals, pair: Scene) -> None:
    pair.take()
    before = _store_files(pair)
    pair.writer("d0").write(0, os.urandom(3 * MIB))
    running = pair.slow_backup("--mode", "full")
    running.wait_event("progress")
    pair.writer("d1").write(0, os.urandom(MIB))
    running.signal(number)
    ran = running.wait().failed(130, "interrupted")
    assert ran.named("committed") == []
    pair.nothing_left()
    assert _store_files(pair) == before
    result = pair.take("incremental")
    assert [disk.dirty_bytes for disk in result.disks] == [3 * MIB, MIB]
    pair.check_exact()
    pair.only_newest_segment()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_the_first_backup_leaves_nothing(number: signal.Signals, scene: Scene) -> None:
    running = scene.slow_backup()
    running.wait_event("progress")
    running.signal(number)
    running.signal(number)
    running.wait().failed(130)
    scene.nothing_left()
    assert scene.segments() == []
    assert scene.points() == 0
    scene.take("full")
    scene.check_exact()


def test_a_hang_up_that_is_ignored_stays_ignored(scene: Scene) -> None:
    """So a run under nohup outlives the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = scene.slow_backup()
    finally:
        signal.signal(signal.SIGHUP, before)
    running.wait_event("progress")
    running.signal(signal.SIGHUP)
    running.wait().succeeded()
    scene.check_exact()
    scene.nothing_left()


def test_a_signal_before_the_point_stores_none(scene: Scene) -> None:
    words = scene.words()
    running = scene.slow("fleece.source.qemu.source", "QemuSource.take", 500, *words)
    running.wait_event("plan")
    running.signal(signal.SIGTERM)
    running.wait().failed(130)
    assert scene.points() == 0
    assert scene.segments() == []
    scene.nothing_left()
    scene.take()
    scene.check_exact()


def test_a_signal_ends_a_restore_without_a_target(scene: Scene) -> None:
    scene.take()
    before = sorted(scene.folder.iterdir())
    words = ("restore", scene.store, "latest", "d0", scene.folder / "target", "--json")
    for target in ((), ("--format", "qcow2")):
        function = (
            ("fleece.nbd.connection", "Connection.write")
            if target
            else (
                "fleece.disk.raw",
                "RawDisk.write",
            )
        )
        running = scene.slow(*function, 200, *words, *target)
        running.wait_event("progress")
        running.signal(signal.SIGTERM)
        running.wait().failed(130)
        assert sorted(scene.folder.iterdir()) == before


def test_a_signal_ends_a_verification(scene: Scene) -> None:
    scene.take()
    running = scene.slow(
        "fleece.delta.reader", "DeltaReader.unpack", 200, "verify", scene.store, "--json"
    )
    running.wait_event("progress")
    running.signal(signal.SIGINT)
    running.wait().failed(130)


@pytest.mark.parametrize("verb", ["salvage", "restore"])
def test_a_signal_ends_the_search_for_records_in_a_damaged_file(verb: str, tmp_path: Path) -> None:
    """Behind the header are only things that look like records: all of it is one search."""
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": os.urandom(MIB)})
    (delta,) = guest.paths["vda"]
    with open_records(delta) as file:
        start = file.records_start
    likeness = ENVELOPE.pack(SKIPPABLE_MAGIC, 1, Tag.RECORD.value)
    delta.write_bytes(delta.read_bytes()[:start] + 1000 * likeness)
    words: tuple[object, ...] = ("salvage", delta, "-o", tmp_path / "new")
    if verb == "restore":
        words = ("restore", guest.store, "latest", "vda", tmp_path / "new", "--partial")
    before = sorted(tmp_path.rglob("*"))
    running = INTACT.slow("fleece.delta.wreck", "Wreck._record_from", 200, *words)
    workers = Path(f"/proc/{running.pid}/task")
    wait_until(lambda: len([*workers.iterdir()]) >= 4, "the workers")
    running.signal(signal.SIGTERM)
    running.wait().failed(130, "interrupted")
    assert sorted(tmp_path.rglob("*")) == before


# ---- whoever is on the other side of a pipe does nothing -------------------------------------


def _waits(pid: int) -> bool:
    """Whether a process hears SIGTERM, and did next to nothing in the last second."""

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15]))

    (caught,) = (
        int(line.split()[1], 16)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt")
    )
    before = ticks()
    time.sleep(1)
    return bool(caught >> signal.SIGTERM - 1 & 1) and ticks() - before < 10


def _terminated_while_it_waits(*words: object, stdin: int | None = None, stdout: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: _waits(process.pid), "it to wait")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert b"interrupted" in said


@contextmanager
def _full_pipe() -> Iterator[int]:
    """A pipe that takes no more, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (4096, 1):
        while select.select([], [writing], [], 0)[1]:
            os.write(writing, bytes(size))
    os.set_blocking(writing, True)
    yield writing
    os.close(writing)
    os.close(reading)


def test_a_signal_ends_an_import_that_waits_for_its_stream(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    store = Path(fleece.init(tmp_path / "store").where)
    words = ("import", store)
    _terminated_while_it_waits(*words, stdin=reading, stdout=subprocess.DEVNULL)
    os.close(reading)
    os.close(writing)
    assert [path.name for path in store.iterdir()] == [MARKER]


@pytest.mark.parametrize("writer", [False, True], ids=["nobody writes", "somebody says nothing"])
@pytest.mark.parametrize("option", ["--key-file", "--passphrase-file"])
def test_a_signal_ends_the_waiting_for_a_key(option: str, writer: bool, tmp_path: Path) -> None:
    fifo = tmp_path / "key"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR if writer else os.O_PATH)
    words = ("list", tmp_path / "store", option, fifo)
    _terminated_while_it_waits(*words, stdout=subprocess.DEVNULL)
    os.close(held)


def test_a_signal_ends_a_backup_into_a_pipe_that_takes_no_more(scene: Scene) -> None:
    for words in ((), ("--transport", "push")):
        with _full_pipe() as pipe:
            _terminated_while_it_waits(*scene.words("--output", "-", *words), stdout=pipe)
        scene.nothing_left()
        assert scene.segments() == []
    scene.take("full")
    scene.check_exact()


def test_a_signal_ends_a_restore_into_a_pipe_that_takes_no_more(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": os.urandom(MIB)})
    with _full_pipe() as pipe:
        _terminated_while_it_waits("restore", guest.store, "latest", "vda", "-", stdout=pipe)


def test_a_signal_ends_a_copy_of_a_file_into_a_pipe_that_takes_no_more(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"x")
    image = filesystems.ext(tmp_path / "image", MIB, tmp_path / "tree")
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": image.read_bytes()})
    words = ("files", guest.store, "latest", "vda", "cp", "/file", "-")
    with _full_pipe() as pipe:
        _terminated_while_it_waits(*words, stdout=pipe)


def test_sigkill_in_mid_copy_costs_nothing_but_the_attempt(pair: Scene) -> None:
    pair.take()
    pair.writer("d0").write(MIB, os.urandom(4 * MIB))
    running = pair.slow_backup()
    running.wait_event("progress")
    pair.writer("d1").write(0, os.urandom(1000))
    running.kill()
    pair.writer("d0").zero(2 * MIB, MIB, unmap=True)
    pair.writer("d1").write(MIB, os.urandom(1000))
    ran = pair.backup("--mode", "incremental", "--no-resume").succeeded()
    kinds = {event["kind"] for event in ran.named("leftover")}
    assert kinds == {"partial point", "export", "NBD server", "job", "node", "scratch"}
    assert [disk["dirty_bytes"] for disk in ran.result["disks"]] == [4 * MIB, 2 * KIB64]
    pair.check_exact()
    pair.nothing_left()
    pair.only_newest_segment()


def test_clean_removes_what_a_killed_backup_left(pair: Scene) -> None:
    pair.take()
    running = pair.slow_backup("--mode", "full")
    running.wait_event("progress")
    running.kill()
    ran = pair.engine.run("clean", pair.source, "--scratch", pair.scratch, "--json").succeeded()
    assert ran.result["removed"] == len(ran.named("removed")) > 0
    assert not [*pair.scratch.iterdir()]
    assert len(pair.segments("d0")) == 2
    again = pair.engine.run("clean", pair.source, "--scratch", pair.scratch, "--json").succeeded()
    assert again.result["removed"] == 0
    pair.take("incremental")
    pair.check_exact()
    pair.nothing_left()


def test_clean_leaves_a_living_backup_alone(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", 8 * MIB, seed=1, fill=1.0)
    with Machine([Disk(image, "d0")], monitors=2) as qemu:
        scene = Scene(qemu, tmp_path)
        running = scene.slow_backup()
        running.wait_event("progress")
        other = f"qmp:{qemu.qmp_sockets[1]}"
        ran = scene.engine.run("clean", other, "--scratch", scene.scratch, "--json").succeeded()
        assert ran.result["removed"] == 0
        running.wait().succeeded()
        scene.same_as_live("d0", scene.restore("vd-d0"))
        scene.nothing_left()


def test_qemu_killed_in_mid_backup_is_told_and_costs_a_full(pair: Scene) -> None:
    pair.take()
    pair.qemu.restart()
    pair.writer("d0").write(0, os.urandom(MIB))
    pair.writer("d0").flush()
    running = pair.slow_backup("--mode", "full")
    running.wait_event("progress")
    pair.qemu.kill()
    ran = running.wait()
    ran.failed(ran.code)
    assert ran.code in (3, 4)
    assert pair.points() == 1
    pair.qemu.start()
    heard: list[Event] = []
    result = pair.take(listener=heard.append)
    assert result.mode == "rescan"
    assert "inconsistent" in reasons(heard)["d0"][1]
    pair.check_exact()
    pair.nothing_left()
    pair.only_newest_segment()


def test_qemu_that_quits_in_mid_backup_keeps_the_chain(scene: Scene) -> None:
    scene.take()
    scene.writer().write(0, os.urandom(2 * MIB))
    running = scene.slow_backup("--mode", "full")
    running.wait_event("progress")
    scene.qemu.quit()
    ran = running.wait()
    ran.failed(ran.code)
    assert ran.code in (3, 4)
    scene.qemu.start()
    scene.writer().write(5 * MIB, os.urandom(KIB64))
    result = scene.take("incremental")
    assert result.disks[0].dirty_bytes == 2 * MIB + KIB64
    scene.check_exact()
    scene.nothing_left()


def test_a_lost_monitor_commits_nothing(pair: Scene) -> None:
    pair.take()
    pair.writer("d0").write(0, os.urandom(MIB))
    proxy = Proxy(pair.qemu.folder / "proxy.sock", pair.qemu.qmp_socket)
    words = ("--mode", "full", "--guest", GUEST, "--scratch", pair.scratch, "--json")
    running = pair.slow(
        "fleece.nbd.connection",
        "Connection.read",
        200,
        *("backup", f"qmp:{proxy.path}", pair.store, *words),
    )
    running.wait_event("progress")
    proxy.cut()
    running.wait().failed(3, "the connection to QEMU was lost")
    assert pair.points() == 1
    result = pair.take("incremental")
    assert result.disks[0].dirty_bytes == MIB
    pair.check_exact()
    pair.nothing_left()
    pair.only_newest_segment()


def test_a_monitor_lost_after_the_commit_loses_nothing(pair: Scene) -> None:
    pair.take()
    pair.writer("d0").write(0, os.urandom(MIB))
    proxy = Proxy(pair.qemu.folder / "proxy.sock", pair.qemu.qmp_socket)
    warnings: list[str] = []

    def cut(event: Event) -> None:
        if event.name == "committed":
            proxy.cut()
        elif isinstance(event, Warned):
            warnings.append(event.what)

    options = fleece.BackupOptions(guest=GUEST)
    with fleece.QemuSource(str(proxy.path), pair.scratch) as source:
        stored = fleece.backup(source, fleece.open_store(pair.store), options, cut)
    assert warnings
    for warning in warnings:
        assert "is stored, but" in warning
        assert "connection to QEMU was lost" in warning
    assert stored.disks[0].dirty_bytes == MIB
    assert pair.points() == 2
    pair.writer("d1").write(0, os.urandom(MIB))
    result = pair.take("incremental")
    assert [disk.dirty_bytes for disk in result.disks] == [0, MIB]
    pair.check_exact()
    pair.nothing_left()
    pair.only_newest_segment()


def test_a_job_that_someone_cancels_takes_the_point_along(pair: Scene) -> None:
    """From then on the export shows the live disk: nothing of it may be believed."""
    pair.take()
    pair.writer("d0").write(MIB, os.urandom(KIB64))
    running = pair.slow_backup("--mode", "full")
    running.wait_event("progress")
    (job, *_) = [item["id"] for item in pair.qemu.control.command("query-jobs")]
    pair.qemu.control.command("block-job-cancel", {"device": job})
    running.wait().failed(4, "the point was lost")
    assert pair.points() == 1
    pair.nothing_left()
    pair.take("incremental")
    pair.check_exact()


def test_an_export_that_someone_removes_is_an_error(scene: Scene) -> None:
    scene.take()
    running = scene.slow_backup("--mode", "full")
    running.wait_event("progress")
    (export,) = [
        item["id"]
        for item in scene.qemu.control.command("query-block-exports")
        if item["type"] == "nbd"
    ]
    scene.qemu.control.command("block-export-del", {"id": export, "mode": "hard"})
    ran = running.wait()
    ran.failed(3, "NBD")
    scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()


def test_a_reader_of_its_output_that_goes_away_ends_a_backup(scene: Scene) -> None:
    """As soon as there is something to tell."""
    scene.take()
    scene.writer().write(0, os.urandom(MIB))
    running = scene.slow_backup("--mode", "full")
    running.wait_event("progress")
    ran = running.close_output()
    assert ran.code == 1
    assert "Traceback" not in ran.err
    scene.nothing_left()
    assert scene.take("incremental").disks[0].dirty_bytes == MIB
    scene.check_exact()


def test_a_scratch_that_runs_full_ends_the_backup_and_not_the_guest(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", 64 * MIB, seed=1, fill=1.0)
    with small_tmpfs(48) as small, daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.scratch = small
        scene.take()
        running = scene.slow_backup("--mode", "full", milliseconds=300)
        running.wait_event("progress")
        for offset in range(0, 44 * MIB, MIB):
            scene.writer().write(offset, os.urandom(MIB))
        running.wait().failed(4, "scratch")
        scene.nothing_left()
        assert scene.take("incremental").disks[0].dirty_bytes == 44 * MIB
        scene.check_exact()
