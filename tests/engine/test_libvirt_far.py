"""Guests of libvirt's on another host, which a fleece there holds for the one here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import fleece
from fleece.nbd.connection import connected
from fleece.nbd.uri import unix_uri
from fleece.source.far.messages import PROTOCOL
from tests.engine.libvirt_scene import MIB, LibvirtScene, libvirt_scene
from tests.engine.scene import Running
from tests.engine.served import request, served
from tests.rig.libvirt import libvirtd, until
from tests.rig.ssh import FarHost, far_host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")


@dataclass
class _Far:
    """A guest, and the host that it is on."""

    scene: LibvirtScene
    host: FarHost

    def words(self, verb: str, *words: object, to: str | None = None) -> tuple[object, ...]:
        """Of a command line for the guest, as from here."""
        place = ("--connect", to or self.host.libvirt, "--json")
        return verb, self.scene.source, *words, *place

    def backup(self, *words: object, to: str | None = None) -> tuple[object, ...]:
        """The words of a backup."""
        scene = self.scene
        return self.words("backup", scene.store, "--scratch", scene.scratch, *words, to=to)

    def take(self, mode: str, *words: object) -> None:
        """Back up, and check all of it."""
        ran = self.scene.engine.run(*self.backup(*words)).succeeded()
        assert ran.result["disks"][0]["mode"] == mode, ran.out
        self.scene.check_exact()

    def switch(self, *, on: bool) -> None:
        """Have the guest on or off."""
        if bool(self.scene.guest.domain.isActive()) != on:
            self.scene.switch(on=on)

    def reading(self, *words: object) -> Running:
        """A backup from here that is in the middle of its reads."""
        self.switch(on=True)
        for _ in range(8):
            self.scene.write()
        slow = "fleece.nbd.connection", "Connection.read", 100
        running = self.scene.engine.slow(*slow, *self.backup(*words))
        running.wait_event("progress")
        assert self.scene.guest.job() is not None
        return running


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Far]:
    """One for all tests, with a first point."""
    folder = tmp_path_factory.mktemp("far")
    place = folder / "ssh"
    place.mkdir()
    with (
        libvirtd() as daemon,
        libvirt_scene(daemon, folder) as scene,
        far_host(place, daemon.inside) as host,
    ):
        made = _Far(scene, host)
        made.take("full")
        yield made


def _processes(*words: str) -> list[int]:
    """Those whose command lines have all these words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(place.name))
    return found


