"""A guest that is in another QEMU, or on its way: no verb reads or changes what is not its guest's.

Real migrations between two QEMUs on this host that share the image. What a run state means is in
docs/reference/backup.rst.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fleece
from fleece.engine.work.kvm import examine_kvm
from fleece.source.qemu import presence
from fleece.source.qemu.answers import Answer
from fleece.source.qemu.monitor import Monitor
from tests.engine.scene import (
    GUEST,
    KIB64,
    MIB,
    MachineScene,
    Moment,
    fill,
    small_tmpfs,
    wait_until,
)
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.initramfs import GuestFiles
from tests.rig.machine import GuestMachine, Machine
from tests.rig.process import run_checked

SIZE = 8 * MIB
NOWHERE = 1024
"""Bytes a second at which a migration does not come to its end."""
FAST = 1 << 30

WAYS = {
    "pull": (),
    "push": ("--transport", "push"),
    "filter": ("--fleecing", "filter"),
}


class Pair:
    """A QEMU with a guest, and one that waits for it, on the same image and store.

    Attributes:
        here: has the guest at first.
        there: waits.
    """

    def __init__(self, here: MachineScene, there: MachineScene) -> None:
        self.here = here
        self.there = there
        self._uri = f"unix:{here.qemu.folder}/migration.sock"
        there.qemu.control.command("migrate-incoming", {"uri": self._uri})

    def begin(self) -> None:
        """Begin a migration that does not end by itself."""
        self.speed(NOWHERE)
        self.here.qemu.control.command("migrate", {"uri": self._uri})
        wait_until(lambda: self.migration() == "active", "the migration to begin")

    def speed(self, rate: int) -> None:
        """Bytes a second."""
        self.here.qemu.control.command("migrate-set-parameters", {"max-bandwidth": rate})

    def migration(self) -> str:
        """The state of the migration."""
        return str(self.here.qemu.control.command("query-migrate").get("status"))

    def end(self) -> str:
        """Let it end; gives how."""
        self.speed(FAST)
        ended = ("completed", "failed")
        wait_until(lambda: self.migration() in ended, "the migration to end")
        state = self.migration()
        if state == "completed":  # as who sent the guest says: it may not be all there yet
            wait_until(lambda: self.there.status != "inmigrate", "the guest to arrive")
        return state


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(images.random_image(tmp_path / "d0.qcow2", SIZE, seed=1, fill=1.0), "d0")


@pytest.fixture
def pair(tmp_path: Path, disk: Disk) -> Iterator[Pair]:
    """The guest runs, and there is a point of it."""
    with Machine([disk], monitors=2) as here:
        here.control.command("cont")
        first = MachineScene(here, tmp_path)
        first.backup().succeeded()
        # Not to be ended cleanly: it may never get its guest, and ends by itself then.
        there = Machine([disk], monitors=2, extra=["-incoming", "defer"])
        with contextlib.ExitStack() as stack:
            stack.enter_context(there)
            stack.callback(there.kill)
            yield Pair(first, MachineScene(there, tmp_path))


def _nodes(scene: MachineScene) -> list[Any]:
    """QEMU's nodes, with their bitmaps; the file's size is the other QEMU's matter."""
    nodes = scene.qemu.control.command("query-named-block-nodes")
    return [(node["node-name"], node["ro"], node.get("dirty-bitmaps")) for node in nodes]


def _refused(scene: MachineScene, *words: str) -> None:
    """Every verb that would read or change this QEMU is refused, and changes nothing."""
    ask = scene.qemu.control.command
    before = (_nodes(scene), ask("query-status"), scene.points())
    for way in WAYS.values():
        scene.backup(*way).failed(3, *words)
    scratch = ("--scratch", scene.scratch, "--json")
    run = scene.engine.run
    run("audit", scene.source, scene.store, "--guest", GUEST, *scratch).failed(3, *words)
    run("clean", scene.source, *scratch).failed(3, *words)
    run("bitmap", scene.source, "--drop", "deadbeef", "--json").failed(3, *words)
    with fleece.QemuSource(str(scene.qemu.qmp_socket), scene.scratch) as source:
        with pytest.raises(fleece.SourceError, match="does not have its guest"):
            source.drop_bitmap("vd-d0", "any")
        (found,) = source.inventory().disks
        for take in (source.take, source.adopt):
            with pytest.raises(fleece.SourceError, match="does not have its guest"):
                take(fleece.Request("deadbeef", 1, "0123456789", [fleece.Wanted(found, None)]))
    assert (_nodes(scene), ask("query-status"), scene.points()) == before
    assert [*scene.scratch.iterdir()] == []


