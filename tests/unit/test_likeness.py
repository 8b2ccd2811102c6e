"""The words of a throw-away machine that is like the guest's own."""

from __future__ import annotations

from pathlib import Path

from fleece.engine.serve.boot import BootMachine, _Draft
from fleece.engine.serve.likeness import Likeness
from fleece.engine.serve.serve import ServedDisk
from fleece.machine.firmware import Firmware

_SECURE = Firmware(Path("/a,b/code.fd"), Path("/vars.fd"), "x86_64", secure=True, smm=True)


def _words(machine: BootMachine, like: Likeness, folder: Path) -> str:
    disks = [ServedDisk(name, f"nbd://{name}", 0, "") for name in ("a", "b", "c", "flash")]
    return " ".join(_Draft(machine, like, disks, folder).command(3))


def test_each_disk_is_on_its_own_bus(tmp_path: Path) -> None:
    like = Likeness(buses={"a": "scsi", "b": "ide", "flash": "flash"})
    words = _words(BootMachine(), like, tmp_path)
    for word in ("virtio-scsi-pci", "scsi-hd,drive=disk0", "ide-hd,drive=disk1,bus=ide.1"):
        assert word in words
    assert "virtio-blk-pci,drive=disk2" in words
    assert "nbd://flash" not in words, "without firmware nothing reads its variables"
    words = _words(BootMachine(bus="nvme"), like, tmp_path)
    assert words.count("-device nvme,") == 4


def test_its_firmware_has_a_copy_of_its_variables(tmp_path: Path) -> None:
    like = Likeness(memory=300, processors=3, firmware=_SECURE, variables=b"own")
    words = _words(BootMachine(), like, tmp_path)
    for word in ("-m 300", "-smp 3", "q35,smm=on", "secure,value=on", "file=/a,,b/code.fd"):
        assert word in words
    assert (tmp_path / "variables").read_bytes() == b"own"


def test_what_the_user_says_goes_before_it(tmp_path: Path) -> None:
    like = Likeness(memory=300, processors=3, firmware=_SECURE, variables=b"own")
    mine = BootMachine(memory=200, processors=1, firmware=Path("/bios.fd"))
    words = _words(mine, like, tmp_path)
    for word in ("-m 200", "-smp 1", "-bios /bios.fd", "-machine q35 "):
        assert word in words
    assert "pflash" not in words


def test_variables_that_were_backed_up_as_a_disk_are_those_of_the_firmware(tmp_path: Path) -> None:
    words = _words(BootMachine(), Likeness(buses={"flash": "flash"}, firmware=_SECURE), tmp_path)
    code, variables = words.index("readonly=on"), words.index("nbd://flash")
    assert code < variables
    assert "if=pflash,format=raw,cache=unsafe,file=nbd://flash" in words