def _ssh(running: Running) -> int:
    """The process of ssh that a backup has started."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    (found,) = [int(pid) for pid in children if b"ssh" in Path(f"/proc/{pid}/comm").read_bytes()]
    return found


def test_a_guest_of_another_host_is_backed_up_running_and_off_in_one_chain(far: _Far) -> None:
    """As from its own host: incremental across every change, and nothing is left there."""
    for on in (True, False, True):
        far.switch(on=on)
        if on:
            far.scene.write()
        far.take("incremental")
    far.scene.take("incremental")  # that host's own fleece, into the same chain
    far.take("incremental")
    far.scene.nothing_left()


@pytest.mark.parametrize("cut", ["ssh", "engine", "there", "guest", "run"])
def test_whatever_is_killed_the_guest_is_let_go_and_the_next_backup_is_exact(
    far: _Far, cut: str
) -> None:
    """The line, the run here, the fleece there, the guest itself; or the run is interrupted."""
    running = far.reading()
    ssh = _ssh(running)
    if cut == "guest":
        far.scene.switch(on=False)
    else:
        there = _processes("serve-source", far.scene.source)
        pid = {"ssh": ssh, "there": there[-1]}.get(cut, running.pid)
        os.kill(pid, signal.SIGTERM if cut == "run" else signal.SIGKILL)
    ran = running.wait()
    assert ran.code == {"engine": -signal.SIGKILL, "run": 130}.get(cut, 4), ran
    if cut == "run":  # it has waited for the far end
        assert far.scene.guest.job() is None
    until(lambda: not Path(f"/proc/{ssh}").exists(), "the end of ssh")
    if cut in ("ssh", "engine"):  # the fleece there has seen it, and ends by itself
        until(lambda: far.scene.guest.job() is None, "the guest to be let go")
    far.switch(on=True)
    far.take("incremental")
    far.scene.nothing_left()


def test_a_guest_is_let_go_before_its_scratch_is_full_though_nobody_here_reacts(far: _Far) -> None:
    """The fleece there watches the room: no line is needed for it."""
    running = far.reading("--scratch-limit", "2M")
    for number in range(3):
        far.scene.write(offset=number * MIB, length=MIB)
    until(lambda: far.scene.guest.job() is None, "the guest to be let go")
    running.wait().failed(4, "of the 2097152 bytes that it may take", "on 127.0.0.1")
    far.take("incremental")
    far.scene.nothing_left()


def test_a_connection_that_a_cut_line_leaves_does_not_hold_the_guest(far: _Far) -> None:
    """A client that is still there would hang QEMU, so the job could not be ended."""
    far.switch(on=True)
    scene = far.scene
    options = fleece.SourceOptions(scene.scratch, connect=scene.uri)
    with served(lambda: fleece.open_source(scene.source, options), silence=0.5) as end:
        end.ask("hello", protocol=PROTOCOL)
        taken = end.ask("take", request=request("vda"))["result"]
        (export,), (path,) = taken["point"]["exports"], taken["point"]["sockets"]
        with ExitStack() as left:
            with suppress(fleece.SourceError):  # it may have fallen silent already
                left.enter_context(connected(unix_uri(path, export["name"])))
            assert end.rest() == ""
            assert scene.guest.job() is None
    scene.nothing_left()


def test_the_other_verbs_do_there_what_they_do_here(far: _Far) -> None:
    far.switch(on=True)
    scene, run_verb = far.scene, far.scene.engine.run
    (row,) = run_verb(*far.words("doctor")).succeeded().named("libvirt")
    assert (row["refusal"], row["guest"]) == (None, scene.guest.name)
    cleaned = run_verb(*far.words("clean", "--scratch", scene.scratch)).succeeded()
    assert cleaned.result["removed"] == 0
    run_verb(*far.words("audit", scene.store, "--scratch", scene.scratch)).succeeded()
    assert run_verb(*far.words("bitmap")).succeeded().named("segment")
    ran = run_verb(*far.backup("--freeze")).succeeded()
    assert "was not frozen" in ran.out
    run_verb(*far.backup("--freeze", "--require-freeze")).failed(4, "could not be frozen")
    scene.nothing_left()


def test_what_cannot_work_is_said_before_anything_is_done(far: _Far) -> None:
    run_verb, scene = far.scene.engine.run, far.scene
    run_verb(*far.backup("--scratch-limit", "0")).failed(4, "no backup can begin", "on 127.0.0.1")
    unknown = f"{far.host.libvirt}&pkipath=/x"
    run_verb(*far.backup(to=unknown)).failed(2, "the parameter pkipath is not known")
    words = (*far.words("backup", scene.store), "--scratch", "here")
    run_verb(*words).failed(2, "is on the guest's host")
    dead = far.host.libvirt.replace(str(far.host.port), "1")
    run_verb(*far.backup(to=dead)).failed(3, "ended before it answered", "on both hosts")
    other = _by_another_way(far)
    run_verb(*far.backup(to=other)).failed(3, "is on another host, kvm1", "qemu+ssh://")
    for verb in ("clean", "bitmap"):
        run_verb(*far.words(verb, to=other)).failed(3, "is on another host, kvm1")
    run_verb("doctor", "libvirt:nobody", "--connect", far.host.libvirt).failed(
        3, "libvirt has no such guest"
    )
    scene.nothing_left()


def _by_another_way(far: _Far) -> str:
    """A URI by which libvirt here reaches the one there, and no program can be started there."""
    way = far.scene.folder / "way"
    words = f"{far.host.client} -p {far.host.port} {far.host.login}"
    way.write_text(f"#!/bin/sh\nexec {words} virt-ssh-helper qemu:///system\n")
    way.chmod(0o755)
    return f"qemu+ext://kvm1/system?command={way}"
