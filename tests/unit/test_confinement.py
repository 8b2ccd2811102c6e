"""What AppArmor and SELinux need is told by what libvirt says that it uses."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from fleece.source.libvirt.confinement import confinement
from fleece.source.libvirt.inventory import passed_through, resting_drives

_UUID = "5f2f9d55-6a0f-4e0e-8b0a-6f6ad6a0c1de"
_DAC = "<secmodel><model>dac</model><doi>0</doi></secmodel>"


def _told(model: str, label: str, scratch: str = "/var/lib/fleece/scratch") -> tuple[str, ...]:
    secmodel = f"<secmodel><model>{model}</model><doi>0</doi></secmodel>" if model else ""
    host = f"<capabilities><host>{secmodel}{_DAC}</host></capabilities>"
    guest = f"<domain><uuid>{_UUID}</uuid>{label}<seclabel type='dynamic' model='dac'/></domain>"
    return confinement(ElementTree.fromstring(host), ElementTree.fromstring(guest), Path(scratch))


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        ("apparmor", ("/var/lib/fleece/scratch/**", "abstractions/libvirt-qemu", _UUID)),
        ("selinux", ("'/var/lib/fleece/scratch(/.*)?'", "svirt_image_t", "restorecon")),
    ],
)
def test_each_has_its_lines(model: str, lines: tuple[str, ...]) -> None:
    """Unless the guest is not confined by it."""
    (said,) = _told(model, f"<seclabel type='dynamic' model='{model}' relabel='yes'/>")
    for line in lines:
        assert line in said
    assert _told(model, f"<seclabel type='none' model='{model}'/>") == ()


def test_without_either_nothing_is_said() -> None:
    assert _told("", "") == ()


def test_a_strange_folder_does_not_break_out_of_the_line() -> None:
    """The shell makes one rule of it."""
    (said,) = _told("apparmor", "", "/s c/it's $(x)")
    command = said.partition("root: ")[2].partition(" >>")[0]
    out = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert out == '"/s c/it\'s $(x)/**" rwk,\n'


def test_devices_that_are_passed_through_are_told() -> None:
    """They are no disks to QEMU; how many of each type."""
    kinds = ("pci", "usb", "pci")
    devices = "".join(f"<hostdev mode='subsystem' type='{kind}'/>" for kind in kinds)
    guest = ElementTree.fromstring(f"<domain><devices>{devices}</devices></domain>")
    first, second = passed_through(guest)
    assert first.startswith("2 device(s) of the host of type pci")
    assert second.startswith("1 device(s) of the host of type usb")


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        ("<disk type='block' device='lun'><source dev='/dev/sdx'/>", "SCSI device passed through"),
        ("<disk type='nvme' device='disk'><source type='pci'/>", "type nvme"),
        ("<disk type='vhostuser' device='disk'><source type='unix'/>", "type vhostuser"),
        ("<disk type='network' device='disk'><source protocol='rbd'/>", "a network disk"),
        ("<disk type='file' device='disk'><source file='/x'/><transient/>", "transient"),
    ],
)
def test_what_cannot_be_read_of_a_guest_that_is_off_is_told(disk: str, why: str) -> None:
    """Each with why; the others are read."""
    disks = f"{disk}<target dev='vda'/></disk><disk><source file='/y'/><target dev='vdb'/></disk>"
    guest = ElementTree.fromstring(f"<domain><devices>{disks}</devices></domain>")
    images, unfit = resting_drives(guest)
    assert [image.name for image in images] == ["vdb"]
    assert why in unfit["vda"]
