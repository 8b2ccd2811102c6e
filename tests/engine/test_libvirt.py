"""Guests of libvirt's, on a libvirtd of our own: backups, what interrupts them, what it leaves.

Each of libvirt's traps has a test here: docs/internals/invariants.rst names them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

import fleece
from fleece.source.libvirt.domain import Domain
from tests.engine.libvirt_kills import deaths
from tests.engine.libvirt_scene import KIB64, MIB, LibvirtScene, libvirt_scene
from tests.engine.scene import Moment, Ran, small_tmpfs
from tests.rig import images
from tests.rig.initramfs import GuestFiles
from tests.rig.libvirt import (
    AGENT,
    GuestDisk,
    Libvirtd,
    boot_xml,
    guest_xml,
    libvirtd,
    session,
    until,
)
from tests.rig.process import run, run_checked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    """A libvirtd for all tests here."""
    with libvirtd() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Libvirtd]:
    """One as Debian has it: QEMU has a user of its own, and a group may use libvirt."""
    with libvirtd("libvirt-qemu", "+64056") as made:
        yield made


@pytest.fixture
def scene(daemon: Libvirtd, tmp_path: Path) -> Iterator[LibvirtScene]:
    """A running guest with a qcow2 disk `vda` of 4 MiB."""
    with libvirt_scene(daemon, tmp_path) as made:
        yield made


@pytest.fixture
def pair(daemon: Libvirtd, tmp_path: Path) -> Iterator[LibvirtScene]:
    """A running guest with a qcow2 disk `vda` and a raw one `vdb`, and an empty CD drive."""
    first = GuestDisk("vda", images.random_image(tmp_path / "a.qcow2", 4 * MIB, seed=1))
    raw = images.random_image(tmp_path / "b.raw", 2 * MIB, seed=2, fmt="raw")
    empty = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
    disks = first, GuestDisk("vdb", raw, "raw")
    with libvirt_scene(daemon, tmp_path, *disks, devices=empty) as made:
        yield made


# ---- backups ---------------------------------------------------------------------------------


def test_all_disks_are_backed_up_and_then_what_changed(pair: LibvirtScene) -> None:
    """A raw disk keeps no bitmaps: it is compared as a whole, and its delta is as small."""
    pair.take("full")
    pair.check_exact()
    pair.nothing_left()
    pair.write("vda", 0, KIB64)
    pair.write("vdb", 0, KIB64)
    first, second = pair.take("incremental").result["disks"]
    assert (first["disk"], first["mode"], first["dirty_bytes"]) == ("vda", "incremental", KIB64)
    assert (second["disk"], second["mode"], second["dirty_bytes"]) == ("vdb", "rescan", KIB64)
    pair.check_exact()
    pair.nothing_left()


@pytest.mark.parametrize("way", ["name", "uuid", "id"])
def test_a_guest_is_found_as_virsh_finds_it(way: str, scene: LibvirtScene) -> None:
    """By each verb."""
    domain = scene.guest.domain
    place = {"name": domain.name(), "uuid": domain.UUIDString(), "id": str(domain.ID())}[way]
    connect, scratch = ("--connect", scene.uri, "--json"), ("--scratch", scene.scratch)

    def ran(verb: str, *words: object) -> Ran:
        return scene.engine.run(verb, f"libvirt:{place}", *words, *connect).succeeded()

    assert ran("backup", scene.store, *scratch).result["guest"] == "web"
    scene.check_exact()
    assert ran("doctor").named("libvirt")[0]["guest"] == "web"
    assert len(ran("bitmap", scene.store).named("segment")) == 1
    ran("audit", scene.store, *scratch)
    assert ran("clean", *scratch).result["removed"] == 0


def test_a_guest_that_is_not_there_is_told(scene: LibvirtScene) -> None:
    ran = scene.engine.run("doctor", "libvirt:none", "--connect", scene.uri)
    ran.failed(3, "libvirt has no such guest")
    elsewhere = "qemu+unix:///system?socket=/nowhere"
    scene.engine.run("doctor", "libvirt:web", "--connect", elsewhere).failed(3, "cannot be reached")


def test_two_stores_have_chains_of_their_own(scene: LibvirtScene, tmp_path: Path) -> None:
    """By turns, each exact and incremental, with a checkpoint of its own."""
    other = tmp_path / "other"
    scene.engine.run("init", other).succeeded()
    stores = scene.store, other
    for number in range(8):
        scene.write()
        store = stores[number % 2]
        scene.take("full" if number < 2 else "incremental", store=store)
        scene.check_exact(store=store)
    scene.nothing_left(checkpoints=2)


def test_what_is_not_of_fleece_is_left_alone(scene: LibvirtScene) -> None:
    """Checkpoints of others stay; another's backup is told, and goes on."""
    xml = "<domaincheckpoint><name>theirs</name></domaincheckpoint>"
    scene.guest.domain.checkpointCreateXML(xml, 0)
    scene.take("full")
    scene.write()
    scene.take("incremental")
    assert "theirs" in scene.guest.checkpoints()
    socket = scene.folder / "theirs.sock"
    job = f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/></domainbackup>"
    scene.guest.domain.backupBegin(job, None, 0)
    scene.backup().failed(3, "a backup that is not fleece's has the guest")
    assert scene.clean().result["removed"] == 0
    assert scene.guest.job() is not None
    scene.guest.domain.abortJob()
    until(lambda: scene.guest.job() is None, "the job's end")
    scene.take("incremental")
    scene.guest.domain.checkpointLookupByName("theirs").delete(0)


