"""Two backups of one guest at once, and other tools' work on the same QEMU."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fleece
from fleece.source.qemu.server import listens
from fleece.source.sockets import connections
from tests.engine.scene import (
    GUEST,
    INTACT,
    Engine,
    Mutation,
    Ran,
    Running,
    Scene,
    daemon,
    is_nbd_server,
    nothing_left,
    wait_until,
)
from tests.rig import images
from tests.rig.daemon import StorageDaemon
from tests.rig.disk import Disk
from tests.rig.machine import Machine

MIB = images.MIB
KIB64 = 65536


class Pair:
    """Two masters of one QEMU, each with a monitor, a store and a scratch of its own."""

    def __init__(self, qemu: StorageDaemon, folder: Path) -> None:
        self.qemu = qemu
        self.one = Scene(qemu, folder)
        self.two = Scene(qemu, folder / "two")
        self.two.folder.mkdir()
        self.two.store = folder / "other"
        self.two.scratch = qemu.folder / "other"
        self.two.scratch.mkdir()

    def start(self, number: int) -> Running:
        """Start a slow backup by one of them, and hold it when its point is taken (`go_on`)."""
        scene = (self.one, self.two)[number]
        command = (
            "backup", f"qmp:{self.qemu.qmp_sockets[number]}", scene.place(), "--guest", GUEST,
            "--scratch", scene.scratch, "--json",
        )  # fmt: skip
        running = scene.slow("fleece.nbd.connection", "Connection.read", 100, *command)
        running.wait_event("point")
        running.signal(signal.SIGSTOP)
        return running

    def check(self) -> None:
        """Both chains hold what the disk holds, each by what changed since its own point."""
        for scene in (self.one, self.two):
            scene.take("incremental")
            scene.check_exact()
            scene.verify()
        nothing_left(self.qemu, self.one.scratch)
        assert [*self.two.scratch.iterdir()] == []
        assert len(self.one.segments()) == 2


def _go_on(running: Running) -> Ran:
    running.signal(signal.SIGCONT)
    return running.wait()


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    with StorageDaemon([Disk(image, "d0")], monitors=2) as qemu:
        made = Pair(qemu, tmp_path)
        if getattr(request, "param", False):
            made.two.scratch.rmdir()
            made.two.scratch = made.one.scratch
        yield made


@pytest.mark.parametrize(
    ("pair", "order"),
    [(False, (0, 1)), (True, (1, 0))],
    ids=["first out, two scratches", "last out, one scratch"],
    indirect=["pair"],
)
def test_both_work_whoever_ends_first(pair: Pair, order: tuple[int, int]) -> None:
    """The server that the first one started lives for as long as anybody reads from it."""
    writer = pair.one.writer()
    first = pair.start(0)
    writer.write(0, os.urandom(1000))
    second = pair.start(1)
    writer.write(MIB, os.urandom(1000))
    running = first, second
    for left, number in enumerate(order):
        assert len(pair.qemu.control.command("query-jobs")) == 2 - left
        _go_on(running[number]).succeeded()
    pair.check()


def test_each_point_is_its_own(pair: Pair) -> None:
    """What the guest writes between the two points is in the later one alone."""
    writer = pair.one.writer()
    first = pair.start(0)
    data = os.urandom(KIB64)
    writer.write(2 * MIB, data)
    second = pair.start(1)
    writer.write(2 * MIB, os.urandom(KIB64))
    _go_on(first).succeeded()
    _go_on(second).succeeded()
    read = [scene.restore(store=scene.store).read_bytes() for scene in (pair.one, pair.two)]
    assert read[0][2 * MIB : 2 * MIB + KIB64] != data
    assert read[1][2 * MIB : 2 * MIB + KIB64] == data
    assert read[0][: 2 * MIB] == read[1][: 2 * MIB]
    assert read[0][2 * MIB + KIB64 :] == read[1][2 * MIB + KIB64 :]
    pair.check()


@pytest.mark.parametrize("victim", [0, 1], ids=["who started the server", "who joined"])
def test_one_is_killed_and_the_other_goes_on(pair: Pair, victim: int) -> None:
    running = pair.start(0), pair.start(1)
    pair.one.writer().write(0, os.urandom(1000))
    running[victim].kill()
    _go_on(running[1 - victim]).succeeded()
    scene = (pair.one, pair.two)[victim]
    ran = scene.backup().succeeded()
    assert "job" in [event["kind"] for event in ran.named("leftover")]
    pair.check()


def test_the_next_run_of_one_leaves_the_other_alone(pair: Pair) -> None:
    """Cleaning up, too: 'fleece clean' takes down nothing that lives."""
    first = pair.start(0)
    for _ in range(2):
        _go_on(pair.start(1)).succeeded()
    words = "clean", f"qmp:{pair.qemu.qmp_sockets[1]}", "--scratch", pair.one.scratch
    assert pair.two.engine.run(*words, "--json").succeeded().result["removed"] == 0
    _go_on(first).succeeded()
    pair.check()


def test_many_at_once(pair: Pair) -> None:
    """Starting, joining and stopping the server at any moment: no run ever fails for it."""
    failed: list[Exception] = []

    def work(number: int) -> None:
        scene = (pair.one, pair.two)[number]
        try:
            for _ in range(10):
                with fleece.QemuSource(str(pair.qemu.qmp_sockets[number]), scene.scratch) as source:
                    fleece.backup(source, scene.opened(), fleece.BackupOptions(guest=GUEST))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for number in itertools.count():
        pair.one.writer().write(number % 64 * KIB64, os.urandom(100))
        if not any(thread.is_alive() for thread in threads):
            break
    assert failed == []
    pair.check()


def test_a_foreign_backup_is_left_alone(tmp_path: Path) -> None:
    """Another tool's job, overlay, server and export: detected, and nothing of it is touched."""
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    with Machine([Disk(image, "d0")]) as qemu:
        scene = Scene(qemu, tmp_path)
        scene.take()
        ask = qemu.control.command
        scratch = images.make_disk(tmp_path / "foreign.qcow2", 4 * MIB)
        file = {"driver": "file", "filename": str(scratch)}
        overlay = {"driver": "qcow2", "node-name": "theirs", "file": file, "backing": "d0"}
        ask("blockdev-add", overlay)
        ask("blockdev-backup", {"job-id": "j", "device": "d0", "target": "theirs", "sync": "none"})
        place = str(qemu.folder / "theirs.sock")
        ask("nbd-server-start", {"addr": {"type": "unix", "data": {"path": place}}})
        ask("block-export-add", {"id": "e", "type": "nbd", "node-name": "theirs", "name": "x"})

        scene.backup().failed(3, "NBD server that is not fleece's")
        scene.engine.run("clean", scene.source, "--scratch", scene.scratch).succeeded()
        assert [item["id"] for item in ask("query-jobs")] == ["j"]
        assert [item["id"] for item in ask("query-block-exports")] == ["e"]
        assert is_nbd_server(place)

        ask("block-export-del", {"id": "e", "mode": "hard"})
        ask("nbd-server-stop")
        scene.writer().write(0, os.urandom(100))
        assert scene.take("incremental").disks[0].dirty_bytes == KIB64  # beside their job
        assert [item["id"] for item in ask("query-jobs")] == ["j"]
        scene.same_as_live("d0", scene.restore("vd-d0"))


