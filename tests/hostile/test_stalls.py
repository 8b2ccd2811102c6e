"""A signal while QEMU hangs, while its NBD server does, and while the point is taken down.

The run ends, says truly what is left of the point, and the next one finds it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engine.history import Guest
from tests.engine.scene import INTACT, KIB64, MIB, Scene, daemon, wait_until
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.listening import Listening

DOWN = "interrupted; the point was taken down again"

# Words: where the engine's NBD connections are to go, then those of the command line.
_DIVERTED = """
import sys
from fleece.cli.main import main
from fleece.nbd.uri import unix_uri
from fleece.source.qemu import point
place = sys.argv[1]
point.unix_uri = lambda path, name: unix_uri(place, name)
sys.exit(main(sys.argv[2:]))
"""

# Words: a command that QEMU refuses, then those of the command line.
_REFUSED = """
import sys
from fleece.cli.main import main
from fleece.source.qemu.monitor import CommandError, Monitor
refused, plain = sys.argv[1], Monitor.execute
def execute(self, command, *rest, **named):
    if command == refused:
        raise CommandError(command, "injected", self.path)
    return plain(self, command, *rest, **named)
Monitor.execute = execute
from fleece.nbd.connection import Connection
import time
read = Connection.read
def slowly(self, *words):
    time.sleep(0.2)
    return read(self, *words)