def test_virtnbdbackup_and_fleece_take_turns(scene: LibvirtScene) -> None:
    """Its chain is left alone, and so is ours. It begins none beside checkpoints of others."""

    def theirs(level: str, number: int) -> subprocess.CompletedProcess[str]:
        words = ("-d", scene.guest.name, "-l", level, "-o", str(scene.folder / f"theirs{number}"))
        socket = str(scene.folder / "theirs.sock")
        return run(*scene.guest.daemon.inside, "virtnbdbackup", *words, "-f", socket)

    assert theirs("full", 0).returncode == 0
    for number in range(1, 4):
        scene.write()
        scene.take("incremental" if number > 1 else "full")
        scene.check_exact()
        assert theirs("copy", number).returncode == 0
    assert "Foreign checkpoint found" in theirs("inc", 0).stderr
    (name,) = [name for name in scene.guest.checkpoints() if name.startswith("virtnbdbackup")]
    scene.guest.domain.checkpointLookupByName(name).delete(0)
    scene.nothing_left()


def test_audit_bitmap_doctor_and_clean_know_it(scene: LibvirtScene) -> None:
    scene.take("full")
    scene.write("vda", 0, KIB64)
    words = (scene.store, "--scratch", scene.scratch)
    scene.verb("audit", *words).succeeded()
    (row,) = scene.verb("bitmap", scene.store).succeeded().named("segment")
    assert row["disk"] == "vda"
    scene.verb("doctor").succeeded()
    scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()