@contextmanager
def _stray_client(folder: Path, engine: Engine = INTACT) -> Iterator[tuple[Scene, Ran]]:
    """A backup during which somebody connects to the server and says nothing, until the end."""
    image = images.random_image(folder / "d0.qcow2", 4 * MIB, seed=1)
    with daemon(folder, Disk(image, "d0"), engine=engine) as scene:
        scene.take()
        scene.writer().write(MIB, os.urandom(KIB64))
        running = scene.slow_backup()
        running.wait_event("point")
        with socket.socket(socket.AF_UNIX) as client:
            (place,) = scene.scratch.glob("fleece-*/qemu/nbd.sock")
            client.connect(str(place))
            assert client.recv(8) == b"NBDMAGIC"
            yield scene, running.wait().succeeded()
        scene.engine.run("clean", scene.source, "--scratch", scene.scratch).succeeded()
        scene.nothing_left()
        scene.writer().write(2 * MIB, os.urandom(KIB64))
        assert scene.take("incremental").disks[0].dirty_bytes == KIB64
        scene.check_exact()


def test_a_stray_client_of_the_server_does_not_hang_qemu(tmp_path: Path) -> None:
    """QEMU 7.2 hangs for ever if its server is stopped while a client negotiates."""
    with _stray_client(tmp_path) as (scene, ran):
        assert ran.named("warning") == []
        scene.nothing_left()


