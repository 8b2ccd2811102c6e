"""A QEMU of another user, or in another mount namespace: what it may touch, and what it cannot."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.scene import MIB, MachineScene, Ran, wait_until
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.machine import Machine
from tests.rig.process import Child, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run QEMU as another user")

USER = 65534
_AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
_OVER = 'mount -t tmpfs none "$0" && exec "$@"'


class PrefixedMachine(Machine):
    """A machine that is started by way of other programs.

    Attributes:
        prefix: the words before its command.
    """

    prefix: tuple[str, ...] = ()

    def _spawn(self, log: Path) -> Child:
        return Child(self._command(), log, prefix=self.prefix, line_buffered=True)


@contextmanager
def _of_another_user(folder: Path) -> Iterator[MachineScene]:
    """A machine of another user than the engine, which is root."""
    place = Path(tempfile.mkdtemp(prefix="rig-", dir="/tmp"))
    try:
        image = images.random_image(place / "d0.qcow2", 4 * MIB, seed=1)
        machine = PrefixedMachine([Disk(image, "d0")])
        machine.prefix = _AS_USER
        for path in (place, image, machine.folder):
            os.chown(path, USER, USER)
        with machine:
            scene = MachineScene(machine, folder)
            os.chown(scene.scratch, 0, 0)
            scene.scratch.chmod(0o711)
            yield scene
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "way",
    [(), ("--fleecing", "filter"), ("--transport", "push")],
    ids=["classic", "filter", "push"],
)
def test_qemus_user_gets_the_scratch_files_and_nothing_beside_them(
    way: tuple[str, ...], tmp_path: Path
) -> None:
    with _of_another_user(tmp_path) as scene:
        scene.way = way
        scene.backup().succeeded()
        scene.writer().write(0, os.urandom(MIB))
        module = "fleece.nbd.handover" if "push" in way else "fleece.nbd.connection"
        function = "Channel.answer" if "push" in way else "Connection.read"
        running = scene.slow(module, function, 300, *scene.words())
        running.wait_event("progress")
        (work,) = scene.scratch.iterdir()
        assert _told(work) == (0, 0o711)
        if "push" in way:  # QEMU's user is given it when all else is ready
            wait_until(lambda: _told(work / "sink.nbd")[0] == USER, "the sink")
        found = {path.name: _told(path) for path in work.iterdir()}
        raw = "filter" in way
        assert found.pop("s0.raw" if raw else "s0.qcow2") == (USER, 0o600)
        assert found.pop("qemu") == (USER, 0o700)
        if "push" in way:
            assert found.pop("sink.nbd") == (USER, 0o755)  # only who may write may connect
        assert set(found.values()) == {(0, 0o600)}, found
        made = run(*_AS_USER, "touch", work / "stopped")
        assert made.returncode != 0
        assert running.wait().succeeded().named("warning") == []
        scene.check_exact()
        scene.nothing_left()


def _told(path: Path) -> tuple[int, int]:
    state = path.lstat()
    return state.st_uid, stat.S_IMODE(state.st_mode)


def test_what_qemus_user_plants_beside_its_socket_is_not_followed(tmp_path: Path) -> None:
    """A guest that has taken its QEMU over is as far as this, and no further."""
    victims = tmp_path / "victims"
    victims.mkdir()
    (victims / "nbd.sock").write_bytes(b"precious")
    with _of_another_user(tmp_path) as scene:
        scene.backup().succeeded()
        scene.writer().write(0, os.urandom(MIB))
        running = scene.slow_backup(milliseconds=300)
        running.wait_event("point")
        (work,) = scene.scratch.iterdir()
        theirs = work / "qemu"
        (theirs / "deep" / "er").mkdir(parents=True)
        (theirs / "deep" / "link").symlink_to(victims)
        for each in range(2):
            ran = (running.wait() if each == 0 else scene.backup()).succeeded()
            (warning,) = ran.named("warning")
            assert f"{theirs}: Directory not empty" in warning["what"]
            assert (victims / "nbd.sock").read_bytes() == b"precious"
            assert [path.name for path in work.iterdir() if path.name != "lock"] == ["qemu"]
        shutil.rmtree(theirs / "deep")
        assert scene.backup().succeeded().named("warning") == []
        running = scene.slow_backup("--mode", "full", milliseconds=300)
        running.wait_event("point")
        (place,) = scene.scratch.glob("*/qemu/nbd.sock")
        place.unlink()
        place.symlink_to(victims / "nbd.sock")
        assert running.wait().code in (0, 3)  # if it was not connected yet, it fails
        assert (victims / "nbd.sock").read_bytes() == b"precious"
        scene.qemu.control.command("nbd-server-stop")  # which nobody can reach any more
        scene.backup().succeeded()
        scene.check_exact()
        scene.nothing_left()


def _refused(scene: MachineScene, *words: object) -> Ran:
    """A backup that is refused before it has changed anything."""
    before = scene.segments()
    ran = scene.backup(*words)
    assert ran.named("point") == []
    assert scene.segments() == before
    scene.nothing_left()
    return ran


@pytest.mark.parametrize("way", [(), ("--fleecing", "filter")], ids=["classic", "filter"])
def test_a_qemu_in_another_mount_namespace_is_told_of(way: tuple[str, ...], tmp_path: Path) -> None:
    """As a service with PrivateTmp has one, or a container."""
    image = images.random_image(tmp_path / "d0.qcow2", 2 * MIB, seed=1)
    machine = PrefixedMachine([Disk(image, "d0")])
    hidden = machine.folder / "scratch"
    hidden.mkdir()
    machine.prefix = ("unshare", "--mount", "sh", "-c", _OVER, str(hidden))
    with machine:
        scene = MachineScene(machine, tmp_path)
        scene.way = way
        ran = _refused(scene)
        told = f"QEMU (process {machine.pid}, user root) cannot open the scratch"
        ran.failed(3, told, "another mount namespace (PrivateTmp", "No such file", "--scratch")
        seen = machine.folder / "seen"
        seen.mkdir()
        scene.backup("--scratch", seen).succeeded()
        scene.check_exact()
        assert [*seen.iterdir()] == []


@pytest.mark.parametrize("way", [(), ("--fleecing", "filter")], ids=["classic", "filter"])
def test_a_scratch_that_is_closed_to_qemus_user_is_told_of(
    way: tuple[str, ...], tmp_path: Path
) -> None:
    with _of_another_user(tmp_path) as scene:
        scene.way = way
        closed = scene.qemu.folder / "closed"
        closed.mkdir(mode=0o700)
        ran = _refused(scene, "--scratch", closed)
        ran.failed(3, "user nobody) cannot open the scratch", "Permission denied", "--scratch")
        assert "its user may not go there" in ran.result["error"]
        assert [*closed.iterdir()] == []
        scene.backup().succeeded()