def test_qemu_may_run_as_a_user_of_its_own(shared: Libvirtd) -> None:
    """As Debian has it: nobody else may enter the folder of the socket but it and root."""
    with tempfile.TemporaryDirectory(prefix="rig-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with libvirt_scene(shared, folder) as scene:
            scene.take("full")
            scene.write()
            running = scene.slow()
            running.wait_event("progress")
            (place,) = scene.scratch.glob("*/qemu")
            assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (64055, 0o700)
            running.signal(signal.SIGCONT)
            running.wait().succeeded()
            scene.check_exact()
            scene.nothing_left()
            scene.switch(on=False)
            scene.take("incremental")
            scene.switch(on=True)
            scene.write()
            scene.take("incremental")
            scene.check_exact()
            scene.nothing_left()


def test_an_ordinary_user_backs_up_guests_of_a_session() -> None:
    """All is the user's own: libvirtd, QEMU, the images, the store, the scratch."""
    with session(65534) as (folder, become):
        images.make_disk(folder / "vda.qcow2", 4 * MIB)
        os.chown(folder / "vda.qcow2", 65534, 65534)
        definition = folder / "web.xml"
        definition.write_text(guest_xml("web", [GuestDisk("vda", folder / "vda.qcow2")]))

        def checked(*words: object) -> str:
            done = run(*become, *map(str, words))
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        checked("virsh", "-c", "qemu:///session", "create", definition)
        fleece_ = (sys.executable, "-m", "fleece")
        checked(*fleece_, "init", folder / "store")
        place = ("--scratch", folder, "--connect", "qemu:///session")
        for mode in ("full", "incremental"):
            said = checked(*fleece_, "backup", "libvirt:web", folder / "store", *place)
            assert f"vda: {mode}" in said
        checked("virsh", "-c", "qemu:///session", "destroy", "web")


def test_a_user_of_libvirts_group_backs_up_guests_of_the_system(shared: Libvirtd) -> None:
    """QEMU is another user, and is let in where its socket is."""
    with tempfile.TemporaryDirectory(prefix="rig-") as name:
        folder, own = Path(name), Path(name) / "own"
        folder.chmod(0o711)
        own.mkdir(0o700)
        os.chown(own, 65534, 65534)
        become = ("setpriv", "--reuid=65534", "--regid=65534", "--groups=64056")
        words = (*become, "env", f"HOME={own}", sys.executable, "-m", "fleece")
        with libvirt_scene(shared, folder) as scene:
            assert run(*words, "init", str(own / "store")).returncode == 0
            place = ("--connect", scene.uri, "--scratch", str(own))
            backup = (*words, "backup", scene.source, str(own / "store"), *place)
            said = run(*backup).stderr
            assert "Permission denied" in said
            assert "--scratch" in said
            own.chmod(0o711)
            for kind in ("full", "incremental"):
                done = run(*backup)
                assert f"vda: {kind}" in done.stdout, done.stderr
                scene.write()
            assert os.listdir(own) == ["store"]


def test_a_scratch_that_libvirt_cannot_see_is_told(scene: LibvirtScene) -> None:
    """libvirtd has mounts of its own here: what is mounted later is not there for it."""
    with small_tmpfs(16) as elsewhere:
        roomy, scene.scratch = scene.scratch, elsewhere
        scene.backup().failed(3, "No such file or directory", "--scratch")
        scene.nothing_left(checkpoints=0)
        scene.scratch = roomy
    scene.take("full")


# ---- what libvirt forgets, or breaks -------------------------------------------------------------


def test_a_killed_qemu_costs_one_rescan(scene: LibvirtScene) -> None:
    """Its bitmaps are broken then; the checkpoint that named them goes all the same."""
    scene.take("full")
    scene.write()
    scene.guest.hmp('qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "flush"')
    scene.guest.kill()
    scene.switch(on=True)
    ran = scene.take("rescan")
    assert "gone or broken" in ran.named("plan")[0]["reason"]
    scene.check_exact()
    scene.nothing_left()
    scene.write()
    scene.take("incremental")
    scene.check_exact()


def test_a_shutdown_costs_nothing(scene: LibvirtScene) -> None:
    scene.take("full")
    scene.write()
    scene.switch(on=False)
    scene.switch(on=True)
    scene.write()
    scene.take("incremental")
    scene.check_exact()


def test_a_guest_that_was_undefined_goes_on_incrementally(scene: LibvirtScene) -> None:
    """libvirt has forgotten the checkpoint; the bitmap is in the image, and is asked for."""
    scene.take("full")
    scene.write()
    xml = scene.guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    scene.switch(on=False)
    scene.guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    scene.guest.domain = scene.guest.daemon.connection.defineXML(xml)
    scene.switch(on=True)
    assert scene.guest.checkpoints() == []
    scene.write()
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_images_that_were_exchanged_are_noticed(daemon: Libvirtd, tmp_path: Path) -> None:
    """Both bitmaps have the same name, and each is the other disk's now."""
    disks = [
        GuestDisk(target, images.random_image(tmp_path / f"{target}.qcow2", 2 * MIB, seed=seed))
        for seed, target in enumerate(("vda", "vdb"))
    ]
    with libvirt_scene(daemon, tmp_path, *disks) as scene:
        scene.take("full")
        scene.switch(on=False)
        first, second = (disk.path for disk in disks)
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
        scene.held = {"vda": scene.held["vdb"], "vdb": scene.held["vda"]}
        scene.switch(on=True)
        ran = scene.take("rescan")
        assert "not the one that it had" in ran.named("plan")[0]["reason"]
        scene.check_exact()


def test_an_external_snapshot_and_its_commit_stay_incremental(scene: LibvirtScene) -> None:
    scene.take("full")
    scene.write()
    xml = "<domainsnapshot><name>s1</name></domainsnapshot>"
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    scene.guest.domain.snapshotCreateXML(xml, flags | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC)
    scene.write()
    scene.take("incremental")
    scene.check_exact()
    scene.write()
    domain = scene.guest.domain
    active = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
    domain.blockCommit("vda", None, None, 0, active)
    until(lambda: _pivots(domain), "the commit's end")
    scene.write()
    scene.take("incremental")
    scene.check_exact()
    delete = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
    domain.snapshotLookupByName("s1").delete(delete)


def test_a_disk_comes_and_goes(scene: LibvirtScene, tmp_path: Path) -> None:
    """A new disk begins with a full; of one that is gone the next point says so."""
    scene.take("full")
    path = images.random_image(tmp_path / "vdb.qcow2", MIB, seed=2)
    disk = GuestDisk("vdb", path)
    scene.guest.domain.attachDevice(disk.xml())
    scene.write("vda")
    first, second = scene.take("incremental").result["disks"]
    assert (first["mode"], second["mode"]) == ("incremental", "full")
    first, second = scene.take("incremental").result["disks"]
    assert second["mode"] == "incremental"
    scene.check_exact()
    scene.switch(on=False)
    scene.switch(on=True)  # without the disk: it was attached to that run alone
    scene.write("vda")
    ran = scene.take("incremental")
    assert [row["disk"] for row in ran.named("gone")] == ["vdb"]
    scene.check_exact()
    scene.nothing_left()


@pytest.mark.parametrize("on", [True, False], ids=["running", "off"])
def test_a_return_to_an_internal_snapshot_needs_the_bitmaps_dropped(
    on: bool, scene: LibvirtScene
) -> None:
    """QEMU refuses it while there are bitmaps. The attempt loses nothing.

    It breaks them on libvirt 9.0, so that all is read, and leaves them whole on 11.3.
    """
    scene.take("full")
    scene.write("vda", 0, MIB)
    domain = scene.guest.domain
    domain.snapshotCreateXML("<domainsnapshot><name>s1</name></domainsnapshot>", 0)
    before = bytes(scene.held["vda"])
    scene.write("vda", MIB, MIB)
    scene.take("incremental")
    if not on:
        scene.switch(on=False)
    snapshot = domain.snapshotLookupByName("s1")
    with pytest.raises(libvirt.libvirtError, match="has active dirty bitmaps"):
        domain.revertToSnapshot(snapshot)
    assert not domain.isActive()  # that is libvirt's: it ends the guest first
    scene.backup().succeeded()
    scene.check_exact()
    (row,) = scene.verb("bitmap").succeeded().named("segment")
    scene.verb("bitmap", "--drop", row["chain"]).succeeded()
    domain.revertToSnapshot(snapshot)
    scene.held["vda"] = bytearray(before)
    scene.take("rescan")
    scene.check_exact()


def _pivots(domain: libvirt.virDomain) -> bool:
    """End a commit that is ready; its counts alone do not tell that it is."""
    try:
        domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
            raise
        return False
    return True


def test_a_checkpoint_whose_bitmap_is_gone_is_deleted_all_the_same(
    daemon: Libvirtd, tmp_path: Path
) -> None:
    """libvirt refuses to delete one of which a disk's bitmap is missing."""
    disks = [
        GuestDisk(target, images.random_image(tmp_path / f"{target}.qcow2", 2 * MIB, seed=seed))
        for seed, target in enumerate(("vda", "vdb"))
    ]
    with libvirt_scene(daemon, tmp_path, *disks) as scene:
        scene.take("full")
        (name,) = scene.guest.checkpoints()
        scene.switch(on=False)
        run_checked("qemu-img", "bitmap", "--remove", disks[0].path, name)
        scene.switch(on=True)
        first, second = scene.take("rescan").result["disks"]
        assert (first["mode"], second["mode"]) == ("rescan", "incremental")
        scene.nothing_left()
        scene.switch(on=False)
        told = run("qemu-img", "info", "--output=json", disks[1].path).stdout
        assert name not in told


# ---- interrupted backups ---------------------------------------------------------------------

_DOMAIN = "fleece.source.libvirt.domain"
_STEPS = [
    Moment("before the job begins", _DOMAIN, "Domain.begin", "before"),
    Moment("after the job began", _DOMAIN, "Domain.begin"),
    Moment("within the parts", "fleece.store.partial_point", "PartialPoint.create"),
    Moment("after the parts", "fleece.engine.backup.destination", "store_parts"),
    Moment("in the copy", "fleece.nbd.connection", "Connection.read", "after", 3),
    Moment("before the commit", "fleece.store.partial_point", "PartialPoint.commit", "before"),
    Moment("after the commit", "fleece.store.partial_point", "PartialPoint.commit"),
    Moment("before the job ends", _DOMAIN, "Domain.end_job", "before"),
    Moment("after the job ended", _DOMAIN, "Domain.end_job"),
    Moment("before the old checkpoint goes", _DOMAIN, "Domain.delete", "before"),
    Moment("after the old checkpoint went", _DOMAIN, "Domain.delete"),
]


@pytest.mark.parametrize("moment", _STEPS, ids=str)
def test_killed_at_any_step_nothing_is_lost(moment: Moment, scene: LibvirtScene) -> None:
    scene.take("full")
    for _ in range(3):
        scene.write(length=KIB64)
    scene.killed(moment)
    before = {target: bytes(held) for target, held in scene.held.items()}
    scene.write()
    ran = scene.backup().succeeded()
    assert ran.result["disks"][0]["mode"] == "incremental"
    if ran.result["resumed"]:  # it is of the moment before the kill
        now, scene.held = scene.held, {name: bytearray(data) for name, data in before.items()}
        scene.check_exact()
        scene.held = now
        scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_an_interrupted_backup_is_resumed(scene: LibvirtScene) -> None:
    """Its job and the frozen bitmap have outlived it; what is stored already is not read again."""
    scene.take("full")
    for number in range(8):
        scene.write("vda", number * 8 * KIB64, KIB64)
    before = bytes(scene.held["vda"])
    late = Moment("late", "fleece.nbd.connection", "Connection.read", "after", 3)
    scene.killed(late, "--jobs", "1")
    assert scene.guest.job() is not None
    scene.write("vda", 0, KIB64)
    ran = scene.backup().succeeded()
    assert ran.result["resumed"]
    now, scene.held["vda"] = scene.held["vda"], bytearray(before)
    scene.check_exact()
    scene.held["vda"] = now
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_a_signal_takes_the_job_down(scene: LibvirtScene) -> None:
    scene.take("full")
    scene.write(length=8 * KIB64)
    for number in (signal.SIGTERM, signal.SIGINT):
        running = scene.slow()
        running.wait_event("progress")
        running.signal(number)
        running.wait().failed(130, "interrupted")
        scene.nothing_left()
    scene.take("incremental")
    scene.check_exact()


def test_a_dead_jobs_guest_is_its_owners_again(scene: LibvirtScene) -> None:
    """While it is there he can take no snapshot: `fleece clean` takes it down."""
    scene.take("full")
    scene.write()
    scene.killed(_STEPS[1])
    removed = {row["kind"] for row in scene.clean().named("removed")}
    assert removed == {"job", "scratch"}
    scene.nothing_left(checkpoints=None)
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_a_living_backup_is_left_alone(scene: LibvirtScene) -> None:
    """By `clean`, and by another store's backup, which is told."""
    scene.take("full")
    scene.write(length=8 * KIB64)
    other = scene.folder / "other"
    scene.engine.run("init", other).succeeded()
    running = scene.slow()
    running.wait_event("progress")
    assert scene.clean().result["removed"] == 0
    scene.backup(store=other).failed(3, "another backup by fleece has the guest")
    running.signal(signal.SIGCONT)
    running.wait().succeeded()
    scene.check_exact()


def test_a_client_killed_within_its_begin_leaves_a_point_that_is_taken_over(
    scene: LibvirtScene,
) -> None:
    """libvirtd finishes the call, and until it has, the job is told of by half."""
    code = """
import os, signal, sys, threading, time
import fleece.source.libvirt.domain as domain
begin = domain.Domain.begin
def dying(self, *words):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return begin(self, *words)
domain.Domain.begin = dying
from fleece.cli.main import main
main(sys.argv[1:])
time.sleep(600)
"""
    scene.take("full")
    scene.write()
    dying = scene.engine.script(code, *scene.words("--json"))
    dying.wait_event("plan")
    os.kill(scene.guest.pid, signal.SIGSTOP)  # so that libvirtd waits in mid-call
    assert dying.wait().code == -signal.SIGKILL
    running = scene.engine.command(*scene.words("--no-resume"))
    time.sleep(1)
    os.kill(scene.guest.pid, signal.SIGCONT)
    ran = running.wait().succeeded()
    assert ran.result["mode"] == "incremental"
    scene.check_exact()
    scene.nothing_left()


def test_libvirtd_may_be_killed_in_mid_copy(daemon: Libvirtd, tmp_path: Path) -> None:
    """The run fails, and its job lives on; the next one takes it over."""
    with libvirt_scene(daemon, tmp_path) as scene:
        scene.take("full")
        for number in (signal.SIGKILL, signal.SIGTERM):
            scene.write(length=8 * KIB64)
            running = scene.slow()
            running.wait_event("progress")
            daemon.kill(number)
            running.signal(signal.SIGCONT)
            ran = running.wait()
            daemon.start()
            scene.guest.again()
            assert ran.code in (0, 3), ran
            scene.write()
            while scene.backup().succeeded().result["resumed"]:
                pass
            scene.check_exact()
            scene.nothing_left()


def test_a_libvirtd_that_is_killed_within_a_begin_is_told_with_the_cure(tmp_path: Path) -> None:
    """A job then holds the guest for ever, of which libvirt tells nothing."""
    with libvirtd() as daemon, libvirt_scene(daemon, tmp_path) as scene:
        scene.take("full")
        scene.write()
        running = scene.engine.slow(_DOMAIN, "Domain.begin", 0, *scene.words())
        running.wait_event("plan")
        os.kill(scene.guest.pid, signal.SIGSTOP)
        running.signal(signal.SIGCONT)
        time.sleep(1)  # libvirtd tells nobody that the call is under way, until it is done
        daemon.kill()
        os.kill(scene.guest.pid, signal.SIGCONT)
        running.wait().failed(3)
        daemon.start()
        scene.guest.again()
        soon = scene.engine.limited(_DOMAIN, "_SETTLE_LIMIT", 3)
        soon.run(*scene.words()).failed(3, "shut the guest down, then restart libvirtd")
        scene.guest.kill()
        daemon.kill(signal.SIGTERM)
        daemon.start()
        scene.guest.again()
        scene.switch(on=True)
        scene.take("rescan")
        scene.check_exact()
        scene.nothing_left()


def test_killed_at_random_moments_under_a_writing_guest(daemon: Libvirtd, tmp_path: Path) -> None:
    """The same with many more: `tools/killmatrix --libvirt`."""
    path = images.random_image(tmp_path / "vda.qcow2", 8 * MIB, seed=1)
    with libvirt_scene(daemon, tmp_path, GuestDisk("vda", path)) as scene:
        told = deaths(scene, 10, seed=5)
    assert told.points > 10
    assert told.killed > 0
    assert told.resumed > 0


# ---- the guest comes first -------------------------------------------------------------------


@contextmanager
def _booted(
    daemon: Libvirtd, folder: Path, files: GuestFiles, words: str = "rig.mode=none"
) -> Iterator[LibvirtScene]:
    """A guest with an agent, and a file system on its disk; its init has said that it is ready."""
    disk = GuestDisk("vda", images.make_disk(folder / "vda.qcow2", 64 * MIB, fs="ext4"))
    serial = folder / "serial.log"
    console = f"<serial type='file'><source path='{serial}'/><target port='0'/></serial>"
    more = {"devices": AGENT + console, "boot": boot_xml(files, words)}
    with libvirt_scene(daemon, folder, disk, **more) as scene:
        until(lambda: "RIG READY" in serial.read_text(errors="replace"), "the guest")
        yield scene


def _check_paused(scene: LibvirtScene) -> None:
    """Check that the newest point is what the disk of a paused guest holds."""
    target = scene.folder / "restored"
    fleece.restore(fleece.open_store(scene.store), "latest", "vda", str(target))
    image = scene.folder / "vda.qcow2"
    run_checked("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", image, target)


def test_a_full_scratch_gives_the_backup_up_and_lets_the_guest_go_on(
    tmp_path: Path, files: GuestFiles
) -> None:
    """QEMU stops a guest whose write finds the scratch full, and libvirt leaves it so."""
    words = "rig.mode=churn rig.delay=1000"
    with (
        small_tmpfs(3) as small,
        libvirtd() as daemon,
        _booted(daemon, tmp_path, files, words) as scene,
    ):
        scene.take("full")
        roomy, scene.scratch = scene.scratch, small
        small.chmod(0o711)
        running = scene.slow("--mode", "rescan")
        running.wait_event("progress")
        os.kill(running.pid, signal.SIGSTOP)  # else it gives up in time
        stopped = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
        until(lambda: scene.guest.domain.state() == stopped, "the guest's stop")
        running.signal(signal.SIGCONT)
        running.wait().failed(4)
        assert scene.guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        scene.nothing_left()
        scene.scratch = roomy
        scene.guest.domain.suspend()
        scene.take("incremental")
        _check_paused(scene)


def test_a_guest_is_frozen_for_the_moment_of_a_point(
    daemon: Libvirtd, tmp_path: Path, files: GuestFiles
) -> None:
    """And thawed again: at once, or by the next run if this one was killed meanwhile."""
    with _booted(daemon, tmp_path, files) as scene:
        until(lambda: _freeze_status(scene) == "thawed", "the agent")
        assert scene.backup("--freeze", "--require-freeze").succeeded().result["frozen"]
        assert _freeze_status(scene) == "thawed"
        scene.killed(_STEPS[0], "--freeze")
        assert _freeze_status(scene) == "frozen"
        ran = scene.backup().succeeded()
        assert "freeze of the guest" in {row["kind"] for row in ran.named("leftover")}
        assert _freeze_status(scene) == "thawed"
        scene.nothing_left()


def _freeze_status(scene: LibvirtScene) -> str | None:
    command = json.dumps({"execute": "guest-fsfreeze-status"})
    try:
        said = libvirt_qemu.qemuAgentCommand(scene.guest.domain, command, 5, 0)
    except libvirt.libvirtError:
        return None
    return str(json.loads(said)["return"])


def test_a_guest_without_an_agent_is_backed_up_all_the_same(scene: LibvirtScene) -> None:
    """Unless a freeze is required."""
    scene.backup("--freeze", "--require-freeze").failed(4, "could not be frozen")
    ran = scene.backup("--freeze").succeeded()
    assert not ran.result["frozen"]
    assert "not frozen" in ran.named("warning")[0]["what"]
    scene.nothing_left()
    scene.backup("--guest-agent", "/run/x").failed(2, "--guest-agent has no effect on libvirt:")


def test_a_guest_that_its_owner_paused_stays_paused(scene: LibvirtScene) -> None:
    scene.guest.domain.suspend()
    scene.take("full")
    scene.take("incremental")
    assert scene.guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    scene.check_exact()


def test_who_negotiates_is_waited_for_before_the_job_ends(scene: LibvirtScene) -> None:
    """QEMU 7.2 hangs for ever, and its guest, if the server is stopped meanwhile."""
    scene.take("full")
    scene.write(length=4 * KIB64)
    running = scene.slow()
    running.wait_event("progress")
    (place,) = scene.scratch.glob("*/qemu/nbd.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
        running.signal(signal.SIGCONT)
        running.wait().succeeded()
    assert scene.guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    scene.write()
    scene.take("incremental")
    scene.check_exact()


@pytest.fixture
def threaded(daemon: Libvirtd, tmp_path: Path) -> Iterator[LibvirtScene]:
    """A guest whose disk is served by an iothread: QEMU 7.2 ends when a client of it is lost."""
    path = images.random_image(tmp_path / "a.qcow2", 4 * MIB, seed=1)
    disk = GuestDisk("vda", path, driver="iothread='1'")
    with libvirt_scene(daemon, tmp_path, disk, top="<iothreads>1</iothreads>") as made:
        # A write by qemu-io beside a running iothread can end QEMU 7.2: that is the rig's own.
        made.guest.domain.suspend()
        yield made


def test_a_disk_with_an_iothread_is_written_into_files_and_read_from_there(
    threaded: LibvirtScene,
) -> None:
    """What changed alone, and zeros as such."""
    threaded.backup("--transport", "pull").failed(4, "an iothread serves it")
    threaded.take("full")
    threaded.check_exact()
    threaded.write("vda", 0, KIB64)
    threaded.guest.zero("vda", MIB, 2 * KIB64)
    threaded.held["vda"][MIB : MIB + 2 * KIB64] = bytes(2 * KIB64)
    ran = threaded.take("incremental")
    assert ran.result["disks"][0]["dirty_bytes"] == 3 * KIB64
    threaded.check_exact()
    threaded.write()
    threaded.take("differential", "--mode", "differential")
    threaded.check_exact()
    threaded.backup("--audit", "0.5").failed(2, "gives only what did")
    threaded.verb("audit", threaded.store, "--scratch", threaded.scratch).failed(4, "audited")
    threaded.nothing_left()


@pytest.mark.parametrize("step", ["before", "in", "after"])
def test_a_killed_engine_takes_no_guest_with_an_iothread_along(
    step: str, threaded: LibvirtScene
) -> None:
    threaded.take("full")
    threaded.write("vda", 0, MIB)
    moment = {
        "before": Moment("begun", _DOMAIN, "Domain.begin"),
        "in": Moment("looked", "fleece.source.libvirt.point", "LibvirtPoint.look", "before"),
        "after": Moment("read", "fleece.nbd.connection", "Connection.read"),
    }[step]
    threaded.killed(moment, may_end=True)
    assert threaded.guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    threaded.write()
    threaded.take("incremental")
    threaded.check_exact()
    threaded.nothing_left()


def test_each_run_of_a_guest_has_a_number(scene: LibvirtScene) -> None:
    domain = Domain(scene.guest.name, scene.uri)
    seen = [domain.run()]
    for on in (False, True):
        scene.switch(on=on)
        seen.append(domain.run())
    domain.close()
    assert seen[1] == -1
    assert len(set(seen)) == 3


@pytest.mark.parametrize("on", [True, False], ids=["started again", "left off"])
def test_a_guest_that_stops_in_mid_backup_stays_incremental(on: bool, scene: LibvirtScene) -> None:
    """The point is lost with it; its bitmaps are not."""
    scene.take("full")
    scene.write(length=8 * KIB64)
    running = scene.slow()
    running.wait_event("progress")
    scene.switch(on=False)
    running.signal(signal.SIGCONT)
    running.wait().failed(4, "the point is lost")
    if on:
        scene.switch(on=True)
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


# ---- guests that are off -----------------------------------------------------------------------


def test_on_and_off_alternate_in_one_chain(pair: LibvirtScene) -> None:
    """Over twenty changes each point incremental after one of the other kind, and exact."""
    pair.take("full")
    chance = random.Random(3)
    for number in range(10):
        for _ in range(chance.randrange(3)):
            pair.write("vda")
        pair.write("vdb")
        pair.switch(on=False)
        if number % 3:  # else two points of the running guest, with a restart in between
            assert pair.take("incremental").result["disks"][1]["mode"] == "rescan"
            pair.check_exact()
            assert pair.take("incremental").result["disks"][0]["dirty_bytes"] == 0
        pair.switch(on=True)
        pair.write("vda")
        pair.take("incremental")
        pair.check_exact()
        pair.nothing_left()
    assert len(pair.guest.checkpoints()) == 1


def test_a_guest_that_never_ran_begins_with_a_full(scene: LibvirtScene) -> None:
    scene.switch(on=False)
    scene.take("full")
    scene.take("incremental")
    scene.switch(on=True)
    scene.write()
    scene.take("incremental")
    scene.check_exact()
    scene.nothing_left()


def test_a_guest_cannot_start_while_its_images_are_read(scene: LibvirtScene) -> None:
    scene.switch(on=False)
    running = scene.slow()
    running.wait_event("progress")
    with pytest.raises(libvirt.libvirtError, match="lock"):
        scene.guest.domain.create()
    running.signal(signal.SIGCONT)
    running.wait().succeeded()
    scene.switch(on=True)
    scene.write()
    scene.take("incremental")
    scene.check_exact()


def test_a_backup_that_is_killed_while_the_guest_is_off_is_resumed(scene: LibvirtScene) -> None:
    """And if the guest is on by then, it is begun anew."""
    scene.take("full")
    late = Moment("late", "fleece.nbd.connection", "Connection.read", "after", 3)
    for on in (False, True):
        for number in range(8):
            scene.write("vda", number * 8 * KIB64, KIB64)
        scene.switch(on=False)
        scene.killed(late, "--jobs", "1")
        scene.switch(on=True)
        if on:
            scene.write()
        else:
            scene.switch(on=False)
        ran = scene.take("incremental")
        assert ran.result["resumed"] is not on
        scene.check_exact()
        scene.nothing_left()
        if not on:
            scene.switch(on=True)


def test_clones_of_one_template_that_were_exchanged_are_noticed(
    daemon: Libvirtd, tmp_path: Path
) -> None:
    """The template behind both tells them not apart, running or off."""
    template = images.random_image(tmp_path / "template.qcow2", 2 * MIB, seed=1)
    first, second = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    for path in (first, second):
        words = ("-f", "qcow2", "-b", template, "-F", "qcow2")
        run_checked("qemu-img", "create", "-q", *words, path)
    disks = GuestDisk("vda", first), GuestDisk("vdb", second)
    with libvirt_scene(daemon, tmp_path, *disks) as scene:
        for on in (True, False):
            scene.write("vda")
            scene.write("vdb")
            scene.switch(on=False)
            if on:
                scene.switch(on=True)
            scene.backup().succeeded()
            if on:
                scene.switch(on=False)
            first.rename(tmp_path / "aside")
            second.rename(first)
            (tmp_path / "aside").rename(second)
            scene.held = {"vda": scene.held["vdb"], "vdb": scene.held["vda"]}
            if on:
                scene.switch(on=True)
            scene.take("rescan")
            scene.check_exact()


def test_other_verbs_know_a_guest_that_is_off(scene: LibvirtScene) -> None:
    scene.take("full")
    scene.write("vda", 0, KIB64)
    scene.switch(on=False)
    scene.verb("doctor").succeeded()
    (row,) = scene.verb("bitmap", scene.store).succeeded().named("segment")
    assert (row["disk"], row["count"]) == ("vda", KIB64)
    scene.verb("audit", scene.store, "--scratch", scene.scratch).succeeded()
    assert scene.clean().result["removed"] == 0
    scene.take("incremental")
    scene.check_exact()