def test_a_client_that_stays_keeps_the_server_and_nothing_else(tmp_path: Path) -> None:
    """A QEMU that does not end such clients by itself: here fleece does not wait until it does."""
    short = Mutation("short", (("source/qemu/server.py", "_LEAVING = 15.0", "_LEAVING = 0.5"),))
    with _stray_client(tmp_path, short.engine(tmp_path)) as (scene, ran):
        (warning,) = ran.named("warning")
        assert "somebody is connected to fleece's NBD server" in warning["what"]
        assert scene.qemu.control.command("query-jobs") == []
        clean = scene.engine.run("clean", scene.source, "--scratch", scene.scratch)
        clean.failed(3, "somebody is connected", "ss -xp", "nbd.sock")


def test_a_server_that_is_stopped_beside_a_client_is_noticed(tmp_path: Path) -> None:
    wait = "_wait_for_clients(monitor.peer.pid, home.socket)"
    edits = (
        ("source/qemu/server.py", wait, "pass"),
        ("source/qemu/monitor.py", "COMMAND_LIMIT = 120.0", "COMMAND_LIMIT = 2.0"),  # it hangs then
    )
    fault = Mutation("stops it at once", edits)
    with StorageDaemon([]) as qemu:
        if qemu.version >= (10, 0, 0):  # 7.2 hangs
            pytest.skip("this QEMU is not affected")
    with (
        pytest.raises((AssertionError, pytest.fail.Exception)),
        _stray_client(tmp_path, fault.engine(tmp_path)),
    ):
        pass


def test_who_asks_whether_a_server_listens_leaves_no_connection(tmp_path: Path) -> None:
    image = images.random_image(tmp_path / "d0.qcow2", MIB, seed=1)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        place = scene.scratch / "fleece-0" / "nbd.sock"
        place.parent.mkdir()
        assert not listens(place)
        address = {"type": "unix", "data": {"path": str(place)}}
        scene.qemu.control.command("nbd-server-start", {"addr": address})
        for _ in range(20):
            assert listens(place)
        wait_until(lambda: not connections(scene.qemu.pid, place), "its clients to go")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place))
            assert connections(scene.qemu.pid, place) == 1
        wait_until(lambda: not connections(scene.qemu.pid, place), "it to let go")
        scene.qemu.control.command("nbd-server-stop")
        assert not listens(place)


@pytest.mark.parametrize(
    "fault",
    [
        Mutation(
            "the first one out stops the server",
            (("source/qemu/server.py", 'item.text("type") == "nbd" for', "False for"),),
        ),
        Mutation(
            "the first one out takes the socket away",
            (("source/qemu/teardown.py", "kept |= {SERVER, QEMU_FOLDER}", "pass"),),
        ),
    ],
    ids=str,
)
def test_these_checks_can_fail(fault: Mutation, pair: Pair) -> None:
    pair.one.engine = pair.two.engine = fault.engine(pair.one.folder)
    first = pair.start(0)
    second = pair.start(1)
    _go_on(first).succeeded()
    ran = _go_on(second)
    with pytest.raises(AssertionError):
        ran.succeeded()
