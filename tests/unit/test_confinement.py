"""What AppArmor and SELinux need is told by what libvirt says that it uses."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from fleece.source.libvirt.confinement import confinement

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
