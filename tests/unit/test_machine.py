"""Definitions that are made to fit another place: what stays, what changes, what goes."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from fleece.delta.part import PartKind
from fleece.disk.image import ImageFormat
from fleece.errors import StoreError, TargetError
from fleece.machine.base import MachineWish, PlacedDisk, SavedMachine
from fleece.machine.domain import Fit, fitted, image_formats, own_name
from fleece.machine.script import ScriptLanding
from fleece.machine.shape import Card, shape_of_domain, shape_of_qemu
from fleece.machine.swtpm import state_files
from fleece.machine.xml import believed

_OLD = "11111111-2222-4333-8444-555555555555"
_NEW = "99999999-2222-4333-8444-555555555555"
_MAC = "52:54:00:12:34:56"
_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"

_PLACE = PlacedDisk("vda", Path("/new/vda.qcow2"), ImageFormat.QCOW2)
_FIT = Fit(
    "web2",
    _NEW,
    keep_identity=False,
    disks={"vda": _PLACE},
    nvram=Path("/new/nvram.fd"),
    has_nvram=True,
    loaders=(_CODE,),
    trusted=False,
)

_DISK = """<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/>
<source dev='/dev/old/web'/><backingStore/><target dev='vda' bus='virtio'/><serial>S1</serial>
<address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></disk>"""
_OS = f"""<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
<loader readonly='yes' type='pflash'>{_CODE}</loader>
<nvram template='/x'>/old/web_VARS.fd</nvram>"""


def _domain(devices: str = "", top: str = "", system: str = _OS) -> Element:
    text = f"""<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>web</name><uuid>{_OLD}</uuid><genid>{_OLD}</genid><memory unit='KiB'>2097152</memory>
<vcpu>4</vcpu><os>{system}</os>{top}<devices>
<emulator>/usr/bin/evil</emulator>{_DISK}{devices}</devices></domain>"""
    return believed(text.encode(), "point 1")


def _fitted(root: Element, fit: Fit = _FIT) -> tuple[Element, tuple[str, ...]]:
    found = fitted(root, fit)
    return ElementTree.fromstring(found.xml), found.notices


def _card(way: str = "type='network'", more: str = "<source network='default'/>") -> str:
    return f"<interface {way}><mac address='{_MAC}'/>{more}<model type='e1000'/></interface>"


# ---- what changes ------------------------------------------------------------------------------


def test_a_disk_gets_its_new_place_and_keeps_what_the_guest_sees_of_it() -> None:
    made, notices = _fitted(_domain())
    (disk,) = made.findall("devices/disk")
    assert (disk.get("type"), disk.find("source").attrib) == (  # type: ignore[union-attr]
        "file",
        {"file": "/new/vda.qcow2"},
    )
    driver = disk.find("driver")
    assert driver is not None
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}
    assert disk.findtext("serial") == "S1"
    assert disk.find("address[@bus='0x02']") is not None
    assert disk.find("backingStore") is None
    assert notices == ()


def test_a_disk_can_be_a_block_device() -> None:
    device = PlacedDisk("vda", Path("/dev/vg/x"), ImageFormat.RAW, device=True)
    made, _ = _fitted(_domain(), replace(_FIT, disks={"vda": device}))
    disk = made.find("devices/disk[@type='block']")
    assert disk is not None
    assert disk.find("source[@dev='/dev/vg/x']") is not None
    assert disk.find("driver[@type='raw']") is not None


@pytest.mark.parametrize("kept", [True, False])
def test_a_guest_is_another_one_unless_it_keeps_its_identity(kept: bool) -> None:
    info = f"<sysinfo type='smbios'><system><entry name='uuid'>{_OLD}</entry></system></sysinfo>"
    vsock = "<vsock model='virtio'><cid auto='no' address='7'/></vsock>"
    fit = replace(_FIT, keep_identity=kept, uuid=_OLD if kept else _NEW)
    made, _ = _fitted(_domain(_card() + vsock, info), fit)
    assert made.findtext("name") == "web2"
    assert made.findtext("uuid") == fit.uuid == made.findtext("sysinfo/system/entry")
    assert (made.find(f"devices/interface/mac[@address='{_MAC}']") is not None) == kept
    assert (made.find("devices/vsock/cid[@address='7']") is not None) == kept
    assert made.findtext("genid") == "", "a guest must learn that it was set back"
    assert made.get("id") is None


def test_the_variables_of_its_uefi_are_beside_its_disks() -> None:
    made, notices = _fitted(_domain())
    nvram = made.find("os/nvram")
    assert nvram is not None
    assert (nvram.text, nvram.attrib) == ("/new/nvram.fd", {})
    assert made.findtext("os/loader") == _CODE
    assert notices == ()
    made, notices = _fitted(_domain(), replace(_FIT, has_nvram=False))
    assert made.findtext("os/nvram") == "/new/nvram.fd"
    assert "UEFI variables are not in the point" in notices[0]


def test_firmware_that_the_target_lacks_is_chosen_by_libvirt() -> None:
    made, notices = _fitted(_domain(), replace(_FIT, loaders=()))
    assert made.find("os[@firmware='efi']") is not None
    assert made.find("os/loader") is None
    assert made.findtext("os/nvram") == "/new/nvram.fd"
    assert _CODE in notices[0]


def test_formats_are_those_of_the_definition() -> None:
    assert image_formats(_domain()) == {"vda": ImageFormat.RAW}


# ---- what is told ------------------------------------------------------------------------------


def test_disks_that_the_point_or_the_definition_lacks_are_told() -> None:
    other = _DISK.replace("vda", "vdb")
    fit = replace(_FIT, disks={"vda": _PLACE, "vdc": replace(_PLACE, name="vdc")})
    made, notices = _fitted(_domain(other), fit)
    assert len(made.findall("devices/disk")) == 1
    assert [text.partition(" is not in")[0] for text in notices] == ["disk vdb", "disk vdc"]


def test_a_medium_stays_only_if_it_is_here_and_the_definition_is_trusted(tmp_path: Path) -> None:
    medium = tmp_path / "a.iso"
    drive = f"""<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