def _verdict(scene: MachineScene) -> Any:
    """What doctor says of the guest's presence."""
    ran = scene.engine.run("doctor", scene.source, "--json").succeeded()
    said = ran.named("qemu")[0]
    assert ("guest" in ran.result["missing"]) is (said["refusal"] is not None)
    return said


def test_a_qemu_that_waits_for_its_guest_is_refused(pair: Pair) -> None:
    _refused(pair.there, "does not have its guest", "waits for a guest that migrates to it")
    said = _verdict(pair.there)
    assert said["state"] == "inmigrate"
    assert "waits for a guest" in said["refusal"]


def test_a_guest_is_backed_up_where_it_is(pair: Pair) -> None:
    """Its bitmaps go with the image, so that the next backup is incremental."""
    pair.here.writer().write(MIB, os.urandom(KIB64))
    pair.begin()
    assert pair.end() == "completed"
    said = ("does not have its guest", "its guest has migrated to another QEMU")
    _refused(pair.here, *said)
    assert _verdict(pair.here)["state"] == "postmigrate"
    assert "has migrated to another" in _verdict(pair.here)["refusal"]
    assert _verdict(pair.there)["refusal"] is None
    pair.there.writer().write(2 * MIB, os.urandom(KIB64))
    for way in WAYS.values():
        ran = pair.there.backup(*way).succeeded()
        assert ran.result["mode"] == "incremental"
        pair.there.check_exact()
        pair.there.nothing_left()


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_that_came_and_has_not_got_its_disks_yet(way: str, pair: Pair) -> None:
    """QEMU 7.2 shows its disks as it knew them before the guest came, and a push took that."""
    there, ask = pair.there, pair.there.qemu.control.command
    late = {"capability": "late-block-activate", "state": True}
    ask("migrate-set-capabilities", {"capabilities": [late]})
    pair.here.qemu.control.command("stop")
    pair.begin()
    assert pair.end() == "completed"
    assert there.status == "paused"
    there.backup(*WAYS[way]).failed(3, "may not have its disks yet", "continue the guest")
    assert "may not have its disks yet" in _verdict(there)["refusal"]
    there.clean().failed(3, "may not have its disks yet")
    ask("cont")
    assert there.backup(*WAYS[way]).succeeded().result["mode"] == "incremental"
    there.check_exact()