Connection.read = slowly
sys.exit(main(sys.argv[2:]))
"""


class Stalling(Listening):
    """A socket before QEMU's NBD server, which passes on so many bytes of answers and no more.

    Attributes:
        stalled: is set when bytes are held back.
    """

    def __init__(self, path: Path, scratch: Path, allowed: int) -> None:
        self.stalled = threading.Event()
        self._scratch = scratch
        self._left = allowed
        self._lock = threading.Lock()
        super().__init__(path)

    def meet(self, client: socket.socket) -> None:
        """Connect it with the server."""
        (behind,) = self._scratch.glob("*/qemu/nbd.sock")
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(behind))
        for words in ((client, server, False), (server, client, True)):
            threading.Thread(target=self._pass_on, args=words, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                if answers and not self._may_pass(len(data)):
                    continue
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _may_pass(self, count: int) -> bool:
        with self._lock:
            self._left -= count
            if self._left < 0:
                self.stalled.set()
        return not self.stalled.is_set()


def _next_is_exact(scene: Scene) -> None:
    scene.writer().write(0, os.urandom(KIB64))
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()
    scene.only_newest_segment()


@pytest.mark.parametrize("mode", ["full", "incremental"])
@pytest.mark.parametrize("allowed", [0, 700, 20_000])
def test_a_signal_ends_a_pull_whose_server_hangs(mode: str, allowed: int, scene: Scene) -> None:
    """In the greeting, in block status, in reads: QEMU itself goes on, and lets go of the point."""
    scene.take()
    scene.writer().write(0, os.urandom(MIB))
    stalling = Stalling(scene.qemu.folder / "stalling.sock", scene.scratch, allowed)
    try:
        words = scene.words("--mode", mode)
        running = scene.engine.script(_DIVERTED, stalling.path, *words)
        wait_until(stalling.stalled.is_set, "the server to hang")
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGINT)
        running.wait().failed(130, DOWN)
    finally:
        stalling.close()
    scene.nothing_left()
    _next_is_exact(scene)


@pytest.mark.parametrize("words", [(), ("--transport", "push")], ids=["pull", "push"])
def test_a_signal_ends_a_backup_whose_qemu_hangs(words: tuple[str, ...], scene: Scene) -> None:
    scene.take()
    scene.writer().write(0, os.urandom(3 * MIB))
    function = ("fleece.nbd.connection", "Connection.read")
    if words:
        function = ("fleece.engine.backup.push", "PushJob.take")
    scene.engine = INTACT.limited("fleece.source.qemu.monitor", "_CANCELLED_LIMIT", 1)
    running = scene.slow(*function, 300, *scene.words("--mode", "full", *words))
    running.wait_event("progress")
    os.kill(scene.qemu.pid, signal.SIGSTOP)
    try:
        running.signal(signal.SIGTERM)
        running.wait().failed(130, "QEMU does not answer", "may still be there")
    finally:
        os.kill(scene.qemu.pid, signal.SIGCONT)
    _next_is_exact(scene)


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_while_the_point_is_taken_down_stops_nothing(
    again: signal.Signals, scene: Scene
) -> None:
    scene.take()
    ask = scene.qemu.control.command
    words = scene.words("--mode", "full")
    running = scene.slow("fleece.source.qemu.teardown", "_end_jobs", 1000, *words)
    running.wait_event("point")
    running.signal(signal.SIGTERM)
    wait_until(lambda: ask("query-block-exports")[1:] == [], "the export to go")
    for _ in range(3):
        running.signal(again)
    ran = running.wait()
    if ran.code:  # else it was through before the first one came
        ran.failed(130, DOWN)
    scene.nothing_left()
    _next_is_exact(scene)


def test_a_signal_after_the_commit_stops_nothing(scene: Scene) -> None:
    running = scene.slow("fleece.source.qemu.teardown", "_release", 1000, *scene.words())
    running.wait_event("committed")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        running.signal(number)
    running.wait().succeeded()
    scene.nothing_left()
    scene.check_exact()
    _next_is_exact(scene)


@pytest.mark.parametrize("command", ["block-export-del", "blockdev-del", "nbd-server-stop"])
def test_a_point_that_could_not_be_taken_down_is_told(command: str, scene: Scene) -> None:
    scene.take()
    running = scene.engine.script(_REFUSED, command, *scene.words("--mode", "full"))
    running.wait_event("progress")
    running.signal(signal.SIGTERM)
    ran = running.wait().failed(130, "a part of the point may be left", "injected", "fleece clean")
    assert "taken down again" not in ran.out
    _next_is_exact(scene)


def test_what_an_interruption_leaves_of_a_standing_target_is_told(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.holding({"vda": os.urandom(4 * MIB)})
    target = tmp_path / "target"
    target.write_bytes(os.urandom(4 * MIB))
    words = ("restore", guest.store, "latest", "vda", target, "--in-place", "--json")
    running = INTACT.slow("fleece.nbd.connection", "Connection.write", 300, *words)
    while running.wait_event("progress")["phase"] != "restore":
        pass
    running.signal(signal.SIGTERM)
    running.wait().failed(130, "interrupted", f"{target} may be written in part")
    INTACT.run(*words).succeeded()


def test_what_was_made_for_another_qemu_that_lives_is_left_alone(tmp_path: Path) -> None:
    """Two guests of one name, backed up into one store by way of one scratch."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = Disk(images.random_image(tmp_path / "one" / "d0.qcow2", 8 * MIB, seed=1), "d0")
    second = Disk(images.random_image(tmp_path / "two" / "d0.qcow2", 8 * MIB, seed=2), "d0")
    with daemon(tmp_path / "one", first) as one, daemon(tmp_path / "two", second) as two:
        two.store, two.scratch = one.store, one.scratch
        _killed(one)
        (left,) = one.scratch.iterdir()
        before = sorted(path.name for path in left.rglob("*"))
        two.take()
        clean = ("clean", two.source, "--scratch", two.scratch, "--json")
        assert INTACT.run(*clean).succeeded().result["removed"] == 0
        assert [*one.scratch.iterdir()] == [left]
        assert sorted(path.name for path in left.rglob("*")) == before
        two.check_exact()
        one.take()
        one.check_exact()
        one.nothing_left()
        two.nothing_left()


def _killed(scene: Scene) -> None:
    running = scene.slow_backup()
    running.wait_event("progress")
    running.kill()