<source file='{medium}'/><target dev='sda' bus='sata'/><readonly/></disk>"""
    trusting = replace(_FIT, trusted=True)
    for there, fit, stays in ((1, _FIT, False), (0, trusting, False), (1, trusting, True)):
        medium.unlink(missing_ok=True)
        if there:
            medium.touch()
        made, notices = _fitted(_domain(drive), fit)
        source = made.find("devices/disk[@device='cdrom']/source")
        assert (source is not None) == stays
        assert any(str(medium) in text for text in notices) != stays


def test_a_kernel_that_is_not_here_is_an_error_before_anything_is_made(tmp_path: Path) -> None:
    gone = tmp_path / "vmlinuz"
    trusting = replace(_FIT, trusted=True)
    root = _domain(system=f"{_OS}<kernel>{gone}</kernel>")
    with pytest.raises(TargetError, match="vmlinuz"):
        fitted(root, trusting)
    gone.touch()
    made, _ = _fitted(root, trusting)
    assert made.findtext("os/kernel") == str(gone)


# ---- what reaches into the host ----------------------------------------------------------------

_REACHING = {
    "command line": ("", "<qemu:commandline><qemu:arg value='/h/x'/></qemu:commandline>"),
    "override": ("", "<qemu:override><qemu:device alias='/h/x'/></qemu:override>"),
    "what is not known": ("", "<novelty path='/h/x'/>"),
    "a device that is not known": ("<novelty path='/h/x'/>", ""),
    "label": ("", "<seclabel type='static' model='dac'><label>/h/x</label></seclabel>"),
    "partition": ("", "<resource><partition>/h/x</partition></resource>"),
    "weight": ("", "<blkiotune><device><path>/h/x</path></device></blkiotune>"),
    "firmware's file": ("", "<sysinfo type='fwcfg'><entry name='a' file='/h/x'/></sysinfo>"),
    "host device": ("<hostdev mode='subsystem' type='pci'><source name='/h/x'/></hostdev>", ""),
    "folder": ("<filesystem type='mount'><source dir='/h/x'/></filesystem>", ""),
    "shared memory": ("<shmem name='/h/x'/>", ""),
    "smartcard": ("<smartcard mode='host-certificates'><database>/h/x</database></smartcard>", ""),
    "memory": ("<memory model='nvdimm'><source><path>/h/x</path></source></memory>", ""),
    "input": ("<input type='evdev'><source dev='/h/x'/></input>", ""),
    "TPM": ("<tpm><backend type='passthrough'><device path='/h/x'/></backend></tpm>", ""),
    "TPM's folder": (
        "<tpm><backend type='emulator'><source type='dir' path='/h/x'/></backend></tpm>",
        "",
    ),
    "entropy": ("<rng model='virtio'><backend model='random'>/h/x</backend></rng>", ""),
    "entropy's program": (
        "<rng model='virtio'><backend model='egd'><source path='/h/x'/></backend></rng>",
        "",
    ),
    "script": (_card(more="<script path='/h/x'/>"), ""),
    "tap": (_card(more="<backend tap='/h/x'/>"), ""),
    "vhostuser": (_card("type='vhostuser'", "<source type='unix' path='/h/x'/>"), ""),
    "vdpa": (_card("type='vdpa'", "<source dev='/h/x'/>"), ""),
    "serial": ("<serial type='file'><source path='/h/x'/><target port='0'/></serial>", ""),
    "serial's log": ("<serial type='pty'><log file='/h/x'/><target port='0'/></serial>", ""),
    "console": ("<console type='pipe'><source path='/h/x'/></console>", ""),
    "channel": (
        "<channel type='unix'><source mode='bind' path='/h/x'/><target type='virtio' name='a'/>"
        "</channel>",
        "",
    ),
    "redirection": ("<redirdev bus='usb' type='dev'><source path='/h/x'/></redirdev>", ""),
    "sound": ("<audio id='1' type='file' path='/h/x'/>", ""),
    "graphics": ("<graphics type='vnc' socket='/h/x'><listen socket='/h/x'/></graphics>", ""),
    "rendering": ("<graphics type='spice'><gl rendernode='/h/x'/></graphics>", ""),
    "display": ("<graphics type='sdl' display=':0' xauth='/h/x'/>", ""),
    "bus": ("<graphics type='dbus' address='unix:path=/h/x'/>", ""),
    "ROM": (_card(more="<rom bar='on' file='/h/x'/>"), ""),
    "ROM by a relative path": (_card(more="<rom bar='on' file='../h/x'/>"), ""),
    "a later word": ("<video><model type='virtio' novelty='/h/x'/></video>", ""),
    "acceleration": (
        "<video><model type='virtio'><acceleration rendernode='/h/x'/></model></video>",
        "",
    ),
    "disk": (_DISK.replace("<backingStore/>", "<mirror file='/h/x'/><auth username='/h/x'/>"), ""),
}


@pytest.mark.parametrize("name", _REACHING)
def test_what_reaches_into_the_host_stays_only_if_it_is_trusted(name: str) -> None:
    devices, top = _REACHING[name]
    made = fitted(_domain(devices, top), _FIT).xml
    assert "/h/x" not in made
    assert "evil" not in made
    if name != "disk":
        trusted = fitted(_domain(devices, top), replace(_FIT, trusted=True)).xml
        assert "/h/x" in trusted


@pytest.mark.parametrize("tag", ["kernel", "initrd", "cmdline", "dtb", "nvram", "loader"])
def test_files_that_it_starts_from_stay_only_if_they_are_trusted(tag: str) -> None:
    system = f"<type arch='x86_64'>hvm</type><{tag} template='/h/x'>/h/x</{tag}>"
    assert "/h/x" not in fitted(_domain(system=system), _FIT).xml


def test_what_stays_is_usable() -> None:
    agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    spice = "<channel type='spicevmc'><target type='virtio' name='a'/></channel>"
    serial = "<serial type='file'><source path='/x'/><target port='0'/></serial>"
    made, notices = _fitted(_domain(agent + spice + serial + _card()))
    assert [each.get("type") for each in made.findall("devices/channel")] == ["unix", "spicevmc"]
    assert made.find("devices/serial[@type='pty']/target") is not None
    assert made.find("devices/interface/source[@network='default']") is not None
    assert [text.partition(":")[0] for text in notices] == ["<serial> 0"]


# ---- documents that libvirt never wrote ----------------------------------------------------------

_BOMB = b"""<!DOCTYPE domain [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<domain><name>&b;</name></domain>"""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<domain>",
        b"{}",
        _BOMB,
        b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>',
        b"<a>" * 100 + b"</a>" * 100,
        b"<a>" + b"<b/>" * 100_001 + b"</a>",
        b"<a>" + b" " * (5 << 20) + b"</a>",
        b"<?xml version='1.0' encoding='nonsense'?><domain/>",
    ],
    ids=["empty", "cut", "json", "bomb", "external", "deep", "many", "long", "encoding"],
)
def test_a_document_that_libvirt_does_not_write_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="the definition"):
        believed(data, "the definition")


def test_a_document_of_something_else_is_refused() -> None:
    for text in (b"<network><name>a</name></network>", b"<domain><name> </name></domain>"):
        with pytest.raises(StoreError):
            own_name(believed(text, "x"))


def _archive(*members: tuple[str, bytes | None]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return file.getvalue()


def test_the_state_of_a_tpm_is_plain_files() -> None:
    assert state_files(_archive(("tpm2-00.permall", b"x"))) == {"tpm2-00.permall": b"x"}
    for bad in (
        b"no archive" * 100,
        _archive(("../tpm2-00.permall", b"x")),
        _archive(("/etc/cron.d/x", b"x")),
        _archive(("tpm2-00.permall", None)),
        _archive(*((f"f{number}", b"") for number in range(100))),
        _archive(("tpm2-00.permall", b"x"))[:600],
    ):
        with pytest.raises(StoreError):
            state_files(bad)


# ---- a script ------------------------------------------------------------------------------------


def test_the_shape_of_a_machine_is_read_from_its_definition() -> None:
    shape = shape_of_domain(_domain(_card() + "<tpm><backend type='emulator'/></tpm>"))
    assert (shape.machine, shape.arch) == ("pc-q35-7.2", "x86_64")
    assert (shape.memory, shape.processors) == (2048, 4)
    assert (shape.uefi, shape.loader, shape.tpm) == (True, _CODE, "2.0")
    assert shape.cards == (Card("e1000", _MAC),)
    assert shape.buses == {"vda": "virtio"}
    assert shape.uuid == _OLD


@pytest.mark.parametrize(
    "text",
    [
        "<memory unit='KiB'>-1</memory>",
        "<memory unit='parsec'>1</memory>",
        "<memory>$(reboot)</memory>",
        "<vcpu>999999999</vcpu>",
        "<os><type machine='q35 -monitor stdio' arch='../x'>hvm</type></os>",
        "<devices><interface><mac address='$(reboot)'/><model type='a,b'/></interface></devices>",
    ],
)
def test_a_shape_takes_no_words_of_a_command_line(text: str) -> None:
    shape = shape_of_domain(believed(f"<domain>{text}</domain>".encode(), "x"))
    assert (shape.machine, shape.arch, shape.memory, shape.processors) == (
        None,
        "x86_64",
        None,
        None,
    )
    assert shape.cards in ((), (Card("virtio", None),))


def _script(name: str, disks: Sequence[PlacedDisk], *, keep: bool = False) -> str:
    xml = ElementTree.tostring(_domain(_card()))
    saved = SavedMachine(name, "0123456789", {PartKind.LIBVIRT_XML: xml}, ("vda",))
    landing = ScriptLanding(saved, MachineWish(Path("/new"), keep_identity=keep))
    landing.prepare(disks)
    return landing.files()[0].data.decode()


def test_a_script_has_the_machine_and_its_disks() -> None:
    text = _script("web", [_PLACE], keep=True)
    for word in ("-machine pc-q35-7.2", "-m 2048", "-smp 4", "file=./vda.qcow2", _MAC, _OLD):
        assert word in text
    assert _MAC not in _script("web", [_PLACE])


def test_a_name_is_one_word_of_a_script(tmp_path: Path) -> None:
    bad = "a'b$(touch x),qmp\n-version"
    place = PlacedDisk(bad, tmp_path / "a,b$(touch x).raw", ImageFormat.RAW)
    text = _script(bad, [place])
    assert "guest=a'\"'\"'b$(touch x),,qmp\n-version'" in text
    assert "a,,b$(touch x).raw'" in text
    assert ",id=disk0" in text
    assert "\n-version, as it was" not in text
    assert uuid.UUID(text.partition("-uuid ")[2][:36])


_QMP = {
    "name": "web",
    "uuid": _OLD,
    "machine": "pc-q35-7.2",
    "memory": 512 << 20,
    "cpus": {"count": 2, "type": "qemu64-x86_64-cpu", "target": "x86_64"},
    "drives": [
        {"name": "vda", "driver": "scsi-hd", "read_only": False, "file": "/a"},
        {"name": "pflash0", "driver": "cfi.pflash01", "read_only": True, "file": _CODE},
        {"name": "pflash1", "driver": "cfi.pflash01", "read_only": False, "file": "/vars"},
    ],
    "devices": [
        {"driver": "virtio-net-pci", "properties": {"mac": _MAC}},
        {"driver": "tpm-crb", "properties": {}},
    ],
}


def test_the_shape_of_a_machine_is_read_from_what_qmp_told() -> None:
    shape = shape_of_qemu(json.dumps(_QMP).encode(), "x")
    assert (shape.machine, shape.memory, shape.processors) == ("pc-q35-7.2", 512, 2)
    assert (shape.uefi, shape.loader, shape.tpm, shape.uuid) == (True, _CODE, "2.0", _OLD)
    assert shape.cards == (Card("virtio", _MAC),)
    assert shape.buses == {"vda": "scsi", "pflash0": "flash", "pflash1": "flash"}


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b'{"cpus": 1, "drives": {}, "devices": [1, {"properties": {"mac": 1}}], "uuid": "x"}',
        b'{"machine": "$(reboot)", "memory": -1, "cpus": {"count": "-1", "target": "a b"}}',
    ],
)
def test_what_qmp_did_not_tell_so_is_not_known(data: bytes) -> None:
    shape = shape_of_qemu(data, "x")
    assert (shape.machine, shape.arch, shape.memory, shape.uuid) == (None, "x86_64", None, None)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_qmp_told_is_json(data: bytes) -> None:
    with pytest.raises(StoreError):
        shape_of_qemu(data, "x")


def test_a_script_has_what_qmp_told() -> None:
    parts = {PartKind.QEMU: json.dumps(_QMP).encode()}
    saved = SavedMachine("web", "0123456789", parts, ("pflash1", "vda"))
    landing = ScriptLanding(saved, MachineWish(Path("/new"), keep_identity=True))
    flash = PlacedDisk("pflash1", Path("/new/pflash1.raw"), ImageFormat.RAW)
    landing.prepare([flash, _PLACE])
    text = landing.files()[0].data.decode()
    code, variables = text.index('file="$FIRMWARE"'), text.index("if=pflash,format=raw,file=./pf")
    assert code < variables, "QEMU has the first flash drive for the code"
    for word in (f"FIRMWARE:={_CODE}", "-device virtio-scsi-pci", "-device scsi-hd,", _OLD, _MAC):
        assert word in text
    assert "nvram.fd" not in text