@pytest.mark.parametrize("active", [True, False])
def test_a_qemu_that_tells_which_disks_are_active_is_believed(
    active: bool, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of QEMU 10.0 on."""
    with Machine([disk], monitors=2) as qemu, Monitor(str(qemu.qmp_socket)) as monitor:

        def told(command: str) -> Answer:
            nodes = qemu.control.command(command)
            return Answer([node | {"active": active} for node in nodes], command, monitor.path)

        monkeypatch.setattr(monitor, "execute", told)
        assert (presence.without_disks(monitor) is None) is active


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_that_is_being_migrated_is_left_alone(way: str, pair: Pair) -> None:
    """A backup would keep the migration from its end."""
    pair.begin()
    ran = pair.here.backup(*WAYS[way]).failed(3, "is being migrated", "wait for the migration")
    assert ran.named("plan") == []
    assert pair.here.status == "running"
    assert "is being migrated" in _verdict(pair.here)["refusal"]
    assert pair.end() == "completed"
    assert pair.there.backup(*WAYS[way]).succeeded().result["mode"] == "incremental"
    pair.there.check_exact()


def test_a_cancelled_migration_is_none(pair: Pair) -> None:
    pair.begin()
    pair.here.qemu.control.command("migrate_cancel")
    wait_until(lambda: pair.migration() == "cancelled", "the migration to be cancelled")
    assert pair.here.backup().succeeded().result["mode"] == "incremental"
    pair.here.check_exact()


def test_an_interrupted_point_can_be_taken_out_of_a_migrations_way(pair: Pair) -> None:
    pair.here.writer().write(0, os.urandom(4 * MIB))
    pair.here.killed_backup(Moment("in the copy", "fleece.nbd.connection", "Connection.read"))
    pair.begin()
    pair.here.backup().failed(3, "is being migrated")
    assert pair.here.clean().succeeded().result["removed"] > 0
    assert pair.end() == "completed"
    assert pair.there.backup().succeeded().result["mode"] == "incremental"
    pair.there.check_exact()
    pair.there.nothing_left()


@pytest.mark.parametrize("fleecing", ["classic", "filter"])
def test_a_migration_during_a_backup_never_harms_the_point(fleecing: str, pair: Pair) -> None:
    """QEMU 7.2 ends such a migration as failed, and the guest goes on where it is.

    A QEMU that completed it would have lost the point.
    """
    ended: list[str] = []

    def listen(event: fleece.events.Event) -> None:
        if event.name == "point":
            pair.here.writer().write(3 * MIB, os.urandom(KIB64))
            pair.begin()
            ended.append(pair.end())

    pair.here.writer().write(MIB, os.urandom(KIB64))
    live = pair.here.folder / "live"
    pair.here.writer().flush()
    run_checked("qemu-img", "convert", "-U", pair.here.qemu.disks["d0"].path, "-O", "raw", live)
    lost: fleece.PointError | None = None
    try:
        pair.here.take(fleecing=fleecing, listener=listen)
    except fleece.PointError as error:
        lost = error
    if ended == ["completed"]:
        assert "may have left" in str(lost)
        return
    assert lost is None
    assert ended == ["failed"]
    assert pair.here.status == "running"
    restored = pair.here.restore("d0")
    assert restored.read_bytes() == live.read_bytes()
    pair.here.nothing_left()
    pair.here.take("incremental")
    pair.here.check_exact()


def test_a_paused_guest_whose_migration_failed_is_not_said_to_have_left(pair: Pair) -> None:
    """QEMU puts it into the state of one that has left. What is known is told, and what to do."""
    pair.here.qemu.control.command("stop")
    ended: list[str] = []

    def listen(event: fleece.events.Event) -> None:
        if event.name == "point":
            pair.begin()
            ended.append(pair.end())

    with pytest.raises(fleece.PointError, match="ended as failed"):
        pair.here.take(listener=listen)
    assert ended == ["failed"]
    assert pair.here.status == "postmigrate"
    pair.here.nothing_left()
    said = pair.here.backup().failed(3, "may not have its guest", "ended as failed", "continue it")
    assert "has migrated" not in said.out
    assert "ended as failed" in _verdict(pair.here)["refusal"]
    pair.here.qemu.control.command("cont")
    pair.here.writer().write(0, os.urandom(KIB64))
    pair.here.backup().succeeded()
    pair.here.check_exact()
    pair.here.nothing_left()


@pytest.mark.parametrize("state", ["postmigrate", "inmigrate", "colo", "teleported"])
@pytest.mark.parametrize("when", ["look", "check"])
def test_a_point_whose_guest_left_is_lost(
    state: str, when: str, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No QEMU of today completes a migration beside a point; one that did would be noticed."""
    with Machine([disk], monitors=2) as qemu:
        scene = MachineScene(qemu, tmp_path)
        with fleece.QemuSource(str(qemu.qmp_socket), scene.scratch) as source:
            (found,) = source.inventory().disks
            wanted = [fleece.Wanted(found, None)]
            with source.take(fleece.Request("deadbeef", 1, "0123456789", wanted)) as point:
                monkeypatch.setattr(presence, "run_state", lambda monitor: "finish-migrate")
                point.look(crossed=False)
                point.check()
                monkeypatch.setattr(presence, "run_state", lambda monitor: state)
                with pytest.raises(fleece.PointError, match="may have left QEMU while"):
                    point.check() if when == "check" else point.look(crossed=False)
        scene.nothing_left()


# ---- states in which a guest can be backed up ------------------------------------------------


def _hmp(scene: MachineScene, line: str) -> None:
    scene.qemu.control.command("human-monitor-command", {"command-line": line})


def _as_started(scene: MachineScene) -> None:
    pass


def _paused(scene: MachineScene) -> None:
    scene.qemu.control.command("cont")
    scene.qemu.control.command("stop")


def _shut_down(scene: MachineScene) -> None:
    scene.qemu.control.command("cont")
    scene.qemu.control.command("system_reset")


def _panicked(scene: MachineScene) -> None:
    scene.qemu.control.command("cont")
    _hmp(scene, "o /b 0x505 1")


def _watchdog(scene: MachineScene) -> None:
    scene.qemu.control.command("cont")
    _hmp(scene, "o /b 0x443 0xf")


def _suspended(scene: MachineScene) -> None:
    """ACPI's S3, by the chipset's PM1 control register, once the BIOS has given that its port."""
    scene.qemu.control.command("cont")

    def asked() -> bool:
        _hmp(scene, "o /w 0x604 0x2400")
        return scene.status == "suspended"

    wait_until(asked, "the guest to be suspended")


def _stepped(scene: MachineScene) -> None:
    """One instruction, as a debugger asks for it."""
    place = scene.qemu.folder / "gdb"
    _hmp(scene, f"gdbserver unix:{place},server=on,wait=off")
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(str(place))
        debugger.sendall(b"$s#73")
        wait_until(lambda: scene.status == "debug", "the debugger to stop the guest")


def _lost(scene: MachineScene) -> None:
    """A boot sector that jumps, in protected mode, to where no memory is: KVM cannot run that."""
    code = bytes.fromhex("fa 31c0 8ed8 0f01162c7c 0f20c0 0c01 0f22c0 66ea000000e00800 9090")
    segments = bytes(8) + bytes.fromhex("ffff0000009acf00")
    where = bytes.fromhex("0f00 1c7c0000")
    sector = (code + segments + where).ljust(510, b"\0") + b"\x55\xaa"
    scene.writer().write(0, sector)
    scene.qemu.control.command("cont")


STATES: dict[str, tuple[Callable[[MachineScene], None], tuple[str, ...]]] = {
    "prelaunch": (_as_started, ()),
    "running": (lambda scene: scene.qemu.control.command("cont"), ()),
    "paused": (_paused, ()),
    "shutdown": (_shut_down, ("-no-shutdown", "-no-reboot")),
    "guest-panicked": (_panicked, ("-device", "pvpanic", "-action", "panic=pause")),
    "watchdog": (_watchdog, ("-device", "ib700", "-action", "watchdog=pause")),
    "suspended": (_suspended, ()),
    "debug": (_stepped, ()),
    "internal-error": (_lost, ("-machine", "accel=kvm")),
}


@pytest.mark.parametrize("state", STATES)
def test_a_guest_that_does_not_run_is_backed_up_and_stays_as_it_is(
    state: str, disk: Disk, tmp_path: Path
) -> None:
    reach, extra = STATES[state]
    if state == "internal-error" and not examine_kvm().works:
        pytest.skip("only KVM has this state")
    with Machine([disk], monitors=2, extra=extra) as qemu:
        scene = MachineScene(qemu, tmp_path)
        reach(scene)
        wait_until(lambda: scene.status == state, f"the state {state}")
        for number, way in enumerate(WAYS.values()):
            scene.writer().write(number * MIB, os.urandom(KIB64))
            scene.backup(*way).succeeded()
            scene.check_exact()
            scene.nothing_left()
            assert scene.status == state
        said = _verdict(scene)
        assert (said["state"], said["refusal"]) == (state, None)


def test_a_guest_that_an_io_error_stopped_is_backed_up_and_stays_so(
    files: GuestFiles, tmp_path: Path
) -> None:
    """A real guest, whose image's file system is full. Only its owner knows when it may go on."""
    made = images.make_disk(tmp_path / "d0.qcow2", 64 * MIB, fs="ext4")
    with small_tmpfs(32) as small:
        image = small / "d0.qcow2"
        shutil.copy(made, image)
        with GuestMachine(files, [Disk(image, "d0")], append="rig.delay=0", monitors=2) as qemu:
            qemu.wait_acked(3)
            fill(small)
            scene = MachineScene(qemu, tmp_path)
            wait_until(lambda: scene.status == "io-error", "the guest to be stopped")
            for way in WAYS.values():
                scene.backup(*way).succeeded()
                restored = scene.restore("d0")
                words = ("-U", "-f", "qcow2", "-F", "raw", image, restored)
                run_checked("qemu-img", "compare", *words)
                scene.nothing_left()
                assert scene.status == "io-error"
            qemu.kill()


def test_a_state_that_is_not_known_is_refused(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later QEMU's."""
    with Machine([disk], monitors=2) as qemu, Monitor(str(qemu.qmp_socket)) as monitor:
        assert presence.absence(monitor) is None
        monkeypatch.setattr(presence, "run_state", lambda monitor: "teleported")
        with pytest.raises(fleece.SourceError, match="the state teleported, which fleece does not"):
            presence.refuse_absent(monitor)
