"""The machine of real guests: what libvirt, swtpm and QEMU tell of it is in the point."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

import fleece
from fleece.source import still
from fleece.store.names import PARTIAL
from tests.engine.libvirt_scene import KIB64, MIB, LibvirtScene, libvirt_scene
from tests.engine.scene import MachineScene, Moment
from tests.rig import images
from tests.rig.disk import Disk
from tests.rig.libvirt import GuestDisk, Libvirtd, guest_xml, libvirtd, session
from tests.rig.machine import Machine
from tests.rig.process import run

_FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
_TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
_SCREEN = "<graphics type='vnc' port='-1' autoport='yes' passwd='hunter2'/>"

rooted = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Libvirtd]:
    """A libvirtd for all tests here."""
    with libvirtd() as made:
        yield made


class _Guest:
    """A guest with UEFI and a TPM, backed up by an engine to which its libvirt is the host's."""

    def __init__(self, scene: LibvirtScene, variables: Path) -> None:
        self.scene = scene
        self.variables = variables

    @property
    def store(self) -> fleece.Store:
        """Of the scene."""
        return fleece.open_store(str(self.scene.store))

    @property
    def tpm(self) -> Path:
        """The folder of its swtpm."""
        uuid = str(self.scene.guest.domain.UUIDString())
        return Path(self.scene.guest.daemon.folder, "lib/swtpm", uuid, "tpm2")

    def backup(self) -> list[dict[str, object]]:
        """One point; what was told."""
        words = map(str, self.scene.words())
        inside = self.scene.guest.daemon.inside
        done = run(*inside, sys.executable, "-m", "fleece", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def parts(self) -> dict[str, bytes]:
        """Of the newest point."""
        return {part.kind: part.data for part in fleece.parts(self.store, "latest")}

    def held(self) -> dict[str, int]:
        """What the newest point stores of each part, in bytes of it."""
        found = self.store.catalogue().find("latest").parts
        return {name: entry.data_bytes + entry.zero_bytes for name, entry in found.items()}


@pytest.fixture
def guest(daemon: Libvirtd, tmp_path: Path) -> Iterator[_Guest]:
    """It is on, and stands still: firmware that runs writes its variables when it likes."""
    disk = GuestDisk("vda", images.random_image(tmp_path / "vda.qcow2", 4 * MIB, seed=1))
    variables = tmp_path / "variables.fd"
    boot = (
        f"<loader readonly='yes' type='pflash'>{_FIRMWARE}</loader>"
        f"<nvram template='{_VARIABLES}'>{variables}</nvram>"
    )
    with libvirt_scene(daemon, tmp_path, disk, devices=_TPM + _SCREEN, boot=boot) as scene:
        scene.guest.domain.suspend()
        yield _Guest(scene, variables)


def _retitle(domain: Any, title: str) -> None:
    """Change the definition that the guest starts with next."""
    lib = libvirt
    kind, flags = lib.VIR_DOMAIN_METADATA_TITLE, lib.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(kind, title, None, None, flags)


def _unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as made:
        return {each.name: made.extractfile(each).read() for each in made}  # type: ignore[union-attr]


@rooted
def test_a_point_holds_definition_variables_and_tpm(guest: _Guest) -> None:
    """On and off; what does not change costs nothing, and no password is in it."""
    domain = guest.scene.guest.domain
    assert guest.backup()[-1]["parts"] == ["@libvirt-xml", "@nvram", "@tpm"]
    first = guest.parts()
    assert first["libvirt-xml"].decode() == domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert b"hunter2" not in first["libvirt-xml"]
    secure = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    assert "hunter2" in domain.XMLDesc(secure)
    assert first["nvram"] == guest.variables.read_bytes()
    assert _unpacked(first["tpm"]) == {
        path.name: path.read_bytes() for path in guest.tpm.iterdir() if path.name != ".lock"
    }
    assert set(_unpacked(first["tpm"])) == {"tpm2-00.permall"}
    guest.backup()
    assert guest.held() == {"@libvirt-xml": 0, "@nvram": 0, "@tpm": 0}

    guest.scene.switch(on=False)
    changed = bytearray(guest.variables.read_bytes())
    changed[-1] ^= 1
    guest.variables.write_bytes(changed)
    _retitle(domain, "a title")
    assert not [line for line in guest.backup() if line["event"] == "warning"]
    assert guest.parts()["nvram"] == changed
    held = guest.held()
    assert held["@tpm"] == 0
    assert 0 < held["@nvram"] <= KIB64
    point = guest.store.catalogue().points[-2].id
    told = guest.scene.engine.run("diff", guest.scene.store, point, "latest").succeeded().out
    assert "@libvirt-xml: changed" in told
    assert "+  <title>a title</title>" in told
    assert "@nvram: changed" in told
    assert "@tpm" not in told
    guest.scene.check_exact()


_WRITES = """
import sys
from pathlib import Path
import fleece
from fleece.events import PointTaken, Warned
uri, scratch, place, when, *files = sys.argv[1:]
def hear(event):
    if isinstance(event, Warned):
        print(event.what)
    if type(event).__name__ == when:
        for path in files:
            with open(path, "r+b") as file:
                file.write(file.read())
options = fleece.SourceOptions(scratch=Path(scratch), connect=uri)
with fleece.open_source("libvirt:web", options) as source:
    if when == "Before":
        hear(type("Before", (), {})())
    fleece.backup(source, fleece.open_store(place), listener=hear)
"""


@rooted
def test_what_is_written_after_the_point_was_taken_is_told(guest: _Guest) -> None:
    """The UEFI variables and the TPM's state are not of the disks' moment: nobody stops them."""
    scene, state = guest.scene, guest.tpm / "tpm2-00.permall"

    def told(when: str) -> list[str]:
        place = (scene.uri, scene.scratch, scene.store)
        words = (sys.executable, "-c", _WRITES, *place, when, guest.variables, state)
        done = run(*scene.guest.daemon.inside, *map(str, words))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    assert told("Before") == []
    why = "written while the point was taken, and may be newer than the disks"
    nvram, tpm = told("PointTaken")
    assert nvram.endswith(f"{why}: nvram")
    assert tpm.endswith(f"{why}: tpm")
    assert told("") == []
    scene.check_exact()


@rooted
def test_what_cannot_be_read_is_a_warning(guest: _Guest) -> None:
    """No link that a guest's QEMU could have made is followed, and the disks are stored."""
    secret = guest.scene.folder / "secret"
    secret.write_bytes(b"not the guest's")
    guest.variables.rename(guest.scene.folder / "moved")
    guest.variables.symlink_to(secret)
    told = guest.backup()
    (warning,) = [str(line["what"]) for line in told if line["event"] == "warning"]
    assert "lacks a part of the machine: nvram" in warning
    assert str(guest.variables) in warning
    assert told[-1]["parts"] == ["@libvirt-xml", "@tpm"]
    guest.scene.check_exact()


@rooted
def test_a_resumed_point_has_the_machine_that_it_was_taken_with(
    daemon: Libvirtd, tmp_path: Path
) -> None:
    """Not the one that is there when it is resumed."""
    with libvirt_scene(daemon, tmp_path) as scene:
        scene.take("full")
        for number in range(8):
            scene.write("vda", number * 8 * KIB64, KIB64)
        before = scene.guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        late = Moment("late", "fleece.nbd.connection", "Connection.read", "after", 3)
        scene.killed(late, "--jobs", "1")
        _retitle(scene.guest.domain, "later")
        ran = scene.backup().succeeded()
        assert ran.result["resumed"]
        assert ran.result["parts"] == ["@libvirt-xml"]
        store = fleece.open_store(str(scene.store))
        (part,) = fleece.parts(store, "latest")
        assert part.data.decode() == before
        scene.check_exact()
        scene.take("incremental")
        (part,) = fleece.parts(store, "latest")
        assert b"later" in part.data
        for number in range(8):
            scene.write("vda", number * 8 * KIB64, KIB64)
        _retitle(scene.guest.domain, "last")
        scene.killed(late, "--jobs", "1")
        (delta,) = scene.store.rglob(f"{PARTIAL}*/@*.fleece")
        raw = bytearray(delta.read_bytes())
        raw[-300] ^= 1
        delta.write_bytes(raw)
        ran = scene.backup().succeeded()
        assert not ran.result["resumed"]  # the part is damaged
        (part,) = fleece.parts(store, "latest")
        assert b"last" in part.data
        scene.check_exact()
        assert fleece.verify_store(store.catalogue()).errors == ()


@rooted
def test_variables_and_tpm_of_an_ordinary_users_guest() -> None:
    """They are below that user's own folders, where libvirt chose the firmware itself."""
    with session(65534) as (folder, become):
        images.make_disk(folder / "vda.qcow2", MIB)
        os.chown(folder / "vda.qcow2", 65534, 65534)
        text = guest_xml("web", [GuestDisk("vda", folder / "vda.qcow2")], devices=_TPM)
        definition = folder / "web.xml"
        definition.write_text(text.replace("<os>", "<os firmware='efi'>"))

        def checked(*words: object) -> str:
            done = run(*become, *map(str, words))
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        virsh = ("virsh", "-c", "qemu:///session")
        checked(*virsh, "define", definition)
        checked(*virsh, "start", "web")
        fleece_ = (sys.executable, "-m", "fleece")
        checked(*fleece_, "init", folder / "store")
        place = ("--scratch", folder, "--connect", "qemu:///session", "--json")
        for _ in range(2):  # on, then off
            told = checked(*fleece_, "backup", "libvirt:web", folder / "store", *place)
            result = json.loads(told.splitlines()[-1])
            assert result["parts"] == ["@libvirt-xml", "@nvram", "@tpm"], told
            checked(*virsh, "destroy", "web") if _ == 0 else None


def test_what_qmp_tells_is_in_the_point(tmp_path: Path) -> None:
    """The same however the point is held, and nothing of fleece's own."""
    image = images.random_image(tmp_path / "d0.qcow2", 4 * MIB, seed=1)
    with Machine([Disk(image, "d0")]) as qemu:
        machine = MachineScene(qemu, tmp_path)
        machine.backup().succeeded()
        machine.backup("--fleecing", "filter").succeeded()
        store = fleece.open_store(str(machine.store))
        machine.nothing_left()
    (part,) = fleece.parts(store, "latest")
    assert part.kind is fleece.PartKind.QEMU
    assert b"fleece-" not in part.data
    told = json.loads(part.data)
    assert told["machine"].startswith("pc-q35")
    assert told["memory"] == 64 * MIB
    assert told["cpus"]["count"] == 1
    drives = {drive["name"]: drive for drive in told["drives"]}
    drive = drives["vd-d0"]
    assert drive["driver"] == "virtio-blk-pci"
    assert Path(drive["file"]).exists()
    (held,) = store.catalogue().find("latest").parts.values()
    assert held.data_bytes == 0


def test_a_file_that_is_written_all_the_time_is_not_taken(tmp_path: Path) -> None:
    """A reading counts only if the next one is the same."""
    path = tmp_path / "state"
    path.write_bytes(b"0")
    assert still.file_at_rest(str(path)) == b"0"
    counted = iter(range(100))

    def wanted(name: str) -> bool:
        path.write_bytes(str(next(counted)).encode())
        return True

    with pytest.raises(OSError, match="all the time"):
        still.folder_at_rest(str(tmp_path), wanted)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert set(_unpacked(still.folder_at_rest(str(tmp_path), lambda _: True))) == {"state"}
    with pytest.raises(OSError, match="symbolic link"):
        still.file_at_rest(str(tmp_path / "link"))
