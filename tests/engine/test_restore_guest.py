"""A guest is put back whole, on another libvirt or beside a script; or nothing is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import libvirt_qemu
import pytest

import fleece
from fleece.delta.identity import GuestIdentity
from fleece.machine.hypervisor import Hypervisor
from tests.contract.nbd_source import NbdSource
from tests.engine.scene import INTACT, MIB, ROOT, Json, Ran, wait_until
from tests.rig import images
from tests.rig.initramfs import GuestFiles
from tests.rig.libvirt import AGENT, GuestDisk, Libvirtd, boot_xml, guest_xml, libvirtd
from tests.rig.process import LIMIT, run, run_checked
from tests.rig.qmp import Monitor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root")

NAME = "web"
_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
_UEFI = f"<loader readonly='yes' type='pflash'>{_CODE}</loader><nvram>/old/web_VARS.fd</nvram>"
_TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
_CARD = "<interface type='network'><mac address='52:54:00:12:34:56'/><source network='none'/>"
_CARD += "<model type='virtio'/></interface>"


@pytest.fixture(scope="module")
def target() -> Iterator[Libvirtd]:
    """The libvirt that guests are put into."""
    with libvirtd() as made:
        yield made


class _Source(NbdSource):
    """A guest that tells its UUID."""

    def __init__(self, uris: dict[str, str], machine: fleece.Machine, own: str) -> None:
        super().__init__(NAME, uris, machine)
        self._own = own

    def identity(self) -> GuestIdentity:
        """As libvirt tells it."""
        return GuestIdentity(self._own, NAME)


def _run_inside(daemon: Libvirtd, *words: object) -> Ran:
    """Run a verb where a libvirtd is that of the host."""
    done = subprocess.run(
        [*daemon.inside, sys.executable, "-m", "fleece", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass
class Saved:
    """A store with points of a guest that is gone, and a libvirt that may get it.

    Attributes:
        target: that libvirt.
        folder: of the test.
        uuid: of the guest.
        images: of its disks, as they were, by name.
    """

    target: Libvirtd
    folder: Path
    uuid: str
    images: dict[str, Path]

    @property
    def store(self) -> Path:
        """Its place."""
        return self.folder / "store"

    @property
    def place(self) -> Path:
        """Where it is put back."""
        return self.folder / "back"

    def save(self, *parts: fleece.Part) -> None:
        """Take a point of all disks with these parts."""
        with _served(self.images) as uris:
            source = _Source(uris, fleece.Machine(parts), self.uuid)
            fleece.backup(source, fleece.open_store(str(self.store)))

    def save_libvirt(self, devices: str = "", **more: str) -> str:
        """Take a point of a guest of libvirt's; gives its definition, as libvirt has it."""
        disks = [GuestDisk(name, path, "raw") for name, path in self.images.items()]
        xml = guest_xml(NAME, disks, devices, top=f"<uuid>{self.uuid}</uuid>", **more)
        made = self.target.connection.defineXML(xml)
        try:
            text = str(made.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        finally:
            made.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        self.save(fleece.Part(fleece.PartKind.LIBVIRT_XML, text.encode()))
        return text

    def restore(self, *words: object, connect: bool = True, point: str = "latest") -> Ran:
        """Put it back, where the libvirt is that of this host."""
        place = ("--connect", "qemu:///system") if connect else ()
        command = ("restore-guest", self.store, point, self.place, *place, *words, "--json")
        return _run_inside(self.target, *command)

    def domain(self, name: str = NAME) -> libvirt.virDomain:
        """A guest of the target's."""
        return self.target.connection.lookupByName(name)

    def nothing(self) -> None:
        """Check that a run has left nothing."""
        assert self.target.connection.listAllDomains(0) == []
        assert not self.place.exists()
        assert not [*(self.target.folder / "lib/swtpm").glob("*")]

    def forget(self) -> None:
        """Remove all guests of the target."""
        for domain in self.target.connection.listAllDomains(0):
            if domain.isActive():
                domain.destroy()
            flags = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            domain.undefineFlags(flags | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)


def _answering(uri: str) -> bool:
    return run("nbdinfo", "--size", uri).returncode == 0


@contextmanager
def _served(images: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Raw images over NBD."""
    with tempfile.TemporaryDirectory(prefix="rig-") as folder:
        uris: dict[str, str] = {}
        servers: list[subprocess.Popen[bytes]] = []
        try:
            for name, path in images.items():
                socket = Path(folder, f"{len(servers)}.sock")
                fmt = "qcow2" if path.suffix == ".qcow2" else "raw"
                words = ["qemu-nbd", "-r", "-t", "-f", fmt, "-k", str(socket), str(path)]
                servers.append(subprocess.Popen(words))
                uris[name] = f"nbd+unix:///?socket={socket}"
                wait_until(partial(_answering, uris[name]), "qemu-nbd")
            yield uris
        finally:
            for server in servers:
                server.terminate()
                server.wait()


@pytest.fixture
def saved(target: Libvirtd, tmp_path: Path) -> Iterator[Saved]:
    """A guest of two disks."""
    made = {
        name: images.random_image(tmp_path / f"{name}.raw", size, seed=size, fmt="raw")
        for name, size in (("vda", 2 * MIB), ("vdb", MIB))
    }
    found = Saved(target, tmp_path, str(uuid.uuid4()), made)
    fleece.init(str(found.store))
    try:
        yield found
    finally:
        found.forget()


def _same(old: Path, new: Path, fmt: str) -> None:
    run_checked("qemu-img", "compare", "-U", "-f", "raw", "-F", fmt, old, new)


# ---- into libvirt ------------------------------------------------------------------------------


def test_a_guest_comes_back_as_another_one(saved: Saved) -> None:
    before = ElementTree.fromstring(saved.save_libvirt(_CARD))
    result = saved.restore("--name", "web2").succeeded().result
    domain = saved.domain("web2")
    after = ElementTree.fromstring(domain.XMLDesc(0))
    assert domain.UUIDString() == result["uuid"] != saved.uuid
    for tag in ("memory", "vcpu", "os/type", "cpu/model"):
        assert before.findtext(tag) == after.findtext(tag)
    old, new = (each.find("devices/interface/mac") for each in (before, after))
    assert old is not None
    assert new is not None
    assert old.attrib != new.attrib
    for disk in after.iterfind("devices/disk"):
        source, at = disk.find("source"), disk.find("target")
        assert source is not None
        assert at is not None
        path = Path(source.get("file", ""))
        assert path.parent == saved.place
        _same(saved.images[at.get("dev", "")], path, "raw")
    assert [row["disk"] for row in result["disks"]] == ["vda", "vdb"]


def test_it_is_said_before_anything_is_made_that_it_would_not_start(saved: Saved) -> None:
    saved.save_libvirt(_CARD)
    saved.restore("--start").failed(7, "network none")
    saved.nothing()
    ran = saved.restore().succeeded()
    assert any("network none" in row["what"] for row in ran.named("warning"))


def test_a_disk_goes_where_it_is_told_to(saved: Saved) -> None:
    saved.save_libvirt()
    elsewhere = saved.folder / "elsewhere.qcow2"
    saved.restore("--map", f"vda={elsewhere}", "--format", "qcow2", "--start").succeeded()
    assert saved.domain().isActive()
    saved.domain().destroy()
    _same(saved.images["vda"], elsewhere, "qcow2")
    assert os.listdir(saved.place) == ["vdb.qcow2"]


def test_a_place_of_no_disk_or_of_two_is_refused(saved: Saved) -> None:
    saved.save_libvirt()
    saved.restore("--map", "vdc=/x").failed(2, "vdc")
    saved.restore("--map", "vda=/x", "--map", "vda=/y").failed(2, "twice")
    saved.restore("--map", f"vda={saved.place}/vdb.raw").failed(2, "two disks")
    saved.restore("--map", "vda=nbd://localhost").failed(2, "block device")
    saved.nothing()


# ---- nothing is replaced unasked, and nothing stays of what failed -------------------------------


def test_a_guest_that_is_there_is_replaced_only_by_force_and_only_if_it_is_off(
    saved: Saved,
) -> None:
    saved.save_libvirt()
    other = saved.folder / "other"
    saved.restore().succeeded()
    first = saved.domain()
    shutil.move(saved.place, other)
    saved.restore().failed(7, "already", NAME)
    saved.restore("--keep-identity", "--force").failed(7, "only one")
    assert not saved.place.exists()
    shutil.move(other, saved.place)
    first.create()
    saved.restore("--force").failed(7, "is on")
    first.destroy()
    saved.restore("--force", "--start").succeeded()
    assert saved.domain().UUIDString() == first.UUIDString()
    assert saved.domain().isActive()


def test_a_file_that_is_there_is_replaced_only_by_force(saved: Saved) -> None:
    saved.save_libvirt()
    saved.place.mkdir()
    there = saved.place / "vdb.raw"
    there.write_bytes(b"mine")
    saved.restore().failed(7, "vdb.raw", "exists already")
    assert os.listdir(saved.place) == ["vdb.raw"]
    assert there.read_bytes() == b"mine"
    saved.restore("--force").succeeded()
    _same(saved.images["vdb"], there, "raw")


def test_what_a_failed_run_made_is_removed(saved: Saved) -> None:
    """The second disk's delta is damaged, and the first is restored by then."""
    saved.save_libvirt()
    (delta,) = saved.store.rglob("vdb.fleece")
    data = bytearray(delta.read_bytes())
    data[len(data) // 2] ^= 1
    delta.write_bytes(data)
    saved.restore().failed(5)
    saved.nothing()


def test_a_machine_that_the_target_lacks_is_said_before_anything_is_made(saved: Saved) -> None:
    text = saved.save_libvirt()
    for old, new, word in (
        ("pc-q35-7.2", "pc-q35-99.9", "pc-q35-99.9"),
        ("type='qemu'", "type='kvm'", "kvm"),
        ("<vcpu placement='static'>1<", "<vcpu placement='static'>99999<", "CPUs"),
        ("bus='virtio'", "bus='nonsense'", "nonsense"),
    ):
        changed = text.replace(old, new)
        assert changed != text
        if word == "kvm" and os.access("/dev/kvm", os.W_OK):
            continue
        saved.save(fleece.Part(fleece.PartKind.LIBVIRT_XML, changed.encode()))
        saved.restore().failed(7, word)
        saved.nothing()


def test_a_libvirt_that_is_not_there_is_said(saved: Saved) -> None:
    saved.save_libvirt()
    uri = f"qemu+unix:///system?socket={saved.folder}/none"
    saved.restore("--connect", uri, connect=False).failed(7, "none")
    saved.nothing()


def test_a_definition_that_is_none_is_damage_of_the_store(saved: Saved) -> None:
    saved.save(fleece.Part(fleece.PartKind.LIBVIRT_XML, b"<!DOCTYPE a><domain/>"))
    saved.restore().failed(5, "document type")
    saved.nothing()


# ---- UEFI, TPM, and the chain goes on ------------------------------------------------------------


def test_the_chain_goes_on_where_it_was_if_the_guest_keeps_its_identity(saved: Saved) -> None:
    saved.save_libvirt()
    result = saved.restore("--keep-identity", "--format", "qcow2").succeeded().result
    assert result["incremental"]
    domain = saved.domain()
    assert domain.UUIDString() == saved.uuid
    for on in (False, True):
        if on:
            domain.create()
        words = ("backup", f"libvirt:{NAME}", saved.store, "--connect", saved.target.uri, "--json")
        with tempfile.TemporaryDirectory(prefix="rig-") as scratch:
            os.chmod(scratch, 0o711)
            ran = INTACT.run(*words, "--scratch", scratch).succeeded()
        assert [row["mode"] for row in ran.result["disks"]] == ["incremental"] * 2
        assert [row["dirty_bytes"] for row in ran.result["disks"]] == [0, 0]
    domain.destroy()


def test_an_older_point_and_raw_images_are_read_as_a_whole(saved: Saved) -> None:
    saved.save_libvirt()
    (old,) = (point.id for point in fleece.open_store(str(saved.store)).catalogue().points)
    saved.save_libvirt()
    for words, point in ((("--format", "qcow2"), old), ((), "latest")):
        ran = saved.restore("--keep-identity", *words, point=point).succeeded()
        assert not ran.result["incremental"]
        assert any("reads all" in row["what"] for row in ran.named("warning"))
        assert saved.domain().listAllCheckpoints(0) == []
        saved.forget()
        shutil.rmtree(saved.place)


def test_a_definition_that_is_refused_at_the_end_leaves_the_disks(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.save_libvirt()

    def refuse(*given: object) -> None:
        raise fleece.TargetError("no room for a checkpoint")

    monkeypatch.setattr(Hypervisor, "remember", refuse)
    options = fleece.GuestOptions(
        keep_identity=True, connect=saved.target.uri, image_format=fleece.ImageFormat.QCOW2
    )
    store = fleece.open_store(str(saved.store))
    with pytest.raises(fleece.TargetError, match="proven, and stay in"):
        fleece.restore_guest(store, "latest", str(saved.place), options)
    assert saved.target.connection.listAllDomains(0) == []
    assert sorted(os.listdir(saved.place)) == ["vda.qcow2", "vdb.qcow2"]


# ---- a script ------------------------------------------------------------------------------------


def test_a_guest_without_a_definition_gets_a_script(saved: Saved) -> None:
    """It starts, its next backup, by QMP, is incremental, and tells of the machine."""
    saved.save()
    ran = saved.restore("--keep-identity", connect=False).succeeded()
    assert ran.result["kind"] == "script"
    assert sorted(os.listdir(saved.place)) == ["start.sh", "vda.qcow2", "vdb.qcow2"]
    command: list[str | Path] = [saved.place / "start.sh", "-display", "none", "-S", "-m", "300"]
    with subprocess.Popen(command, cwd="/") as machine:
        try:
            socket = saved.place / "qmp.sock"
            wait_until(socket.exists, "QEMU")
            with tempfile.TemporaryDirectory(prefix="rig-") as scratch:
                words = ("backup", f"qmp:{socket}", saved.store, "--scratch", scratch, "--json")
                taken = INTACT.run(*words).succeeded().result
        finally:
            machine.kill()
    assert [row["mode"] for row in taken["disks"]] == ["incremental"] * 2
    shutil.rmtree(saved.place)
    saved.restore("--keep-identity", connect=False).succeeded()
    text = (saved.place / "start.sh").read_text()
    for word in ("-machine pc-q35-", "-m 300", "-smp 2", f"-uuid {saved.uuid}"):
        assert word in text


def test_a_folder_that_cannot_be_is_refused(saved: Saved) -> None:
    saved.save()
    for place, why in (("n" * 256, "File name too long"), ("none/back", "folder does not exist")):
        words = ("restore-guest", saved.store, "latest", saved.folder / place, "--json")
        INTACT.run(*words).failed(7, why)


def test_options_of_libvirt_have_no_effect_on_a_script(saved: Saved) -> None:
    saved.save()
    for words in (("--start",), ("--trust-definition",), ("--connect", "qemu:///system")):
        saved.restore(*words, connect=False).failed(2, words[0])
    saved.save_libvirt()
    saved.restore("--script").failed(2, "--connect")
    saved.nothing()


def test_a_guest_of_libvirts_can_get_a_script(saved: Saved) -> None:
    saved.save_libvirt(_TPM, boot=_UEFI)
    saved.restore("--script", connect=False).succeeded()
    text = (saved.place / "start.sh").read_text()
    for word in ("pc-q35-7.2", "-m 256", _CODE, "nvram.fd", "swtpm socket"):
        assert word in text
    run_checked("sh", "-n", saved.place / "start.sh")
    assert (saved.place / "nvram.fd").read_bytes() == _VARIABLES.read_bytes()
    for _ in range(2):
        _check_starts(saved.place / "start.sh")


def _check_starts(script: Path) -> None:
    """Check that a script's QEMU has its TPM."""
    command: list[str | Path] = [script, "-display", "none", "-S"]
    with subprocess.Popen(command, cwd="/") as machine:
        try:
            place = script.with_name("qmp.sock")
            with Monitor(place, alive=lambda: machine.poll() is None) as monitor:
                assert monitor.command("query-tpm")
                monitor.command("quit")
        finally:
            machine.kill()


# ---- a throw-away machine is like the guest's own -----------------------------------------------


def test_a_boot_test_starts_by_the_guests_own_uefi(saved: Saved) -> None:
    text = saved.save_libvirt(boot=_UEFI)
    definition = fleece.Part(fleece.PartKind.LIBVIRT_XML, text.encode())
    saved.save(definition, fleece.Part(fleece.PartKind.NVRAM, _VARIABLES.read_bytes()))
    words = ("boot-test", saved.store, "latest", "--emulated", "--console-text", "BdsDxe")
    INTACT.run(*words, "--timeout", LIMIT).succeeded()
    served = INTACT.command("serve", saved.store, "latest", "--json")
    machine = served.wait_event("serving")["machine"]
    served.signal(signal.SIGTERM)
    served.wait().succeeded()
    assert machine == {
        "memory": 256,
        "processors": 1,
        "buses": {"vda": "virtio", "vdb": "virtio"},
        "firmware": _CODE,
    }


def test_a_boot_test_says_which_firmware_it_lacks(saved: Saved) -> None:
    """No firmware takes variables of such a size, and by a BIOS nothing starts from these disks."""
    text = saved.save_libvirt(boot=_UEFI)
    definition = fleece.Part(fleece.PartKind.LIBVIRT_XML, text.encode())
    saved.save(definition, fleece.Part(fleece.PartKind.NVRAM, b"short"))
    words = ("boot-test", saved.store, "latest", "--emulated", "--console-text", "BdsDxe")
    ran = INTACT.run(*words, "--timeout", 1, "--json").failed(6)
    assert any("no UEFI firmware" in row["what"] for row in ran.named("warning"))


# ---- the whole way -------------------------------------------------------------------------------


def _tpm_of(daemon: Libvirtd, own: str) -> Path:
    return daemon.folder / "lib/swtpm" / own / "tpm2/tpm2-00.permall"


def _answers(domain: libvirt.virDomain) -> bool:
    """Whether the guest's agent does."""
    try:
        libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', 5, 0)
    except libvirt.libvirtError:
        return False
    return True


def test_a_guest_with_uefi_and_tpm_boots_on_another_libvirt_and_its_chain_goes_on(
    target: Libvirtd, tmp_path: Path, files: GuestFiles
) -> None:
    own, nvram = str(uuid.uuid4()), tmp_path / "old_VARS.fd"
    shutil.copy(_VARIABLES.with_name("OVMF_VARS_4M.ms.fd"), nvram)  # no libvirt would choose it
    image = images.make_disk(tmp_path / "vda.qcow2", 16 * MIB, fs="ext4")
    saved = Saved(target, tmp_path, own, {"vda": image})
    fleece.init(str(saved.store))
    with libvirtd() as old:
        boot = _UEFI.replace("/old/web_VARS.fd", str(nvram)) + boot_xml(files, "rig.mode=churn")
        more = {"top": f"<uuid>{own}</uuid>", "boot": boot}
        guest = old.define(NAME, [GuestDisk("vda", image)], devices=_TPM + AGENT, **more)
        guest.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        state, variables = _tpm_of(old, own).read_bytes(), nvram.read_bytes()
        assert _backed_up(old, saved.store)["mode"] == "full"
        guest.remove()
        image.unlink()
        nvram.unlink(missing_ok=True)
    try:
        saved.restore("--keep-identity", "--trust-definition").succeeded()
        assert (saved.place / "nvram.fd").read_bytes() == variables
        assert _tpm_of(target, own).read_bytes() == state
        domain = saved.domain()
        domain.create()
        wait_until(lambda: _answers(domain), "the guest's agent")
        wait_until(lambda: domain.blockStats("vda")[2] > 0, "the guest's first write")
        row = _backed_up(target, saved.store)
        assert row["mode"] == "incremental"
        assert 0 < row["dirty_bytes"] < 16 * MIB
    finally:
        saved.forget()


def _backed_up(daemon: Libvirtd, store: Path) -> Json:
    """Take a point of the guest, where its libvirt is the host's; gives what is told of it."""
    with tempfile.TemporaryDirectory(prefix="rig-") as scratch:
        words = ("backup", f"libvirt:{NAME}", store, "--scratch", scratch, "--json")
        ran = _run_inside(daemon, *words).succeeded()
    (row,) = ran.result["disks"]
    return dict(row)
