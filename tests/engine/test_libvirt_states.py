"""Guests of libvirt's in other states than running, paused and off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import libvirt
import pytest

from fleece.source.libvirt.connection import ANSWER_LIMIT, Refused
from fleece.source.libvirt.domain import Code, Domain
from tests.engine.libvirt_scene import LibvirtScene, libvirt_scene
from tests.rig.libvirt import Libvirtd, LibvirtGuest, libvirtd, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")

T = TypeVar("T")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    """A libvirtd for all tests here."""
    with libvirtd() as made:
        yield made


@contextmanager
def _migration(guest: LibvirtGuest, there: Libvirtd, folder: Path) -> Iterator[Callable[[], None]]:
    """A migration of a guest to another libvirtd that is under way until what is given is called.

    Its receiving QEMU is stopped meanwhile.
    """
    failures: list[BaseException] = []
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE | libvirt.VIR_MIGRATE_PERSIST_DEST
    way = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{folder}/migrate.sock",
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 1,  # MiB/s: it lasts until it is stopped
    }

    def migrate() -> None:
        try:
            guest.domain.migrate3(there.connection, way, flags)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=migrate)
    thread.start()
    coming = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]
    until(lambda: [d.state() for d in there.connection.listAllDomains()] == [coming], "its coming")
    pid = LibvirtGuest(there, there.connection.lookupByName(guest.name)).pid
    os.kill(pid, signal.SIGSTOP)

    def finish() -> None:
        os.kill(pid, signal.SIGCONT)
        thread.join()
        assert not failures, failures

    try:
        yield finish
    finally:
        os.kill(pid, signal.SIGCONT)
        thread.join()


@contextmanager
def _at(scene: LibvirtScene, daemon: Libvirtd) -> Iterator[None]:
    """In the context the scene's guest is the one of its name on another libvirtd."""
    before = scene.guest
    scene.guest = LibvirtGuest(daemon, daemon.connection.lookupByName(before.name))
    try:
        yield
    finally:
        scene.guest = before


def test_a_guest_that_is_being_migrated_is_refused_and_goes_on_where_it_is_then(
    daemon: Libvirtd, tmp_path: Path
) -> None:
    """On both hosts. Its bitmap goes with the shared image; libvirt is told of it there."""
    with libvirt_scene(daemon, tmp_path) as scene, libvirtd() as there:
        scene.take("full")
        scene.write()
        with _migration(scene.guest, there, tmp_path) as finish:
            scene.backup().failed(3, "a migration from here has the guest")
            assert scene.clean().result["removed"] == 0
            with _at(scene, there):
                scene.backup().failed(3, "the guest is being migrated")
                assert scene.clean().result["removed"] == 0
            finish()
        scene.backup().failed(3, "migrated to another host")
        (row,) = scene.verb("doctor").named("libvirt")
        assert row["refusal"] == "the guest is migrated to another host"
        with _at(scene, there):
            scene.take("incremental")
            scene.check_exact()
            scene.write()
            scene.take("incremental")
            scene.check_exact()
            scene.nothing_left()


def test_a_crashed_guest_that_is_preserved_is_backed_up_like_a_paused_one(
    daemon: Libvirtd, tmp_path: Path
) -> None:
    """It is not let go on."""
    panic = "<panic model='isa'/>"
    with libvirt_scene(daemon, tmp_path, devices=panic, crash="preserve") as scene:
        scene.take("full")
        scene.write()
        scene.guest.hmp("o /b 0x505 1")  # as pvpanic's driver in the guest tells of it
        crashed = [libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_CRASHED_PANICKED]
        until(lambda: scene.guest.domain.state() == crashed, "the crash")
        scene.take("incremental")
        scene.check_exact()
        assert scene.guest.domain.state() == crashed
        (row,) = scene.verb("doctor").named("libvirt")
        assert (row["state"], row["refusal"]) == ("crashed", None)
        scene.nothing_left()


class _Watching(Domain):
    """A guest that counts how often libvirt told half of a job."""

    halves = 0

    def _ask(self, what: str, call: Callable[[], T], limit: float = ANSWER_LIMIT) -> T:
        try:
            return super()._ask(what, call, limit)
        except Refused as error:
            self.halves += error.number == Code.INTERNAL
            raise


_DYING = """
import sys, libvirt
domain = libvirt.open(sys.argv[1]).lookupByName(sys.argv[2])
print("now", flush=True)
domain.backupBegin(sys.argv[3], None, 0)
"""


def test_a_job_that_is_told_by_half_is_waited_for(daemon: Libvirtd, tmp_path: Path) -> None:
    """A client was killed within its begin; libvirtd goes on with the call, and tells errors."""
    server = f"<server transport='unix' socket='{tmp_path}/theirs.sock'/>"
    xml = f"<domainbackup mode='pull'>{server}</domainbackup>"
    with libvirt_scene(daemon, tmp_path) as scene:
        watching = _Watching(scene.guest.name, scene.uri)
        for _ in range(20):  # nearly always once is enough
            words = (sys.executable, "-c", _DYING, scene.uri, scene.guest.name, xml)
            with subprocess.Popen(words, stdout=subprocess.PIPE) as dying:
                assert dying.stdout is not None
                dying.stdout.readline()
                found = watching.settled()
                while found is None and dying.poll() is None:
                    found = watching.settled()
                    if watching.halves:
                        dying.kill()
            until(lambda: watching.settled() is not None, "the job")
            watching.end_job()
            if watching.halves:
                break
        watching.close()
    assert watching.halves
